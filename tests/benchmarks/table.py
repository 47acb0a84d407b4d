"""The table as text."""

from typing import Any

WIDTH = 52


def heading() -> str:
    """Return the line above the columns."""
    return (
        f"{'':{WIDTH}s} {'seconds':>9s} {'ratio':>8s} {'min … max':>17s} {'off by':>8s} "
        f"{'allowed':>8s}  verdict"
    )


def told(row: dict[str, Any]) -> str:
    """Return the lines of one case."""
    lines = ["", f"[{row['name']}] {row['work']}", f"  off: {row['measure']}"]
    lines += [_line("  ours", row["ours"], row["tolerance"])]
    lines += [_line(f"  {label(each)}", each, row["tolerance"]) for each in row["others"]]
    lines += [_line(f"  ours, in units: {each['label']}", each, None) for each in row["units"]]
    return "\n".join([*lines, *(f"  target: {target(each)}" for each in row["targets"])])


def label(entry: dict[str, Any]) -> str:
    """Return a contender's name with what tells it from others of its library."""
    return ", ".join(each for each in (entry["library"], entry.get("how")) if each)


def _line(name: str, entry: dict[str, Any], tolerance: float | None) -> str:
    line = f"{name:{WIDTH}s} " + (f"{entry['seconds']:9.3g}" if "seconds" in entry else " " * 9)
    if "ratio" in entry:
        between = f"{entry['low']:.3g} … {entry['high']:.3g}"
        line += f" {entry['ratio']:8.3g} {between:>17s}"
    else:
        line += " " * 27
    if "deviation" in entry and entry["deviation"] is not None:
        line += f" {entry['deviation']:8.1e} {tolerance:8.1e}"
    elif "verdict" in entry:
        line += " " * 18
    verdict = ": ".join(each for each in (entry.get("verdict"), entry.get("note")) if each)
    return f"{line}  {verdict}".rstrip()


def target(entry: dict[str, Any]) -> str:
    """Return what was asked for, and what was found."""
    asked = f"{entry['against']} {entry['sign']} {entry['bound']:g}"
    if entry["found"] is None:
        return f"{asked}: nothing to compare with"
    return f"{asked}: {entry['found']:.3g}, {'met' if entry['met'] else 'MISSED'}"


def curve(entry: dict[str, Any]) -> str:
    """Return the lines of one scaling curve."""
    head = f"\n[{entry['name']}] {entry['work']}"
    if "skipped" in entry:
        return f"{head}\n  skipped: {entry['skipped']}"
    pairs = zip(entry["places"], entry["seconds"], strict=True)
    times = ", ".join(f"{place:,}: {spent:.3g} s" for place, spent in pairs)
    theory = f"theory {entry['theory']:g} ({entry['why']})"
    return f"{head}\n  {entry['variable']}: {times}\n  {exponent(entry)}, {theory}"


def exponent(entry: dict[str, Any]) -> str:
    """Return a fitted exponent with its margin."""
    margin = "" if entry["margin"] is None else f" ± {entry['margin']:.2f}"
    return f"exponent {entry['exponent']:.2f}{margin}"
