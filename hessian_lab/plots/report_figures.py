"""The pictures of a page besides the spectrum: signal and field, curves along the training."""

import base64
import io
import math
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np

from hessian_lab.plots.report_data import (
    Conditions,
    Detail,
    Fit,
    Measurement,
    RunPart,
    Traces,
    Zeros,
    first_middle_last,
)
from hessian_lab.plots.report_svg import (
    BARE,
    LARGE,
    Array,
    band,
    dots,
    figure,
    line,
    path,
    span,
    thinned,
)
from hessian_lab.plots.report_text import (
    Cell,
    bound,
    count,
    decibels,
    escape,
    key,
    number,
    paragraph,
    seconds,
    table,
    written,
)
from hessian_lab.probe.conditions import Conditioning

# Curves are marked one by one up to this many points.
MOST_DOTS = 40
SCALINGS = {
    "identity": "H",
    "equilibrated": "Dᴱ",
    "jacobi": "Dᴶ",
    "equilibrated_estimated": "Dᴱ, estimated",
    "jacobi_estimated": "Dᴶ, estimated",
}
NUM_COLOURS = 8


def fit_part(fit: Fit | str, detail: Detail) -> str:
    """Return signal and field side by side, or why they are not there."""
    if isinstance(fit, str):
        return paragraph(fit)
    return _lines(fit, detail) if fit.shape is None else _images(fit, detail)


