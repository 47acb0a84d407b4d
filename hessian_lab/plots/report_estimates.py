"""What products tell of a spectrum, on a page: the density with its band, and the ends."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hessian_lab.plots.report_data import Detail, Estimates, chosen, first_middle_last
from hessian_lab.plots.report_figures import loss_rows, pair
from hessian_lab.plots.report_spectrum import GAP, NUM_SMALL, SLOT, through
from hessian_lab.plots.report_svg import (
    LARGE,
    SMALL,
    Axis,
    Box,
    band,
    dots,
    figure,
    line,
    path,
    span,
    text,
    thinned,
)
from hessian_lab.plots.report_text import (
    Cell,
    bound,
    count,
    decibels,
    key,
    number,
    paragraph,
    percent,
    table,
)
from hessian_lab.probe.log_density import LogDensity

MOST_DOTS = 40


def estimates_part(part: Estimates, detail: Detail) -> str:
    """Return the pictures and the table of an estimated spectrum."""
    finite = [i for i, (_, largest) in enumerate(part.extremes) if math.isfinite(largest)]
    if not finite:
        return paragraph("No product was finite.")
    ends = _ends(part, finite, detail)
    kept = [i for i in finite if part.densities and part.densities[i] is not None]
    kept = [kept[i] for i in chosen(len(kept), detail.frames)]
    if not kept:
        return pair(ends, _table(part))
    densities = [one for one in (part.densities[i] for i in kept) if one is not None]
    scale = _scale(densities)
    steps = [part.steps[i] for i in kept]
    axis = LARGE.steps([part.steps[i] for i in finite])
    frames = [
        {"x": round(axis.place(part.steps[i]), 1), "texts": dict(_told(part, i))}
        | _frame(one, scale, LARGE)
        for i, one in zip(kept, densities, strict=True)
    ]
    level = densities[-1].density.level
    words = (
        f"{key('positive', 'density')} per decade with its {100 * level:g}\u202f% band; "
        f"{key('zero', 'share')} below the dashed line, where the resolution ends: zero "
        "and small eigenvalues are not told apart there."
    )
    density = figure(
        _density(frames[-1], scale, LARGE, f"density at step {steps[-1]}", keyed=True),
        words,
        title="At one checkpoint",
    )
    small = "".join(
        f"<figure>{_small(densities[i], steps[i], scale)}</figure>"
        for i in chosen(len(kept), NUM_SMALL)
        if len(kept) > 1
    )
    return (
        through(ends + density, frames, _told(part, kept[-1]), steps)
        + f'<div class="multiples">{small}</div>'
        + _table(part)
    )


def _ends(part: Estimates, finite: Sequence[int], detail: Detail) -> str:
    """Return the ends of the spectrum against steps."""
    box = LARGE
    steps = [part.steps[i] for i in finite]
    largest = [part.extremes[i][1] for i in finite]
    smallest = [-part.extremes[i][0] for i in finite]
    x, y = box.steps(steps), box.up(*span([*largest, *smallest], log=True), log=True)
    inside = box.frame(x, y, xlabel="optimizer step", ylabel="eigenvalue")
    for values, kind in ((largest, "one"), (smallest, "three")):
        places, heights = thinned(steps, [v if v > 0 else math.nan for v in values], detail.points)
        across, up = x.places(places), y.places(heights)
        inside += path(line(across, up), f"curve {kind}")
        if len(places) <= MOST_DOTS:
            inside += dots(across, up, f"dot {kind}")
    inside += (
        f'<path class="cursor" data-cursor="" d="M0 {box.top}V{box.height - box.bottom}" '
        f'transform="translate({x.place(steps[-1]):.1f} 0)"/>'
    )
    keys = f"{key('one', 'λmax')}, {key('three', '−λmin where it is negative')}"
    chart = box.chart(inside, label="ends of the spectrum against optimizer steps")
    return figure(chart, keys, title="Ends of the spectrum")


def _scale(densities: Sequence[LogDensity]) -> tuple[float, float, float]:
    """Return the log10 of both ends of the scale, and the largest share in percent."""
    low = math.floor(min(math.log10(one.floor) for one in densities))
    high = max(float(one.grid[-1]) for one in densities)
    tops = [max(float(one.density.upper.max()), float(one.lump.upper)) for one in densities]
    return low, high, 100 * max(tops)


def _axes(scale: tuple[float, float, float], box: Box) -> tuple[Axis, Axis]:
    low, high, top = scale
    return box.across(low, high, inset=SLOT + GAP, log=True), box.up(0.0, 1.06 * top)


def _frame(one: LogDensity, scale: tuple[float, float, float], box: Box) -> dict[str, Any]:
    x, y = _axes(scale, box)
    across = x.places(10.0 ** one.grid.numpy())
    estimate, lower, upper = (
        y.places(100 * np.asarray(each))
        for each in (one.density.estimate, one.density.lower, one.density.upper)
    )
    lump = [y.place(100 * float(v)) for v in (one.lump.estimate, one.lump.lower, one.lump.upper)]
    left, base = box.left + 1, box.height - box.bottom
    middle, floor = left + SLOT / 2, x.place(one.floor)
    return {
        "paths": {
            "band one": band(across, lower, upper),
            "curve one": line(across, estimate),
            "zero": f"M{left} {base}h{SLOT}V{lump[0]:.1f}h-{SLOT}Z",
            "whisker": f"M{middle:.1f} {lump[1]:.1f}V{lump[2]:.1f}",
            "floor": f"M{floor:.1f} {base}V{box.top}",
        }
    }


def _density(
    frame: dict[str, Any],
    scale: tuple[float, float, float],
    box: Box,
    label: str,
    *,
    keyed: bool,
    title: str = "",
) -> str:
    x, y = _axes(scale, box)
    small = box is SMALL
    inside = box.frame(
        x, y, xlabel="" if small else "magnitude |λ|", ylabel="" if small else "share (%)"
    )
    for name, data in frame["paths"].items():
        inside += path(data, name, key=name if keyed else "")
    if small:
        inside += text(box.left, 11, title, "start", "label")
    return box.chart(inside, label=label)


def _small(one: LogDensity, step: int, scale: tuple[float, float, float]) -> str:
    frame = _frame(one, scale, SMALL)
    return _density(
        frame, scale, SMALL, f"density at step {step}", keyed=False, title=f"step {step}"
    )


def _told(part: Estimates, i: int) -> list[tuple[str, Cell]]:
    one = part.densities[i]
    assert one is not None
    return [
        ("step", count(part.steps[i])),
        ("loss", number(part.losses[i])),
        ("PSNR (dB)", decibels(part.psnrs[i])),
        ("λmin", number(part.extremes[i][0])),
        ("λmax", number(part.extremes[i][1])),
        ("not resolved", percent(float(one.lump.estimate))),
        ("below", number(one.floor, 2)),
        ("κ", bound(part.kappas[i], resolved=False)),
        ("floor", number(part.floors[i], 2)),
        ("trace", number(part.traces[i][0])),
    ]


def _table(part: Estimates) -> str:
    places = first_middle_last(len(part.steps))
    rows = [
        *loss_rows(part, places),
        ("λmin", [number(part.extremes[i][0]) for i in places]),
        ("λmax", [number(part.extremes[i][1]) for i in places]),
        ("rounding floor", [number(part.floors[i], 2) for i in places]),
        ("κ", [bound(part.kappas[i], resolved=False) for i in places]),
    ]
    found = [part.densities[i] if part.densities else None for i in places]
    if any(one is not None for one in found):
        rows += _density_rows(found)
        rows.append(("trace", [number(part.traces[i][0], 4) for i in places]))
        rows.append(("its standard error", [number(part.traces[i][1], 2) for i in places]))
    return table(
        ["step", *(str(part.steps[i]) for i in places)],
        rows,
        caption=f"First, middle and last of {len(part.steps)} measured checkpoints",
    )


def _density_rows(found: Sequence[LogDensity | None]) -> list[tuple[str, Sequence[Cell]]]:
    def cells(look: Any) -> list[Cell]:
        return ["–" if one is None else look(one) for one in found]

    return [
        ("resolution ends at", cells(lambda one: number(one.floor, 2))),
        ("share below", cells(lambda one: percent(float(one.lump.estimate)))),
        ("lower end of its band", cells(lambda one: percent(float(one.lump.lower)))),
        ("upper end of its band", cells(lambda one: percent(float(one.lump.upper)))),
    ]
