"""The spectrum through training on a page: an overview, a slider, small pictures without it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hessian_lab.plots.report_data import Detail, Spectra, chosen, first_middle_last
from hessian_lab.plots.report_svg import LARGE, SMALL, Array, Axis, Box, figure, path, text
from hessian_lab.plots.report_text import (
    Cell,
    bound,
    count,
    decibels,
    escape,
    key,
    number,
    paragraph,
    percent,
    power,
    shown,
    table,
)
from hessian_lab.probe.spectrum import LADDER, Spectrum

# Decades shown below the rounding floor; rows of the overview and bars of a histogram per decade.
DECADES_BELOW = 2
ROWS_PER_DECADE, BARS_PER_DECADE = 4, 2
# What exact zeros take beside the scale.
SLOT, GAP = 12.0, 6.0
# Upper ends of the shares that one shade stands for, and its opacity.
SHADES = ((0.003, 0.14), (0.01, 0.3), (0.03, 0.5), (0.1, 0.75), (1.0, 1.0))
NUM_SMALL = 8


@dataclass(frozen=True)
class Scale:
    """The decades that all pictures of one measurement share, and the height of their bars."""

    low: int
    high: int
    up: float
    down: float


@dataclass(frozen=True)
class Bars:
    """Shares of eigenvalues: exactly zero or off the scale first, then along the bars.

    Attributes:
        positive: Those above the floor.
        negative: Likewise.
        zero: Those at or below the floor, whose sign is not known.
    """

    positive: Array
    negative: Array
    zero: Array


def spectra_part(part: Spectra, detail: Detail) -> str:
    """Return the pictures and tables of all eigenvalues along a run."""
    finite = [i for i, one in enumerate(part.spectra) if math.isfinite(one.spectral_radius)]
    alive = [i for i in finite if part.spectra[i].spectral_radius > 0]
    if not alive:
        what = "Every eigenvalue is zero." if finite else "No matrix was finite."
        return paragraph(what)
    kept = [alive[i] for i in chosen(len(alive), detail.frames)]
    spectra, steps = [part.spectra[i] for i in kept], [part.steps[i] for i in kept]
    scale = _scale(spectra)
    frames = [
        _frame(one, scale, LARGE)
        | {"x": round(LARGE.steps(steps).place(step), 1)}
        | {"texts": {name: cell for name, cell in _told(part, i)}}
        for i, one, step in zip(kept, spectra, steps, strict=True)
    ]
    title = escape(part.title)
    overview = figure(
        _overview(spectra, steps, scale),
        f"Up to {_shades()} % of the eigenvalues per cell. Dashed: the rounding floor. Lowest row: "
        f"exactly zero, or below {power(scale.low)}.",
        title="Magnitudes through training",
    )
    histogram = figure(
        _histogram(frames[-1], scale, LARGE, f"{title} at step {steps[-1]}", keyed=True),
        f"{key('positive', 'positive')}, {key('negative', 'negative')}, "
        f"{key('zero', 'at or below')} the floor: sign unknown. "
        f"Leftmost bar: exactly zero, or below {power(scale.low)}.",
        title="At one checkpoint",
    )
    few = [kept.index(i) for i in [kept[j] for j in chosen(len(kept), NUM_SMALL)]]
    small = "".join(
        f"<figure>{_small(spectra[i], steps[i], scale)}</figure>" for i in few if len(kept) > 1
    )
    return (
        through(overview + histogram, frames, _told(part, kept[-1]), steps)
        + f'<div class="multiples">{small}</div>'
        + _table(part)
        + _layers(part)
    )


def through(
    pictures: str, frames: Sequence[dict[str, Any]], told: Sequence[tuple[str, Cell]], steps: Any
) -> str:
    """Return pictures with a slider over the checkpoints; without a script, those of the last.

    Args:
        pictures: Two figures; paths with ``data-path`` and what has ``data-cursor`` are moved.
        frames: By checkpoint: ``x`` of the cursor, ``paths`` and ``texts`` by their names.
        told: Names and values at the last checkpoint.
        steps: Of the frames.
    """
    lines = "".join(
        f'<div><dt>{escape(name)}</dt><dd data-text="{escape(name)}">{shown(cell)}</dd></div>'
        for name, cell in told
    )
    body = [
        frame | {"texts": {name: _plain(cell) for name, cell in frame["texts"].items()}}
        for frame in frames
    ]
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    data = data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    last = len(frames) - 1
    slider = (
        '<label class="slider"><span>Checkpoint</span>'
        f'<input type="range" min="0" max="{last}" value="{last}" step="1" '
        f'aria-valuetext="step {steps[-1]}"></label>'
        if last
        else ""
    )
    return (
        f'<div class="through"><div class="pair">{pictures}</div>{slider}'
        f'<dl class="readout">{lines}</dl>'
        f'<script type="application/json">{data}</script></div>'
    )


def _plain(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.text


def _shades() -> str:
    return " ".join(
        f'<span class="shade"><i class="key positive" style="opacity:{opacity}"></i> '
        f"{100 * end:g}</span>"
        for end, opacity in SHADES
    )


def _scale(spectra: Sequence[Spectrum]) -> Scale:
    floors = [one.tolerance for one in spectra if one.tolerance > 0]
    low = math.floor(math.log10(min(floors))) - DECADES_BELOW
    high = math.ceil(math.log10(max(one.spectral_radius for one in spectra)) + 1e-9)
    bars = [_bars(one, low, high, BARS_PER_DECADE) for one in spectra]
    return Scale(
        low,
        high,
        up=100 * max(float((each.positive + each.zero).max()) for each in bars),
        down=100 * max(float(each.negative.max()) for each in bars),
    )


def _bars(one: Spectrum, low: int, high: int, per_decade: int) -> Bars:
    magnitudes, values = one.magnitudes.numpy(), one.values.numpy()
    with np.errstate(divide="ignore"):
        place = np.floor((np.log10(magnitudes) - low) * per_decade)
    number_of = (high - low) * per_decade
    slot = np.clip(place, -1, number_of - 1).astype(int) + 1
    below = magnitudes <= one.tolerance

    def shares(mask: Array) -> Array:
        return np.bincount(slot[mask], minlength=number_of + 1) / len(values)

    return Bars(shares(~below & (values > 0)), shares(~below & (values < 0)), shares(below))


def _axes(scale: Scale, box: Box) -> tuple[Axis, Axis]:
    room = 0.06 * (scale.up + scale.down)
    x = box.across(scale.low, scale.high, inset=SLOT + GAP, log=True)
    down = scale.down + room if scale.down else 0.0
    return x, box.up(-down, scale.up + room, mirrored=True)


def _frame(one: Spectrum, scale: Scale, box: Box) -> dict[str, Any]:
    """Return the paths of one histogram."""
    x, y = _axes(scale, box)
    bars = _bars(one, scale.low, scale.high, BARS_PER_DECADE)
    width = (x.end - x.start) / ((scale.high - scale.low) * BARS_PER_DECADE)
    lefts = [box.left + 1.0, *(x.start + i * width for i in range(len(bars.zero) - 1))]
    widths = [SLOT, *([width] * (len(bars.zero) - 1))]

    def draw(bottoms: Array, tops: Array) -> str:
        return "".join(
            f"M{left + 0.3:.1f} {y.place(100 * low):.1f}H{left + wide - 0.3:.1f}"
            f"V{y.place(100 * high):.1f}H{left + 0.3:.1f}Z"
            for left, wide, low, high in zip(lefts, widths, bottoms, tops, strict=True)
            if low != high
        )

    none = np.zeros_like(bars.zero)
    floor = x.place(one.tolerance)
    return {
        "paths": {
            "positive": draw(none, bars.positive),
            "negative": draw(none, -bars.negative),
            "zero": draw(bars.positive, bars.positive + bars.zero),
            "floor": f"M{floor:.1f} {box.height - box.bottom}V{box.top}",
        }
    }


def _histogram(
    frame: dict[str, Any], scale: Scale, box: Box, label: str, *, keyed: bool, title: str = ""
) -> str:
    x, y = _axes(scale, box)
    small = box is SMALL
    inside = box.frame(
        x, y, xlabel="" if small else "magnitude |λ|", ylabel="" if small else "share (%)"
    )
    for name, data in frame["paths"].items():
        inside += path(data, name, key=name if keyed else "")
    inside += f'<path class="axis" d="M{box.left} {y.place(0):.1f}H{box.width - box.right}"/>'
    inside += text(
        box.left + 1 + SLOT / 2, box.height - box.bottom + (12 if small else 15), "0", "middle"
    )
    if small:
        inside += text(box.left, 11, title, "start", "label")
    return box.chart(inside, label=label)


def _small(one: Spectrum, step: int, scale: Scale) -> str:
    title = f"step {step}"
    frame = _frame(one, scale, SMALL)
    return _histogram(frame, scale, SMALL, f"spectrum at {title}", keyed=False, title=title)


def _overview(spectra: Sequence[Spectrum], steps: Sequence[int], scale: Scale) -> str:
    """Return magnitudes against steps, a shade per share, with the floor and the cursor."""
    box = LARGE
    x = box.steps(steps)
    base = box.height - box.bottom
    y = Axis(scale.low, scale.high, base - SLOT - GAP, box.top, log=True)
    rows = (scale.high - scale.low) * ROWS_PER_DECADE
    edges = np.concatenate([[base, base - SLOT], np.linspace(y.start, y.end, rows + 1)])
    ends = _ends(x, steps)
    shades: list[list[str]] = [[] for _ in SHADES]
    for one, left, right in zip(spectra, ends[:-1], ends[1:], strict=True):
        bars = _bars(one, scale.low, scale.high, ROWS_PER_DECADE)
        shares = bars.positive + bars.negative + bars.zero
        for row in np.flatnonzero(shares):
            shade = next(k for k, (end, _) in enumerate(SHADES) if shares[row] <= end)
            bottom, top = (edges[0], edges[1]) if row == 0 else (edges[row + 1], edges[row + 2])
            shades[shade].append(f"M{left:.1f} {bottom:.1f}H{right:.1f}V{top:.1f}H{left:.1f}Z")
    inside = box.frame(x, y, xlabel="optimizer step", ylabel="|λ|")
    for cells, (_, opacity) in zip(shades, SHADES, strict=True):
        inside += path("".join(cells), "cell", style=f"fill-opacity:{opacity}")
    floors = y.places([one.tolerance for one in spectra])
    centres = x.places(steps)
    drawn = "".join(
        f"{'L' if i else 'M'}{a:.1f} {b:.1f}"
        for i, (a, b) in enumerate(zip(centres, floors, strict=True))
    )
    if len(steps) == 1:
        drawn = f"M{ends[0]:.1f} {floors[0]:.1f}H{ends[1]:.1f}"
    inside += path(drawn, "floor")
    inside += text(box.left - 6, base - SLOT / 2 + 3.5, "0", "end")
    last = centres[-1]
    inside += (
        f'<path class="cursor" data-cursor="" d="M0 {box.top}V{base}" '
        f'transform="translate({last:.1f} 0)"/>'
    )
    return box.chart(inside, label="magnitudes of the eigenvalues against optimizer steps")


def _ends(x: Axis, steps: Sequence[int]) -> list[float]:
    """Return the ends of the columns around checkpoints, inside the axis."""
    if len(steps) == 1:
        return [x.start, x.end]
    places = x.places(steps)
    middles = (places[1:] + places[:-1]) / 2
    return [x.start, *(float(place) for place in middles), x.end]


def _told(part: Spectra, i: int) -> list[tuple[str, Cell]]:
    """Return the numbers of one checkpoint by their names."""
    one, size = part.spectra[i], len(part.spectra[i].values)
    return [
        ("step", count(part.steps[i])),
        ("loss", number(part.losses[i])),
        ("PSNR (dB)", decibels(part.psnrs[i])),
        ("λmin", number(one.lambda_min)),
        ("λmax", number(one.lambda_max)),
        ("zero", percent(one.numerical_zeros / size)),
        ("structural", percent(one.structural_zeros / size)),
        ("negative", percent(one.negative / size)),
        ("κ", bound(one.condition_number, resolved=one.condition_number_resolved)),
        ("floor", number(one.tolerance, 2)),
    ]


def _table(part: Spectra) -> str:
    places = first_middle_last(len(part.spectra))
    picked = [part.spectra[i] for i in places]

    def row(name: str, cells: Sequence[Cell]) -> tuple[str, Sequence[Cell]]:
        return name, cells

    rows = [
        row("loss", [number(part.losses[i]) for i in places]),
        row("PSNR (dB)", [decibels(part.psnrs[i]) for i in places]),
        *_rows(picked),
    ]
    return table(
        ["step", *(str(part.steps[i]) for i in places)],
        rows,
        caption=f"First, middle and last of {len(part.steps)} measured checkpoints",
    )


def _rows(picked: Sequence[Spectrum]) -> list[tuple[str, Sequence[Cell]]]:
    sizes = [len(one.values) for one in picked]
    pairs = list(zip(picked, sizes, strict=True))
    return [
        ("eigenvalues", [count(size) for size in sizes]),
        ("λmin", [number(one.lambda_min) for one in picked]),
        ("λmax", [number(one.lambda_max) for one in picked]),
        ("smallest |λ|", [number(one.smallest_magnitude, 2) for one in picked]),
        ("rounding floor", [number(one.tolerance, 2) for one in picked]),
        ("zero (≤ floor)", [percent(one.numerical_zeros / size) for one, size in pairs]),
        ("of them structural", [percent(one.structural_zeros / size) for one, size in pairs]),
        ("negative", [percent(one.negative / size) for one, size in pairs]),
        (
            "κ",
            [bound(one.condition_number, resolved=one.condition_number_resolved) for one in picked],
        ),
        ("effective κ", [number(one.effective_condition_number, 2) for one in picked]),
        ("effective rank", [number(one.effective_rank) for one in picked]),
        ("trace", [number(one.trace) for one in picked]),
        *(
            (
                f"|λ| ≤ {power(round(math.log10(rung)))} max|λ|",
                [percent(one.shares_below[rung]) for one in picked],
            )
            for rung in LADDER[::2]
        ),
    ]


def _layers(part: Spectra) -> str:
    if not part.layers:
        return ""
    rows: list[tuple[str, Sequence[Cell]]] = [
        (
            name,
            [
                count(len(one.values)),
                number(one.lambda_min, 2),
                number(one.lambda_max, 2),
                percent(one.numerical_zeros / len(one.values)),
                percent(one.structural_zeros / len(one.values)),
                percent(one.negative / len(one.values)),
                bound(one.condition_number, resolved=one.condition_number_resolved),
            ],
        )
        for name, one in part.layers.items()
    ]
    head = ["layer", "n", "λmin", "λmax", "zero", "structural", "negative", "κ"]
    caption = f"The diagonal blocks of the layers at step {part.steps[-1]}"
    return table(head, rows, caption=caption)
