"""The distribution of Hessian eigenvalues around zero, and their magnitudes over training."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hessian_lab.plots.style import BLUE, ORANGE, VERMILLION, set_title, styled
from hessian_lab.probe.spectrum import Spectrum

# The window of the papers' Fig. 2, and an odd number of bins, so that one is centred on zero.
WINDOW = 0.01
NUM_BINS = 101
# Decades shown below the rounding floor, and rows per decade.
DECADES_BELOW = 2
ROWS_PER_DECADE = 4
# Checkpoints that are ticked one by one.
MOST_TICKS = 6


def plot_spectrum(
    spectra: Spectrum | Sequence[Spectrum],
    *,
    steps: Sequence[int] | None = None,
    title: str | None = None,
    window: float = WINDOW,
) -> Figure:
    """Return the papers' Fig. 2 of one or several spectra, with the rounding floor drawn.

    Left, the pooled distribution of eigenvalues in ``[-window, window]`` with the zeros marked;
    right, the magnitudes: over training for several spectra, by rank for a single one.

    Args:
        spectra: One spectrum, or those of the checkpoints of a run.
        steps: The optimizer steps of the checkpoints.
        title: Of the figure.
        window: Half the width of the left panel, in units of the loss.
    """
    pool = [spectra] if isinstance(spectra, Spectrum) else list(spectra)
    if not pool:
        raise ValueError("spectra must hold at least one spectrum, got none.")
    places = np.arange(len(pool)) if steps is None else np.asarray(steps)
    if places.shape != (len(pool),):
        raise ValueError(f"steps must hold {len(pool)} steps, got shape {list(places.shape)}.")
    with styled():
        figure = Figure(figsize=(6.4, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_window(left, pool, window)
        if len(pool) == 1:
            _draw_ranks(right, pool[0])
        else:
            _draw_training(right, pool, places)
        set_title(figure, title)
    return figure


def _draw_window(axes: Axes, pool: Sequence[Spectrum], window: float) -> None:
    values = np.concatenate([one.values.numpy() for one in pool])
    zero = np.concatenate([np.abs(one.values.numpy()) <= one.tolerance for one in pool])
    edges = np.linspace(-window, window, NUM_BINS + 1)
    everywhere = np.full(len(values), 100 / len(values))
    inside = float((np.abs(values) <= window).mean())
    axes.hist(
        [values[zero], values[~zero]],
        bins=edges.tolist(),
        weights=[everywhere[zero], everywhere[~zero]],
        stacked=True,
        color=[VERMILLION, BLUE],
        label=[f"numerical zeros: {zero.mean():.1%}", "other eigenvalues"],
    )
    structural = sum(one.structural_zeros for one in pool) / len(values)
    axes.plot([], [], " ", label=f"of them structural: {structural:.1%}")
    counts = np.histogram(values, bins=edges)[0]
    low = 80 * max(1, counts[counts > 0].min(initial=len(values))) / len(values)
    high = max(100 * counts.max() / len(values), 10 * low)
    # Limits first, half as tall again for the legend: scaling a log axis itself warns of one bar.
    axes.set_ylim(low, high * (high / low) ** 0.5)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([10.0**k for k in range(-6, 3)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}"))
    axes.set_xlim(-window, window)
    axes.set_xlabel("eigenvalue λ")
    axes.set_ylabel("share of all eigenvalues (%)")
    axes.set_title(f"{inside:.0%} of λ lie in [-{window:g}, {window:g}]")
    handles, labels = axes.get_legend_handles_labels()
    order = [labels.index(text) for text in sorted(labels, key=_legend_place)]
    axes.legend([handles[i] for i in order], [labels[i] for i in order], loc="upper left")


def _legend_place(label: str) -> int:
    return ["numerical", "of", "other"].index(label.split()[0])


def _draw_training(axes: Axes, pool: Sequence[Spectrum], steps: np.ndarray) -> None:  # type: ignore[type-arg]
    floors = np.array([one.tolerance for one in pool])
    top = max(one.spectral_radius for one in pool)
    resolved = floors[floors > 0]
    if not len(resolved):
        axes.set_axis_off()
        axes.text(0.5, 0.5, "every eigenvalue is zero", ha="center", va="center")
        return
    lowest = np.floor(np.log10(resolved.min())) - DECADES_BELOW
    highest = np.ceil(np.log10(top))
    rows = np.linspace(lowest, highest, int(highest - lowest) * ROWS_PER_DECADE + 1)
    table = np.array([_decade_shares(one, rows) for one in pool]).T
    least = max(table[table > 0].min(), 1e-2)
    mesh = axes.pcolormesh(
        _edges(steps.astype(float)),
        10.0**rows,
        np.ma.masked_equal(table, 0),
        norm=LogNorm(least, max(table.max(), 10 * least)),
        cmap="cividis_r",
        rasterized=True,
    )
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, aspect=30)
    bar.set_label("share per cell (%)", fontsize=8)
    bar.outline.set_linewidth(0.4)  # type: ignore[operator]
    axes.plot(steps, floors, color=VERMILLION, linestyle="--")
    if len(steps) <= MOST_TICKS:
        axes.set_xticks(steps)
    axes.annotate(
        "rounding floor n·eps·max|λ|",
        (0.5, np.interp((steps[0] + steps[-1]) / 2, steps, floors)),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, -4),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=8,
        color=VERMILLION,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
    axes.set_yscale("log")
    axes.set_ylim(10.0**lowest, 10.0**highest)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("magnitude |λ|")
    axes.set_title("lowest row: zero, and all below")


def _decade_shares(one: Spectrum, rows: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Return the share of |λ| between each pair of powers of ten, in percent."""
    with np.errstate(divide="ignore"):
        decades = np.log10(one.magnitudes.numpy())
    clipped = np.clip(decades, rows[0], rows[-1])
    counts, _ = np.histogram(clipped, bins=rows)
    return 100 * counts / len(decades)


def _edges(steps: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Return the cell edges around the checkpoints."""
    middles = (steps[1:] + steps[:-1]) / 2
    first, last = steps[0] - (middles[0] - steps[0]), steps[-1] + (steps[-1] - middles[-1])
    return np.concatenate([[first], middles, [last]])


def _draw_ranks(axes: Axes, one: Spectrum) -> None:
    values = one.values.numpy()
    order = np.argsort(-np.abs(values))
    ranks, sorted_values = np.arange(1, len(values) + 1), values[order]
    for chosen, color, label in (
        (sorted_values > 0, BLUE, "positive"),
        (sorted_values < 0, ORANGE, "negative"),
    ):
        axes.plot(ranks[chosen], np.abs(sorted_values[chosen]), ".", ms=3, color=color, label=label)
    if one.tolerance > 0:
        axes.axhline(one.tolerance, color=VERMILLION, linestyle="--", label="rounding floor")
        axes.set_yscale("log")
        axes.set_ylim(bottom=one.tolerance * 10.0**-DECADES_BELOW)
    axes.set_xlabel("rank by magnitude")
    axes.set_ylabel("magnitude |λ|")
    axes.set_title(f"{len(values)} eigenvalues")
    axes.legend(loc="upper right")
