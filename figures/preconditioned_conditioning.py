"""The picture of what scaling does to the conditioning of the 1-D task, and whether it pays."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from hessian_lab.plots.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, styled

CAPTION = (
    "Conditioning of the 1-D task of Chng, Saratchandran & Lucey (2024), Fig. 2: a 2×16 field on "
    "sin 2πx + sin 6πx. (a) True κ at the start, proven in interval arithmetic, one mark per seed; "
    "double precision sees nothing above the dashed line. (b) κ after scaling over κ before, along "
    "equilibrated gradient descent, a line per seed and the median: proven for the Gaussian field, "
    "and in double precision, which resolves it, for the sine field. (c) Loss after the run, every "
    "method at its best rate, one mark per seed. (d) max|λ| / 10 %-quantile of |λ| of 4×16 fields "
    "on camera (Lav Varshney, CC0) after Adam, scaled by Adam's √v, row norms and |diagonal|; "
    "open triangles are lower bounds."
)
LOOKS = {
    "identity": ("H", "black", "o"),
    "equilibrated": ("$D^E$", BLUE, "s"),
    "jacobi": ("$D^J$", VERMILLION, "D"),
}
METHODS = {
    ("identity", 1.0): ("GD", "black", "o"),
    ("equilibrated", 0.5): ("$D^E$, p=½", BLUE, "s"),
    ("equilibrated", 1.0): ("$D^E$, p=1", SKY, "s"),
    ("jacobi", 0.5): ("$D^J$, p=½", VERMILLION, "D"),
    ("jacobi", 1.0): ("$D^J$, p=1", ORANGE, "D"),
    ("abs-hessian", 0.5): ("|H|, p=½", GREEN, "^"),
    ("abs-hessian", 1.0): ("|H|, p=1", PURPLE, "^"),
}
SCALES = {
    "none": ("H", "black", "o"),
    "root": (r"$\sqrt{v}$", ORANGE, "v"),
    "rows": ("$D^E$", BLUE, "s"),
    "diagonal": ("$D^J$", VERMILLION, "D"),
}
# log₁₀ of a κ_eff beyond which double precision gives bounds, at some thousand parameters.
RESOLVED = 12.3
# Where a loss that is not finite, or no longer small, is drawn.
LEFT = 1e2


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record."""
    rows = pd.DataFrame(record["rows"])
    with styled():
        figure = Figure(figsize=(7.1, 5.4), layout="constrained")
        panels = figure.subplots(2, 2)
        kinds = {kind: part for kind, part in rows.groupby("kind")}
        _start(panels[0, 0], kinds["path"])
        _along(panels[0, 1], kinds["path"])
        _losses(panels[1, 0], kinds["rate"])
        _scaled(panels[1, 1], kinds["moments"])
    return figure


def _label(row: pd.Series) -> str:
    for name, letter in (("sigma", "σ"), ("omega", "ω")):
        if name in row and pd.notna(row[name]):
            return f"{letter}={row[name]:g}"
    return str(row["act"])


def _start(axes: Axes, paths: pd.DataFrame) -> None:
    start = paths[(paths["step"] == 0) & paths["proven_identity"].notna()]
    start = start.drop_duplicates(["act", "seed", *_scales(start)])
    labels = [_label(row) for _, row in start.iterrows()]
    order = list(dict.fromkeys(labels))
    for offset, (name, (text, color, marker)) in zip((-0.22, 0, 0.22), LOOKS.items(), strict=True):
        places = [order.index(label) + offset for label in labels]
        axes.plot(
            places, start[f"proven_{name}"], marker, ms=3.5, color=color, label=text, alpha=0.8
        )
    _floor(axes, start)
    axes.set_xticks(range(len(order)), [label.removeprefix("σ=") for label in order])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    top = float(start[[f"proven_{name}" for name in LOOKS]].to_numpy().max())
    axes.set_ylim(0, 1.15 * top)
    _decades(axes)
    axes.set_xlabel("σ of the Gaussian field; ω of the sine field")
    axes.set_ylabel("κ, proven")
    axes.set_title("(a) at the start")
    axes.legend(loc="upper right", ncols=3, columnspacing=1, handletextpad=0.2)


def _scales(rows: pd.DataFrame) -> list[str]:
    return [name for name in ("sigma", "omega") if name in rows]


