"""A page of HTML that tells of runs: whole in one file, readable without a network or scripts."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

import hessian_lab
from hessian_lab.plots.report_data import (
    Conditions,
    Detail,
    Estimates,
    Measurement,
    RunPart,
    Spectra,
    Traces,
    Zeros,
)
from hessian_lab.plots.report_estimates import estimates_part
from hessian_lab.plots.report_figures import (
    colours_of,
    comparison,
    condition_part,
    fit_part,
    trace_part,
    training_part,
    zeros_part,
)
from hessian_lab.plots.report_spectrum import spectra_part
from hessian_lab.plots.report_text import (
    Cell,
    bound,
    count,
    decibels,
    escape,
    facts,
    number,
    paragraph,
    percent,
    seconds,
    shown,
    typed,
)

MAX_BYTES = 5_000_000
# How often the page is made again with half of the detail, where it is too large.
MOST_HALVINGS = 4
GENERATOR = f"hessian-lab {hessian_lab.__version__}"
GLOSSARY = (
    (
        "Loss",
        "Mean over points of ½ |f − y|², summed over channels (MSE), or of the binary "
        "cross-entropy with logits (BCE). PSNR is −10 log₁₀ of the mean of (f − y)².",
    ),
    (
        "Rounding floor",
        "n · eps · max|λ|, or the measured rounding where that is more. Below it an eigenvalue "
        "cannot be told from rounding.",
    ),
    (
        "Zero",
        "Share of eigenvalues at or below the floor. Structural: rows of the Hessian that are "
        "exactly zero, such as those of dead units.",
    ),
    ("Negative", "Share below minus the floor: directions of descent through curvature."),
    (
        "κ",
        "max|λ| / min|λ|. With ≥, min|λ| is below the floor and only this lower bound is known. "
        "The effective κ uses only the eigenvalues above the floor.",
    ),
    (
        "Band, interval",
        "Where the exact number lies with the confidence stated. Products do not tell zeros from "
        "small eigenvalues.",
    ),
)


def report_page(runs: Sequence[RunPart]) -> str:
    """Return the page of one run, or of several with a summary first.

    One HTML file, below 5 MB: styles, pictures and the few lines of script that move sliders are
    inside, and its security policy lets nothing else in. Without scripts, small pictures of the
    checkpoints stand in for sliders. Long measurements and large signals are shown with less
    detail where the page would be larger. The same runs make the same bytes.

    Raises:
        ValueError: If there is no run, or the page is too large with the least detail too.
    """
    if not runs:
        raise ValueError("runs must hold at least one run, got none.")
    detail = Detail()
    for _ in range(MOST_HALVINGS):
        page = _page(runs, detail)
        size = len(page.encode())
        if size < MAX_BYTES:
            return page
        detail = detail.half()
    raise ValueError(
        f"a report must stay below {MAX_BYTES / 1e6:g} MB, that of {len(runs)} runs takes "
        f"{size / 1e6:.1f} MB. Report fewer of them at a time."
    )


def _page(runs: Sequence[RunPart], detail: Detail) -> str:
    several = len(runs) > 1
    title = f"{len(runs)} runs" if several else runs[0].title
    parts = [_section(run, place, detail, several=several) for place, run in enumerate(runs)]
    summary = _summary(runs, detail) if several else ""
    script = _resource("report.js")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="{escape(GENERATOR)}">\n'
        f"<title>{escape(title)} · hessian-lab</title>\n<style>{_resource('report.css')}</style>\n"
        f'</head>\n<body>\n<main>\n<header><p class="kicker">hessian-lab report</p>'
        f"<h1>{escape(title)}</h1></header>\n{summary}{''.join(parts)}{_footer()}</main>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _resource(name: str) -> str:
    return files("hessian_lab.plots").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """Return what a security policy allows a script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _section(run: RunPart, place: int, detail: Detail, *, several: bool) -> str:
    heading = f"<h2>{escape(run.title)}</h2>" if several else ""
    told = f'<p class="status {escape(run.status)}">{escape(run.told)}</p>' if run.told else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    missing = "".join(typed(lead, command) for lead, command in run.missing)
    parts = [
        f'<section class="run" id="run-{place + 1}">{heading}',
        paragraph(run.headline, "lead"),
        told,
        f'<ul class="notes">{notes}</ul>' if notes else "",
        _stats(run),
        f"<h3>Signal and field</h3>{fit_part(run.fit, detail)}",
        f"<h3>Training</h3>{training_part(run, detail)}",
        *(_measurement(part, detail) for part in run.measurements),
        f"<h3>Not measured</h3>{missing}" if missing else "",
        '<h3>Settings and provenance</h3><div class="provenance">',
        facts("Settings", run.settings),
        facts("Provenance", run.provenance),
        facts("Signal", run.data),
        "</div></section>\n",
    ]
    return "".join(parts)


