"""REPRODUCTION.md from the records: one verdict per claim, and the errors of the papers' text.

``python -m analyses.reproduction`` writes it; ``--check`` fails where it is not up to date.
"""

import argparse
import csv
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pandas as pd

from analyses.study import Study, Verdict
from figures.records import RESULTS, read

HERE = Path(__file__).parent
PAGE = HERE.parent / "REPRODUCTION.md"
STUDIES = (
    "activation_spectra",
    "wide_spectra",
    "zero_anatomy",
    "hessian_terms",
    "preconditioned_conditioning",
    "hvp_sparsity",
    "optimizer_convergence",
    "stochastic_convergence",
    "adam_ablation",
    "convergence_rates",
    "field_frequencies",
    "optimizer_cost",
    "kilo_fields",
    "kilo_radiance",
    "patches",
    "video_fields",
    "sound_fields",
    "occupancy_convergence",
    "radiance_fields",
)
MARKS = {
    "holds": "✔ holds",
    "holds only under": "◐ holds only under",
    "does not hold": "✘ does not hold",
    "not yet measured": "– not yet measured",
}
MACHINES = {
    "GPU": "wants a GPU",
    "h": "wants hours on two cores",
    "min": "wants minutes on two cores",
    "s": "wants seconds on two cores",
}
# What readers look for first, and the claims that answer it.
FIRST = (
    ("How many eigenvalues are zero with ReLU, with and without encoding?", "C01 C02 C03 C08 C11"),
    ("Have sine and Gaussian fields none, and how small is their smallest?", "C04 C05 C10 C12"),
    ("What are the zeros made of?", "C21 C22"),
    ("Is the ReLU Hessian JᵀJ?", "C19"),
    ("Does equilibration lower κ more than Jacobi, and is κ resolved?", "C34 C35"),
    ("How sparse are Hessian–vector products, and does it matter?", "C55 C59"),
    ("Is L-BFGS five times as fast as Adam, on sine and on ReLU?", "C94 C95 C96 C100"),
    ("Does ESGD beat Adam at tuned rates, and does ReLU-PE prefer Adam?", "C69 C73 C76"),
    ("Is L-BFGS superlinear?", "C28"),
    ("What do ESGD, K-FAC and Shampoo cost?", "C115 C116 C117"),
)
HEAD = """\
# What the papers claim, and what was measured

P1 is *Curvature-Aware Training for Coordinate Networks*, P1s its supplement; P2 *Preconditioners
for the Stochastic Training of Implicit Neural Representations*; P3 *Preconditioners for the
Stochastic Training of Neural Fields*, its later version. Written by
`python -m analyses.reproduction` from the
records in `data/results/`; a record is made by `python -m analyses.NAME` and drawn by
`python -m figures`. Loss, zero, κ and the rounding floor are those of the README. Images are the
bundled photographs of scikit-image, not those of the papers.
"""


def studies() -> list[Study]:
    """Return every study."""
    return [import_module(f"analyses.{name}").STUDY for name in STUDIES]


def claims() -> list[dict[str, str]]:
    """Return the papers' claims, by id."""
    return _table("claims")


def errors() -> list[dict[str, str]]:
    """Return the errors of the papers' text, by id."""
    return _table("errors")


def verdicts() -> dict[str, list[tuple[str, Verdict]]]:
    """Return every verdict that the records give, by claim, with the study it comes from."""
    found: dict[str, list[tuple[str, Verdict]]] = {}
    for study in studies():
        if not (RESULTS / f"{study.name}.json").exists():
            continue
        rows = pd.DataFrame(read(study.name)["rows"])
        for one in study.verdicts(rows):
            found.setdefault(one.claim, []).append((study.name, one))
    return found


def page() -> str:
    """Return the whole page."""
    found = verdicts()
    lines = [HEAD, *_counts(found), "", "## First answers", "", *_first(found)]
    lines += ["", "## Claims", ""]
    lines += ["| id | claim | source | measured | on | verdict | record |", "|" + " --- |" * 7]
    for claim in claims():
        for study, one in found.get(claim["id"], [("", _unmeasured(claim))]):
            entries = (
                claim["id"],
                claim["claim"],
                claim["source"],
                one.measured,
                one.settings,
                MARKS[one.answer],
                f"[{study}](data/results/{study}.json)" if study else "",
            )
            lines.append(_line(entries))
    lines += ["", "## Errors of the text", ""]
    lines += ["| id | where | as printed | what is wrong | right | shown by |", "|" + " --- |" * 6]
    for error in errors():
        columns = ("id", "where", "printed", "wrong", "right")
        lines.append(_line([*(error[name] for name in columns), error["test"] or "–"]))
    return "\n".join(lines) + "\n"


def _first(found: dict[str, list[tuple[str, Verdict]]]) -> list[str]:
    texts = {claim["id"]: claim["claim"] for claim in claims()}
    lines = []
    for question, names in FIRST:
        lines.append(f"- **{question}**")
        for name in names.split():
            told = [
                f"{MARKS[one.answer]} (“{texts[name]}”). {one.measured} [{one.settings}]"
                for _, one in found.get(name, [])
            ]
            lines += [f"  - {name} {text}" for text in told or ["– not yet measured."]]
    return lines


def _counts(found: dict[str, list[tuple[str, Verdict]]]) -> list[str]:
    answers = Counter(
        found[claim["id"]][0][1].answer if claim["id"] in found else "not yet measured"
        for claim in claims()
    )
    shown = sum(bool(error["test"]) for error in errors())
    told = ", ".join(f"{answers[name]} {mark[2:]}" for name, mark in MARKS.items())
    return [
        f"{len(claims())} claims: {told}.",
        f"{len(errors())} errors of the text, {shown} of them shown by a test.",
    ]


def _unmeasured(claim: dict[str, str]) -> Verdict:
    machine = next((text for name, text in MACHINES.items() if name in claim["cost"]), "")
    return Verdict(claim["id"], "not yet measured", "–", f"{machine}; {claim['studies']}")


def _line(entries: object) -> str:
    assert isinstance(entries, list | tuple)
    return "| " + " | ".join(str(entry).replace("|", "∣") for entry in entries) + " |"


def _table(name: str) -> list[dict[str, str]]:
    with (HERE / f"{name}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description="write REPRODUCTION.md from the records")
    parser.add_argument("--check", action="store_true", help="fail if it is not up to date")
    text = page()
    if parser.parse_args().check:
        if not PAGE.exists() or PAGE.read_text() != text:
            sys.exit("REPRODUCTION.md is not up to date: python -m analyses.reproduction")
        return
    PAGE.write_text(text)
    print(PAGE)


if __name__ == "__main__":
    main()
