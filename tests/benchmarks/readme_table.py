"""The table of the README, from the record.

``python -m tests.benchmarks.readme_table`` writes it into the README.
"""

import re
from pathlib import Path
from typing import Any

from hessian_lab.names import plural
from hessian_lab.training.files import read_json, write_atomically
from tests.benchmarks.case import BEST, MISSING, RAISES, WRONG
from tests.benchmarks.cases import builders
from tests.benchmarks.scaling import CURVES, RANKS

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "data" / "results" / "benchmarks.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
SHORT = {"hessian-eigenthings": "eigenthings"}


def markdown(record: dict[str, Any]) -> str:
    """Return the table, and a line on the machine and the versions."""
    lines = (
        [] if record["kind"] == "full" else [f"*Of a {record['kind']} run{_lacks(record)}.*", ""]
    )
    lines += ["| work | ours | others, in times of ours | target |", "| --- | --: | --- | --- |"]
    lines += [_row(row) for row in record["rows"]]
    lines += ["", "| time grows with | exponent | theory |", "| --- | --: | --: |"]
    lines += [_curve(curve) for curve in record["curves"]]
    versions = ", ".join(f"{name} {found}" for name, found in record["libraries"].items())
    missing = ", ".join(record["missing"])
    lines += [
        "",
        f"{record['cpu']}, {plural(record['threads'], 'thread')}, torch {record['torch']}; "
        + versions
        + (f"; not installed: {missing}" if missing else "")
        + ".",
    ]
    return "\n".join(lines)


def _lacks(record: dict[str, Any]) -> str:
    """Return what a run has less of than a full one."""
    single = any(row["ours"].get("rounds") == 1 for row in record["rows"])
    few = ", some of it timed once" if single else ""
    there = {each["name"] for each in (*record["rows"], *record["curves"])}
    absent = [name for name in (*builders(), *CURVES, RANKS) if name not in there]
    return few + (f", without {', '.join(absent)}" if absent else "")


def _row(row: dict[str, Any]) -> str:
    targets = "; ".join(_target(each) for each in row["targets"])
    return f"| {row['work']} | {_ours(row)} | {' · '.join(_others(row))} | {targets} |"


def _ours(row: dict[str, Any]) -> str:
    if "seconds" not in row["ours"]:
        return "**wrong**"
    units = [f"{each['ratio']:.2f} × {each['label']}" for each in row["units"]]
    return "; ".join([_time(row["ours"]["seconds"]), *units])


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _others(row: dict[str, Any]) -> list[str]:
    """Return each library once, by its fastest right answer."""
    found: dict[str, dict[str, Any]] = {}
    for each in row["others"]:
        best = found.get(each["library"])
        if best is None or each.get("ratio", 1e300) < best.get("ratio", 1e300):
            found[each["library"]] = each
    return [_other(SHORT.get(name, name), each) for name, each in found.items()]


def _other(name: str, entry: dict[str, Any]) -> str:
    if "ratio" in entry:
        return f"{name} {_ratio(entry['ratio'])}"
    if entry["verdict"] == RAISES:
        return f"{name} raises {entry['note'].split(':')[0]}"
    return f"{name} {entry['verdict']}" if entry["verdict"] in (WRONG, MISSING) else f"{name} –"


def _ratio(number: float) -> str:
    return f"{number:.0f} ×" if number >= 10 else f"{number:.2g} ×"


def _target(entry: dict[str, Any]) -> str:
    name = entry["against"] if entry["against"] != BEST else "best"
    met = {True: "met", False: "**missed**", None: "not compared"}[entry["met"]]
    return f"{name} {entry['sign']} {entry['bound']:g}: {met}"


def _curve(entry: dict[str, Any]) -> str:
    if "skipped" in entry:
        return f"| {entry['variable']}: {entry['work']} | {entry['skipped']} | |"
    margin = "" if entry["margin"] is None else f" ± {entry['margin']:.2f}"
    return (
        f"| {entry['variable']}: {entry['work']} | {entry['exponent']:.2f}{margin} | "
        f"{entry['theory']:g} ({entry['why']}) |"
    )


def between(text: str) -> str:
    """Return what stands between the marks of the README."""
    return text.split(f"{BEGIN}\n")[1].split(f"\n{END}")[0]


def main() -> None:
    """Put the table of the record into the README."""
    table = markdown(read_json(RECORD, "the record of the benchmarks"))
    pattern = rf"{re.escape(BEGIN)}\n.*{re.escape(END)}"
    text = re.sub(
        pattern, lambda _: f"{BEGIN}\n{table}\n{END}", README.read_text(), flags=re.DOTALL
    )
    write_atomically(README, lambda stream: stream.write(text.encode()))


if __name__ == "__main__":
    main()