def _measurement(part: Measurement, detail: Detail) -> str:
    if isinstance(part, Spectra):
        body = spectra_part(part, detail)
    elif isinstance(part, Estimates):
        body = estimates_part(part, detail)
    elif isinstance(part, Conditions):
        body = condition_part(part, detail)
    elif isinstance(part, Traces):
        body = trace_part(part, detail)
    elif isinstance(part, Zeros):
        body = zeros_part(part, detail)
    else:
        raise TypeError(f"part must be a measurement with a picture, got {type(part).__name__}.")
    return f"<h3>{escape(part.title)}</h3>{paragraph(part.origin, 'origin')}{body}"


def _stats(run: RunPart) -> str:
    """Return the few numbers that are looked for first."""
    last = run.metrics.iloc[-1]
    entries: list[tuple[str, Cell]] = [
        ("loss", number(float(last["loss"]))),
        ("PSNR (dB)", decibels(float(last["psnr"]))),
        ("parameters", count(run.num_parameters)),
        ("points", count(run.num_points)),
        *_spectral(run),
        ("seconds", seconds(float(last["wall_s"]))),
    ]
    lines = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{shown(cell)}</dd></div>" for name, cell in entries
    )
    return f'<dl class="stats">{lines}</dl>'


def _spectral(run: RunPart) -> list[tuple[str, Cell]]:
    """Return share of zeros and κ of the Hessian at the last measured checkpoint, if known."""
    for part in run.measurements:
        if isinstance(part, Spectra) and part.plain:
            one = part.spectra[-1]
            resolved = one.condition_number_resolved
            return [
                ("zero eigenvalues", percent(one.numerical_zeros / len(one.values))),
                ("κ", bound(one.condition_number, resolved=resolved)),
            ]
    return []


def _summary(runs: Sequence[RunPart], detail: Detail) -> str:
    names = ("run", "optimizer", "seed", "n", "steps", "loss", "PSNR (dB)", "zero", "κ", "seconds")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for place, run in enumerate(runs):
        settings, last = dict(run.settings), run.metrics.iloc[-1]
        spectral = [cell for _, cell in _spectral(run)] or ["–", "–"]
        cells: list[Cell] = [
            settings["optimizer"],
            settings["seed"],
            count(run.num_parameters),
            f"{int(last['step'])}{'' if run.status == 'done' else f' ({run.status})'}",
            number(float(last["loss"])),
            decibels(float(last["psnr"])),
            *spectral,
            seconds(float(last["wall_s"])),
        ]
        row = "".join(
            f'<td data-label="{escape(name)}">{shown(cell)}</td>'
            for name, cell in zip(names[1:], cells, strict=True)
        )
        rows.append(
            f'<tr><th scope="row"><i class="key {colours_of(place)}"></i> '
            f'<a href="#run-{place + 1}">{escape(run.title)}</a>'
            f'<span class="path">{escape(run.path)}</span></th>{row}</tr>'
        )
    return (
        f'<section class="summary" aria-label="Summary">{comparison(runs, detail)}'
        f'<div class="scroll"><table class="cards"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        "<p class='origin'>At the last checkpoint; zero and κ of the Hessian at the last one where "
        "all its eigenvalues were measured.</p></section>\n"
    )


def _footer() -> str:
    terms = "".join(
        f"<div><dt>{escape(term)}</dt><dd>{escape(words)}</dd></div>" for term, words in GLOSSARY
    )
    return (
        f'<footer><h3>What the numbers mean</h3><dl class="glossary">{terms}</dl>'
        f"<p>Made by {escape(GENERATOR)} (MIT licence) from the files of the runs. Every number in "
        "a table carries its full precision in the page's source.</p></footer>\n"
    )