def _floor(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw what double precision sees at most: 1/(n eps), the bound of unresolved κ."""
    unresolved = rows[~rows["resolved_identity"].astype(bool)]
    if len(unresolved):
        axes.axhline(float(unresolved["kappa_identity"].max()), ls="--", lw=0.8, color="grey")


def _along(axes: Axes, paths: pd.DataFrame) -> None:
    own = paths[paths["points"] == paths["points"].min()]
    sine = own[(own["act"] == "sine") & (own["method"] == "equilibrated")]
    proven = own[(own["act"] == "gaussian") & own["proven_identity"].notna()]
    along = proven[proven["step"] > 0]
    handles = []
    if len(along):
        sigma = along["sigma"].iloc[0]
        _ratios(axes, proven[proven["sigma"] == sigma], "proven", size=5)
        handles.append(_grey(f"Gaussian σ={sigma:g}, proven", 5))
    if len(sine):
        _ratios(axes, sine, "kappa", size=2.5)
        handles.append(_grey("sine ω=30, float64", 2.5))
    axes.axhline(0, color="black", lw=0.6)
    axes.set_yscale("symlog", linthresh=1, linscale=0.8)
    axes.set_ylim(-30, 15)
    axes.yaxis.set_major_locator(FixedLocator([-20, -10, -5, -2, -1, 0, 1]))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _decades(axes)
    axes.set_xlabel("step of equilibrated gradient descent")
    axes.set_ylabel("κ after / κ before scaling")
    axes.set_title("(b) along the run")
    axes.legend(handles=handles, loc="upper center", handlelength=2.5)


def _grey(label: str, size: float) -> Line2D:
    return Line2D([], [], color="grey", marker="o", ms=size, label=label)


def _ratios(axes: Axes, rows: pd.DataFrame, column: str, *, size: float) -> None:
    for name in ("equilibrated", "jacobi"):
        _, color, marker = LOOKS[name]
        change = rows.assign(change=rows[f"{column}_{name}"] - rows[f"{column}_identity"])
        for _, seed in change.groupby("seed"):
            seed = seed.sort_values("step")
            axes.plot(seed["step"], seed["change"], lw=0.5, color=color, alpha=0.5)
        middle = change.groupby("step")["change"].median()
        axes.plot(middle.index, middle, marker=marker, ms=size, color=color)


def _losses(axes: Axes, rates: pd.DataFrame) -> None:
    labels = [f"{row['act']}\n{_label(row)}" for _, row in rates.iterrows()]
    rates = rates.assign(label=labels, loss=rates["loss"].astype(float).fillna(LEFT))
    order = list(dict.fromkeys(labels))
    count = len(METHODS)
    for index, ((method, exponent), (text, color, marker)) in enumerate(METHODS.items()):
        part = rates[(rates["method"] == method) & (rates["exponent"] == exponent)]
        offset = 0.8 * (index - (count - 1) / 2) / count
        places = [order.index(label) + offset for label in part["label"]]
        losses = part["loss"].clip(upper=LEFT)
        axes.plot(places, losses, marker, ms=3, color=color, label=text, alpha=0.7, lw=0)
    for place in range(1, len(order)):
        axes.axvline(place - 0.5, lw=0.5, color="lightgrey")
    axes.set_yscale("log")
    axes.set_xticks(range(len(order)), order)
    axes.set_ylabel("loss after the run")
    axes.set_title("(c) best rate of each method")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4, columnspacing=1)


def _scaled(axes: Axes, moments: pd.DataFrame) -> None:
    trained = moments[moments["stage"] == "trained"]
    order = list(dict.fromkeys(trained["act"]))
    for index, (name, (text, color, marker)) in enumerate(SCALES.items()):
        places = [order.index(act) + 0.18 * (index - 1.5) for act in trained["act"]]
        values = trained[f"tenth_{name}"].to_numpy(dtype=float)
        bound = values > RESOLVED
        known = [place for place, each in zip(places, bound, strict=True) if not each]
        rest = [place for place, each in zip(places, bound, strict=True) if each]
        axes.plot(known, values[~bound], marker, ms=3.5, color=color, label=text, alpha=0.8, lw=0)
        axes.plot(rest, values[bound], "^", ms=4, mfc="white", color=color, lw=0)
    axes.set_xticks(range(len(order)), [act.replace("_", "-") for act in order])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.15 * (top - bottom))
    _decades(axes)
    axes.set_ylabel("max|λ| / 10 %-quantile of |λ|")
    axes.set_title("(d) after Adam, 4×16 on an image")
    axes.legend(loc="upper left", ncols=4, columnspacing=1, handletextpad=0.2)


def _decades(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda log, _: f"$10^{{{log:.0f}}}$"))
