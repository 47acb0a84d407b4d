"""What curves of PSNR say of the papers' comparisons of optimizers."""

from typing import Any

import numpy as np
import pandas as pd

from analyses.study import Answer, Verdict
from analyses.words import bootstrap_mean, spread

SMOOTH, ROUGH = ("sine", "gaussian"), ("relu", "relu_pe", "tanh")
# The papers' "5 times faster".
PRINTED_SPEED = 5.0


def full_verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Judge L-BFGS against Adam, full batch."""
    if not len(rows):
        return []
    found = [
        _faster(rows, "C94", "sine", expect="lbfgs"),
        _faster(rows, "C95", "relu", expect="adam"),
        _faster(rows, "C96", "relu_pe", expect="adam"),
        _smooth_first(rows),
        _gap(rows),
        _speed(rows),
        _interaction(rows),
    ]
    return [one for one in found if one is not None]


def ends(rows: pd.DataFrame, act: str, method: str) -> dict[tuple[str, int], float]:
    """Return the last PSNR by image and seed; minus infinity for a run that diverged."""
    chosen = rows[(rows["act"] == act) & (rows["method"] == method)]
    return {
        (row["image"], int(row["seed"])): row["psnr"][-1] if row["psnr"] else -np.inf
        for row in chosen.to_dict("records")
    }


def time_to(row: dict[str, Any], target: float) -> float:
    """Return the seconds at which a curve reaches a value; infinite if never."""
    values = np.maximum.accumulate(np.asarray(row["psnr"], dtype=float))
    walls = np.asarray(row["wall"], dtype=float)
    if not len(values) or values[-1] < target:
        return np.inf
    return float(np.interp(target, values, walls)) if values[0] < target else float(walls[0])


def ratios(rows: pd.DataFrame, act: str, slow: str) -> list[float]:
    """Return seconds of a method over those of L-BFGS to the lower of their two ends, by pair."""
    chosen = rows[rows["act"] == act]
    records = {(row["method"], row["image"], row["seed"]): row for row in chosen.to_dict("records")}
    found = []
    for (method, image, seed), row in records.items():
        other = records.get(("lbfgs", image, seed))
        if method != slow or other is None or not row["psnr"] or not other["psnr"]:
            continue
        target = min(row["psnr"][-1], other["psnr"][-1])
        found.append(time_to(row, target) / max(time_to(other, target), 1e-3))
    return found


def settings_of(rows: pd.DataFrame) -> str:
    """Return what a verdict was measured on."""
    images = ", ".join(dict.fromkeys(rows["image"]))
    edge = sorted(
        {f"{row['act']} {row['method']}" for row in rows[rows["at_edge"]].to_dict("records")}
    )
    told = f"; best rate at the edge of those tried: {', '.join(edge)}" if edge else ""
    shape = max(rows["shape"])
    return f"{shape}; {images}; {rows['seed'].nunique()} seeds, rates chosen on another{told}"


def pairs(rows: pd.DataFrame, act: str, one: str, other: str) -> list[float]:
    """Return the last PSNR of one method minus another's, by pair of image and seed."""
    first, second = ends(rows, act, one), ends(rows, act, other)
    # Two runs that diverged are as good as each other.
    return [
        first[key] - second[key] if first[key] != second[key] else 0.0
        for key in first
        if key in second
    ]


def timed_pairs(rows: pd.DataFrame, act: str, one: str, other: str) -> list[float]:
    """Return PSNR of one method minus another's at the end of the shorter of the two, by pair."""
    chosen = rows[rows["act"] == act].to_dict("records")
    records = {(row["method"], row["image"], row["seed"]): row for row in chosen}
    found = []
    for (method, image, seed), row in records.items():
        beside = records.get((other, image, seed))
        if method != one or beside is None or not row["psnr"] or not beside["psnr"]:
            continue
        until = min(row["wall"][-1], beside["wall"][-1])
        values = [np.interp(until, each["wall"], each["psnr"]) for each in (row, beside)]
        found.append(float(values[0] - values[1]))
    return found