def _images(fit: Fit, detail: Detail) -> str:
    assert fit.shape is not None
    target, fitted = (values.reshape(*fit.shape, -1) for values in (fit.target, fit.fitted))
    low, high = (0.0, 1.0)
    if target.min() < 0 or target.max() > 1:
        low, high = float(target.min()), float(target.max())
    error = np.abs(fitted - target).mean(axis=-1)
    largest = float(np.nanmax(error)) if np.isfinite(error).any() else math.nan
    stride = -(-max(fit.shape) // detail.side)
    colours = matplotlib.colormaps["cividis"]
    share = error / largest if largest > 0 else np.zeros_like(error)
    shown = [
        (_reduced((target - low) / ((high - low) or 1.0), stride), "Target", "the signal"),
        (
            _reduced((fitted - low) / ((high - low) or 1.0), stride),
            "Field",
            f"at step {fit.step}",
        ),
        (
            colours(_reduced(share[..., None], stride)[..., 0])[..., :3],
            "Absolute error",
            f"mean over channels; dark is 0, bright the largest, {written(largest, 2)}",
        ),
    ]
    range_told = "" if (low, high) == (0, 1) else f"; values {low:.3g} … {high:.3g} shown"
    rows, columns = fit.shape
    size = f"{rows} × {columns} pixels"
    if stride > 1:
        size += f", shown at {-(-rows // stride)} × {-(-columns // stride)}"
    tiles = [
        figure(
            f'<img src="{_png(pixels)}" alt="{escape(title)}" width="{pixels.shape[1]}" '
            f'height="{pixels.shape[0]}">',
            escape(f"{size}{range_told}" if title == "Target" else caption),
            title=title,
        )
        for pixels, title, caption in shown
    ]
    return f'<div class="triple">{"".join(tiles)}</div>'


def _reduced(pixels: Array, stride: int) -> Array:
    """Return means over squares of pixels; those at the ends may be smaller."""
    if stride == 1:
        return pixels
    for axis in (0, 1):
        edges = np.arange(0, pixels.shape[axis], stride)
        sums = np.add.reduceat(pixels, edges, axis=axis)
        sizes = np.diff(np.append(edges, pixels.shape[axis]))
        pixels = sums / sizes.reshape([-1 if k == axis else 1 for k in range(3)])
    return pixels


def _png(pixels: Array) -> str:
    """Return an image of values in [0, 1], [rows, columns, 1 or 3], as a data URI."""
    from PIL import Image

    whole = np.clip(np.nan_to_num(pixels), 0, 1)
    levels = np.round(255 * whole).astype(np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    image.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _lines(fit: Fit, detail: Detail) -> str:
    assert fit.coords is not None
    order = np.argsort(fit.coords, kind="stable")
    coords, target, fitted = (each[order] for each in (fit.coords, fit.target, fit.fitted))
    box = LARGE
    x = box.across(*span(coords, margin=0))
    both = np.concatenate([target.ravel(), fitted.ravel()])
    y, drawn = box.up(*span(both)), ""
    for channel in range(target.shape[1]):
        for values, kind in ((target, "target"), (fitted, "one")):
            places, heights = thinned(coords, values[:, channel], detail.points)
            drawn += path(line(x.places(places), y.places(heights)), f"curve {kind}")
    left = box.chart(
        box.frame(x, y, xlabel="coordinate x", ylabel="value") + drawn,
        label="the signal and the field against the coordinate",
    )
    error = fitted - target
    y, drawn = box.up(*span([*error.ravel(), 0.0])), ""
    for channel in range(target.shape[1]):
        places, heights = thinned(coords, error[:, channel], detail.points)
        drawn += path(line(x.places(places), y.places(heights)), "curve two")
    right = box.chart(
        box.frame(x, y, xlabel="coordinate x", ylabel="field − target") + drawn,
        label="the error against the coordinate",
    )
    keys = f"{key('target', 'target')}, {key('one', 'field')}"
    worst = float(np.abs(error).max())
    return pair(
        figure(left, f"{keys} at step {fit.step}", title="Target and field"),
        figure(right, escape(f"largest magnitude {written(worst, 2)}"), title="Error"),
    )


def pair(*pictures: str) -> str:
    """Return pictures side by side where there is room."""
    return f'<div class="pair">{"".join(pictures)}</div>'


def training_part(run: RunPart, detail: Detail) -> str:
    """Return loss and PSNR against steps, and a table of three checkpoints."""
    metrics = run.metrics
    steps = [int(step) for step in metrics["step"]]
    pictures = [_quality(steps, metrics["loss"].tolist(), "loss", detail)]
    if np.isfinite(metrics["psnr"]).any():
        pictures.append(_quality(steps, metrics["psnr"].tolist(), "PSNR", detail))
    else:
        pictures.append(_quality(steps, metrics["grad_norm"].tolist(), "gradient norm", detail))
    return pair(*pictures) + _training_table(run)


def _quality(steps: Sequence[int], values: Sequence[float], name: str, detail: Detail) -> str:
    log = name != "PSNR"
    box, known = BARE, [value for value in values if math.isfinite(value)]
    log = log and all(value > 0 for value in known)
    x, y = box.steps(steps), box.up(*span(values, log=log), log=log)
    places, heights = thinned(steps, values, detail.points)
    across, up = x.places(places), y.places(heights)
    inside = box.frame(x, y, xlabel="optimizer step", ylabel="")
    inside += path(line(across, up), "curve one")
    if len(places) <= MOST_DOTS:
        inside += dots(across, up, "dot one")
    title = "PSNR (dB)" if name == "PSNR" else name.capitalize()
    return figure(box.chart(inside, label=f"{name} against optimizer steps"), "", title=title)


def _training_table(run: RunPart) -> str:
    places = first_middle_last(len(run.metrics))
    picked = [run.metrics.iloc[i] for i in places]
    looks: list[tuple[str, str, Callable[[float], Cell]]] = [
        ("loss", "loss", number),
        ("PSNR (dB)", "psnr", decibels),
        ("gradient norm", "grad_norm", number),
        ("evaluations", "evaluations", count),
        ("seconds", "wall_s", seconds),
    ]
    rows = [(label, [look(float(row[name])) for row in picked]) for label, name, look in looks]
    head = ["step", *(str(int(row["step"])) for row in picked)]
    return table(head, rows, caption=f"First, middle and last of {len(run.metrics)} checkpoints")


def trace_part(part: Traces, detail: Detail) -> str:
    """Return the trace with its intervals."""
    box, x = LARGE, LARGE.steps(part.steps)
    every = [*part.lows, *part.highs, *part.means]
    y = box.up(*span(every))
    places, means = thinned(part.steps, part.means, detail.points)
    inside = box.frame(x, y, xlabel="optimizer step", ylabel="trace")
    inside += path(
        band(x.places(part.steps), y.places(part.lows), y.places(part.highs)), "band one"
    )
    inside += path(line(x.places(places), y.places(means)), "curve one")
    if len(places) <= MOST_DOTS:
        inside += dots(x.places(places), y.places(means), "dot one")
    caption = key("one", f"band: {100 * part.level:g}\u202f% interval, point by point")
    picture = figure(box.chart(inside, label="trace against optimizer steps"), caption)
    chosen = first_middle_last(len(part.steps))
    rows: list[tuple[str, Sequence[Cell]]] = [
        ("trace", [number(part.means[i], 4) for i in chosen]),
        ("standard error", [number(part.errors[i], 2) for i in chosen]),
        ("interval, lower end", [number(part.lows[i], 4) for i in chosen]),
        ("interval, upper end", [number(part.highs[i], 4) for i in chosen]),
    ]
    return pair(picture, table(["step", *(str(part.steps[i]) for i in chosen)], rows))


def condition_part(part: Conditions, detail: Detail) -> str:
    """Return κ before and after scaling; bounds are open triangles on dotted lines."""
    box, x = LARGE, LARGE.steps(part.steps)
    kappas = {name: [one.kappa for one in curve] for name, curve in part.scaled.items()}
    y = box.up(*span([value for curve in kappas.values() for value in curve], log=True), log=True)
    inside = box.frame(x, y, xlabel="optimizer step", ylabel="κ")
    keys = []
    for place, (name, values) in enumerate(kappas.items()):
        colour = f"c{place % NUM_COLOURS}"
        inside += _condition_curve(
            x.places(part.steps), y.places(values), part.scaled[name], colour, detail.points
        )
        keys.append(key(colour, SCALINGS.get(name, name)))
    told = f"{', '.join(keys)}. Dotted, △: lower bounds, min|λ| is below the rounding floor."
    picture = figure(box.chart(inside, label="condition numbers against optimizer steps"), told)
    chosen = first_middle_last(len(part.steps))
    rows: list[tuple[str, Sequence[Cell]]] = []
    for name, curve in part.scaled.items():
        label, three = SCALINGS.get(name, name), [curve[i] for i in chosen]
        rows.append((f"κ, {label}", [bound(one.kappa, resolved=one.resolved) for one in three]))
        rows.append((f"effective κ, {label}", [number(one.effective, 2) for one in three]))
        if name in part.exact:
            proven = [part.exact[name][i] for i in chosen]
            cells: list[Cell] = [
                "–"
                if one is None
                else ("∞ (singular)" if one.singular else number(one.log10, 5))
                if one.known
                else "not enclosed"
                for one in proven
            ]
            rows.append((f"log₁₀ κ, {label}, proven", cells))
    return pair(picture, table(["step", *(str(part.steps[i]) for i in chosen)], rows))


def _condition_curve(
    x: Array, y: Array, curve: Sequence[Conditioning], colour: str, most: int
) -> str:
    known = np.array([one.resolved for one in curve], dtype=bool)
    stride = -(-len(x) // max(most, 2))
    x, y, known = x[::stride], y[::stride], known[::stride]
    inside = path(line(x, y), f"curve dotted {colour}")
    inside += path(line(x, np.where(known, y, np.nan)), f"curve {colour}")
    if len(x) <= MOST_DOTS:
        inside += dots(x[known], y[known], f"dot {colour}")
        for here, there in zip(x[~known], y[~known], strict=True):
            if math.isfinite(there):
                inside += path(f"M{here - 3:.1f} {there + 2.2:.1f}h6l-3 -5.2Z", f"open {colour}")
    return inside


def zeros_part(part: Zeros, detail: Detail) -> str:
    """Return the shares of zeros along the training, and by layer at the end."""
    box, x = LARGE, LARGE.steps(part.steps)
    top = 100 * max((v for curve in part.curves.values() for v in curve if v == v), default=0.0)
    y = box.up(0.0, max(1.05 * top, 1.0))
    inside = box.frame(x, y, xlabel="optimizer step", ylabel="share (%)")
    keys = []
    for place, (name, shares) in enumerate(part.curves.items()):
        colour = f"c{place % NUM_COLOURS}"
        places, heights = thinned(part.steps, [100 * share for share in shares], detail.points)
        inside += path(line(x.places(places), y.places(heights)), f"curve {colour}")
        if len(places) <= MOST_DOTS:
            inside += dots(x.places(places), y.places(heights), f"dot {colour}")
        keys.append(key(colour, name))
    picture = figure(
        box.chart(inside, label="shares of zeros against optimizer steps"), ", ".join(keys)
    )
    return pair(picture, table(part.head, part.parts, caption=part.told))


def comparison(runs: Sequence[RunPart], detail: Detail) -> str:
    """Return the curves of all runs in one chart: PSNR where all have one, else the loss."""
    name = "psnr" if all(np.isfinite(run.metrics["psnr"]).any() for run in runs) else "loss"
    curves = [(run.metrics["step"].tolist(), run.metrics[name].tolist()) for run in runs]
    values = [value for _, curve in curves for value in curve]
    log = name == "loss" and all(value > 0 for value in values if math.isfinite(value))
    box = BARE
    longest = max((steps for steps, _ in curves), key=lambda steps: float(steps[-1]))
    x, y = box.steps(longest), box.up(*span(values, log=log), log=log)
    inside = box.frame(x, y, xlabel="optimizer step", ylabel="")
    for place, (steps, curve) in enumerate(curves):
        places, heights = thinned(steps, curve, detail.points)
        data = line(x.places(places), y.places(heights))
        inside += path(data, f"curve {colours_of(place)}")
    title = "Loss" if name == "loss" else "PSNR (dB)"
    chart = box.chart(inside, label=f"{title} of all runs against optimizer steps")
    return figure(chart, "", title=title)


def colours_of(place: int) -> str:
    """Return the classes of the curve of a run: eight colours, then dashed ones."""
    dashed = " dashed" if place // NUM_COLOURS % 2 else ""
    return f"c{place % NUM_COLOURS}{dashed}"


def loss_rows(part: Measurement, chosen: Sequence[int]) -> list[tuple[str, Sequence[Cell]]]:
    """Return the rows of loss and PSNR at some places of a measurement."""
    return [
        ("loss", [number(part.losses[i]) for i in chosen]),
        ("PSNR (dB)", [decibels(part.psnrs[i]) for i in chosen]),
    ]
