"""The picture of condition numbers along a training: what is known, and what is only a bound."""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hessian_lab.plots.style import BLUE, GREEN, ORANGE, SKY, VERMILLION, set_title, styled
from hessian_lab.probe.conditioning import ConditionEnclosure
from hessian_lab.probe.conditions import Conditioning

# Of a scaling: its label, colour and marker.
LOOKS = {
    "identity": ("H", "black", "o"),
    "equilibrated": ("$D^E$: row norms", BLUE, "s"),
    "jacobi": ("$D^J$: |diagonal|", VERMILLION, "D"),
    "equilibrated_estimated": ("$D^E$, estimated", SKY, "s"),
    "jacobi_estimated": ("$D^J$, estimated", ORANGE, "D"),
    "optimizer": ("P: the optimizer's", GREEN, "o"),
}
# Bounds of all scalings are the same number 1/(n eps): their marks stand side by side, this share
# of the axis apart.
APART = 0.02
MIN_DECADES = 2.5
# Checkpoints that are marked one by one, and marks of longer curves.
MOST_MARKS = 12


def plot_conditioning(
    scaled: Mapping[str, Sequence[Conditioning]],
    *,
    steps: Sequence[int],
    exact: Mapping[str, Sequence[ConditionEnclosure]] | None = None,
    title: str | None = None,
) -> Figure:
    """Return κ against step, before and after scaling, beside the effective κ of the 10 % quantile.

    A value is a solid line with filled marks. A lower bound is a dotted line with open triangles
    that point to where κ lies. What is proven in interval arithmetic is a thick line.

    Args:
        scaled: By the name of the scaling, one entry per checkpoint.
        steps: The optimizer steps of the checkpoints.
        exact: Proven intervals, likewise, where there are any.
        title: Of the figure.

    Raises:
        ValueError: If there is nothing to draw, or the lengths differ.
    """
    curves = [*scaled.values(), *(exact or {}).values()]
    if not scaled or not steps or any(len(curve) != len(steps) for curve in curves):
        raise ValueError("scaled and exact must hold one entry per step, and at least one.")
    with styled():
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        places = np.asarray(steps)
        for rank, (name, curve) in enumerate(scaled.items()):
            apart = APART * (rank - (len(scaled) - 1) / 2) * (np.ptp(places) or 1)
            kappas = np.log10([one.kappa for one in curve])
            _draw(left, name, places, kappas, [one.resolved for one in curve], apart)
            tenths = np.log10([one.eff10 for one in curve])
            _draw(right, name, places, tenths, [one.eff10_resolved for one in curve], apart)
        for name, intervals in (exact or {}).items():
            middles = [one.log10 if np.isfinite(one.log10) else np.nan for one in intervals]
            marker = LOOKS[name][2] if len(steps) <= MOST_MARKS else None
            left.plot(places, middles, lw=2.4, color=LOOKS[name][1], marker=marker, ms=3, zorder=1)
        left.set_title("κ = max|λ| / min|λ|")
        right.set_title("max|λ| / 10% quantile of |λ|")
        for axes in (left, right):
            _scale(axes)
        bounds = not all(one.resolved and one.eff10_resolved for one in chain(*scaled.values()))
        handles = _legend(scaled, bounds=bounds, proven=bool(exact))
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        set_title(figure, title)
    return figure


def _draw(
    axes: Axes,
    name: str,
    steps: np.ndarray,  # type: ignore[type-arg]
    logs: np.ndarray,  # type: ignore[type-arg]
    resolved: Sequence[bool],
    apart: float,
) -> None:
    """Draw values solid and bounds dotted, marks of these so far apart from their step.

    A piece of curve between a value and a bound is a bound.
    """
    _, color, marker = LOOKS[name]
    known = np.asarray(resolved, dtype=bool)
    axes.plot(steps, logs, ":", lw=0.9, color=color)
    axes.plot(steps, np.where(known, logs, np.nan), "-", color=color)
    stride = max(1, -(-len(steps) // MOST_MARKS))
    shown = np.zeros(len(steps), dtype=bool)
    shown[::stride] = True
    axes.plot(steps[known & shown], logs[known & shown], marker, ms=3.5, color=color)
    bounds = ~known & shown
    axes.plot(steps[bounds] + apart, logs[bounds], "^", ms=4, mfc="white", color=color)


def _scale(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda log, _: f"$10^{{{log:.0f}}}$"))
    axes.set_xlabel("optimizer step")
    axes.margins(y=0.12)
    # Ticks are whole decades: there must be two.
    low, high = axes.get_ylim()
    if high - low < MIN_DECADES:
        middle = round((low + high) / 2)
        axes.set_ylim(middle - MIN_DECADES / 2, middle + MIN_DECADES / 2)


def _legend(names: Mapping[str, object], *, bounds: bool, proven: bool) -> list[Line2D]:
    handles = [
        Line2D([], [], color=color, marker=marker, ms=3.5, label=label)
        for label, color, marker in (LOOKS[name] for name in names)
    ]
    if bounds:
        bound = Line2D([], [], color="grey", ls=":", marker="^", mfc="white", ms=4)
        bound.set_label("lower bound")
        handles.append(bound)
    if proven:
        handles.append(Line2D([], [], color="grey", lw=2.4, label="κ, proven"))
    return handles