def _faster(rows: pd.DataFrame, claim: str, act: str, *, expect: str) -> Verdict | None:
    tuned, slow = ratios(rows, act, "adam"), ratios(rows, act, "adam 1e-4")
    if not tuned or not slow:
        return None
    logs, low, high = bootstrap_mean(np.log(tuned))
    slow_low = bootstrap_mean(np.log(slow))[1]
    gaps = timed_pairs(rows, act, "lbfgs", "adam")
    ahead = sum(gap > 0 for gap in gaps)
    if expect == "lbfgs":
        answer: Answer = "holds" if low > 0 else "does not hold"
        answer = "holds only under" if low <= 0 < slow_low else answer
    else:
        answer = "holds" if high < 0 else "does not hold" if low > 0 else "holds only under"
    measured = (
        f"Adam's time over L-BFGS's to the lower end: {np.exp(logs):.2f} [{np.exp(low):.2f}, "
        f"{np.exp(high):.2f}] at Adam's best rate, {spread(slow)} at 1e-4; "
        f"at equal seconds L-BFGS is higher in {ahead} of {len(gaps)} pairs, by {spread(gaps)} dB"
    )
    chosen = rows[rows["act"] == act]
    return Verdict(claim, answer, measured, f"full batch, {settings_of(chosen)}")


def _smooth_first(rows: pd.DataFrame) -> Verdict | None:
    by_act = {act: list(ends(rows, act, "lbfgs").values()) for act in (*SMOOTH, *ROUGH)}
    by_act = {act: values for act, values in by_act.items() if values}
    if not set(SMOOTH) & set(by_act) or not set(ROUGH) & set(by_act):
        return None
    least = {act: min(by_act[act]) for act in SMOOTH if act in by_act}
    most = max(max(by_act[act]) for act in ROUGH if act in by_act)
    above = [act for act, value in least.items() if value > most]
    answer: Answer = "holds" if len(above) == len(least) else "holds only under"
    answer = answer if above else "does not hold"
    text = ", ".join(f"{act} {spread(values)}" for act, values in by_act.items())
    where = f"; above all others in every run: {', '.join(above) or 'none'}"
    return Verdict(
        "C97", answer, f"PSNR after equal iterations: {text} dB", settings_of(rows) + where
    )


def _gap(rows: pd.DataFrame) -> Verdict | None:
    tuned, slow = (timed_pairs(rows, "sine", "lbfgs", name) for name in ("adam", "adam 1e-4"))
    if not tuned or not slow:
        return None
    answer: Answer = "holds" if min(tuned) >= 10 else "does not hold"
    answer = "holds only under" if min(tuned) < 10 <= float(np.median(slow)) else answer
    measured = f"L-BFGS − Adam {spread(tuned)} dB at its best rate, {spread(slow)} dB at 1e-4"
    return Verdict("C99", answer, measured, f"sine, at equal seconds; {settings_of(rows)}")


def _speed(rows: pd.DataFrame) -> Verdict | None:
    tuned, slow = ratios(rows, "sine", "adam"), ratios(rows, "sine", "adam 1e-4")
    if not tuned or not slow:
        return None
    mean, low, high = (float(np.exp(each)) for each in bootstrap_mean(np.log(tuned)))
    answer: Answer = "holds" if low <= PRINTED_SPEED <= high else "does not hold"
    if answer == "does not hold" and min(slow) <= PRINTED_SPEED <= max(slow):
        answer = "holds only under"
    measured = f"{mean:.2f} [{low:.2f}, {high:.2f}] at Adam's best rate; {spread(slow)} at 1e-4"
    return Verdict("C100", answer, measured, f"sine, time to the lower end; {settings_of(rows)}")


def _interaction(rows: pd.DataFrame) -> Verdict | None:
    smooth = [each for act in SMOOTH for each in np.log(ratios(rows, act, "adam"))]
    rough = [each for act in ROUGH[:2] for each in np.log(ratios(rows, act, "adam"))]
    if not smooth or not rough:
        return None
    draws = np.random.default_rng(0)
    change = draws.choice(smooth, (10_000, len(smooth))).mean(axis=1) - draws.choice(
        rough, (10_000, len(rough))
    ).mean(axis=1)
    low, high = np.quantile(change, [0.025, 0.975])
    answer: Answer = "holds" if low > 0 else "does not hold" if high < 0 else "holds only under"
    measured = (
        "L-BFGS's gain over tuned Adam, smooth over ReLU fields: "
        f"{np.exp(np.mean(smooth) - np.mean(rough)):.2f} [{np.exp(low):.2f}, {np.exp(high):.2f}]"
    )
    return Verdict("C33", answer, measured, settings_of(rows))
