"""What fits of sounds and of solids by L-BFGS say of the papers' comparisons."""

from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd

from analyses.solids import at, edges, here, left_out, ratio
from analyses.study import Answer, Verdict
from analyses.words import bootstrap_mean, spread

# The papers' fields of sounds, best first, and what else two of them may be.
ORDER = ("sine 3000, 3000", "gaussian 0.01", "relu_pe", "relu")
OTHERS = {"sine 3000, 3000": "sine 3000, 30", "gaussian 0.01": "gaussian 0.03"}
PRINTED_OMEGA, CLOSE = (3000.0, 3000.0), 1.0
# How Adam's rates are told.
BY_IOU, FIXED = "adam by IoU", "adam 1e-4"
ADAMS = {
    "adam": "Adam at its best rate by the cross-entropy",
    BY_IOU: "Adam at its best by the IoU",
    FIXED: "Adam at 1e-4",
}
# P1s §4.3, and the interval that "about twice as fast" is taken for.
PRINTED_SPEED, ABOUT = 2.0, (1.5, 3.0)

# Runs of Adam, each with that of L-BFGS from the same start.
Pairs = list[tuple[dict[str, Any], dict[str, Any]]]


def sound_verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Judge C101 and C102 by the sounds, and C104 by the solids."""
    found = [
        _order(rows[rows["part"] == "sound"]),
        _omega(rows[rows["part"] == "grid"]),
        _solid(rows[rows["part"] == "solid"]),
    ]
    return [one for one in found if one is not None]


def _last(rows: pd.DataFrame) -> list[float]:
    """Return the SNR that every run ends with; minus infinity for one that diverged."""
    return [float(curve[-1]) if len(curve) else -np.inf for curve in rows["snr"]]


def _order(rows: pd.DataFrame) -> Verdict | None:
    known = here(rows)
    if not len(known):
        return None
    clips = {
        str(clip): dict(list(one.groupby("field", sort=False)))
        for clip, one in known.groupby("clip", sort=False)
    }
    ends = {
        clip: {field: _last(one) for field, one in fields.items()} for clip, fields in clips.items()
    }
    orders = list(product(*((name, *_other(name)) for name in ORDER)))
    tied = {order: {clip: _ties(found, order) for clip, found in ends.items()} for order in orders}
    ranked = {
        order: [clip for clip, ties in by_clip.items() if ties == []]
        for order, by_clip in tied.items()
    }
    answer: Answer = "holds" if len(ranked[ORDER]) == len(ends) else "does not hold"
    if answer == "does not hold" and any(ranked.values()):
        answer = "holds only under"
    parts = [
        f"{clip}: "
        + ", ".join(f"{_short(field)} {spread(values)}" for field, values in found.items())
        for clip, found in ends.items()
    ]
    where = "; ".join(
        f"{_chain(order)} in {', '.join(names)}" for order, names in ranked.items() if names
    )
    almost = "; ".join(
        f"{_chain(order)} in {clip} but for {' and '.join(ties)}"
        for order, by_clip in tied.items()
        for clip, ties in by_clip.items()
        if ties
    )
    told = f"; up to ties of overlapping ranges: {almost}" if almost else ""
    return Verdict(
        "C101",
        answer,
        f"SNR in dB after equal iterations: {'; '.join(parts)}",
        f"{_clips(known)}; in the papers' order, ranges over seeds apart: {where or 'none'}"
        f"{told}; a Gaussian's number is its σ, a sine's its first two ω{left_out(rows, 'clip')}",
    )


def _short(name: str) -> str:
    """Return the name of a field without what ends an entry of a list."""
    return name.replace(", ", "/")


def _other(name: str) -> tuple[str, ...]:
    return (OTHERS[name],) if name in OTHERS else ()


def _chain(order: tuple[str, ...]) -> str:
    return " > ".join(map(_short, order))


def _ties(found: dict[str, list[float]], order: tuple[str, ...]) -> list[str] | None:
    """Return neighbours whose ranges overlap, or None if these fields do not fall in this order."""
    ties: list[str] = []
    if not set(order) <= set(found):
        return None
    for one, other in pairwise(order):
        if max(found[one]) < min(found[other]):
            return None
        if min(found[one]) <= max(found[other]):
            ties.append(f"{_short(one)} beside {_short(other)}")
    return ties


def _clips(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    steps = max(row[-1] for row in rows["step"] if len(row))
    return (
        f"{first['shape']}, {first['points'] / first['rate']:g} s at {first['rate']:g} Hz, "
        f"{steps} iterations, {rows['seed'].nunique()} seeds; "
        f"{', '.join(dict.fromkeys(rows['clip']))}"
    )


def _omega(rows: pd.DataFrame) -> Verdict | None:
    known = here(rows)
    if not len(known):
        return None
    gaps, parts = {}, []
    for clip, group in known.groupby("clip", sort=False):
        ends = {
            pair: float(np.median(_last(one))) for pair, one in group.groupby(["first", "second"])
        }
        best = max(ends, key=lambda pair: ends[pair])
        if PRINTED_OMEGA not in ends:
            return None
        gaps[str(clip)] = ends[PRINTED_OMEGA] - ends[best]
        siren = ends.get((3000.0, 30.0), -np.inf)
        parts.append(
            f"{clip}: {ends[PRINTED_OMEGA]:.1f} dB at (3000, 3000), {siren:.1f} at (3000, 30), "
            f"best {ends[best]:.1f} at ({best[0]:g}, {best[1]:g})"
        )
    close = [clip for clip, gap in gaps.items() if gap >= -CLOSE]
    answer: Answer = "holds" if len(close) == len(gaps) else "does not hold"
    answer = "holds only under" if close and answer == "does not hold" else answer
    tried = (
        sorted({f"{value:g}" for value in known[name]}, key=float) for name in ("first", "second")
    )
    return Verdict(
        "C102",
        answer,
        "; ".join(parts),
        f"within {CLOSE:g} dB of the best of ω₁ ∈ {{{'}, ω₂ ∈ {'.join(map(', '.join, tried))}}} "
        f"asked: {', '.join(close) or 'none'}; {_clips(known)}; in a clip of another length the "
        f"same ω is another frequency{left_out(rows, 'clip')}",
    )


def _pairs(rows: pd.DataFrame, slow: str) -> Pairs:
    """Return the runs of Adam with those of L-BFGS from the same start."""
    records = {(row["method"], row["solid"], row["seed"]): row for row in rows.to_dict("records")}
    return [
        (row, records["lbfgs", name, seed])
        for (method, name, seed), row in records.items()
        if method == slow and ("lbfgs", name, seed) in records
    ]


def _solid(rows: pd.DataFrame) -> Verdict | None:
    known = here(rows)
    found = _once({name: _pairs(known, name) for name in ADAMS}) if len(known) else {}
    if "adam" not in found:
        return None
    compared = {name: _Compared(pairs) for name, pairs in found.items()}
    against = {
        (name, solid): _Compared([pair for pair in pairs if pair[0]["solid"] == solid]).higher
        for name, pairs in found.items()
        for solid in dict.fromkeys(row["solid"] for row, _ in pairs)
    }
    ahead = [one for one, higher in against.items() if higher]
    low, _, high = compared["adam"].speed
    holds = len(ahead) == len(against) and ABOUT[0] <= low and high <= ABOUT[1]
    answer: Answer = "holds" if holds else "holds only under" if ahead else "does not hold"
    lbfgs = known[known["method"] == "lbfgs"].to_dict("records")
    ends = {
        name: _told([row[name][-1] for row in lbfgs if row[name]])
        for name in ("iou", "components", "cpu")
    }
    parts = "; ".join(f"{_named(name, found[name])}: {one}" for name, one in compared.items())
    return Verdict(
        "C104",
        answer,
        f"L-BFGS: IoU {ends['iou']}, pieces {ends['components']}, in "
        f"{ends['cpu']} s of one core; at equal iterations and at equal seconds "
        f"{parts} (printed {PRINTED_SPEED:g})",
        f"sine {lbfgs[0]['shape']}, {lbfgs[0]['points']:g} points of "
        f"{', '.join(dict.fromkeys(known['solid']))} at once, {known['seed'].nunique()} seeds, "
        f"rates chosen on another{edges(known, 'solid', 'method')}{_outdone(known)}; L-BFGS's IoU "
        f"is higher in every pair at equal seconds against: {_listed(ahead)}"
        f"{left_out(rows, 'solid')}",
    )


def _once(found: dict[str, Pairs]) -> dict[str, Pairs]:
    """Return the pairs with every run of Adam only under the first of its names."""
    seen: set[tuple[str, int, float]] = set()
    kept = {}
    for name, pairs in found.items():
        new = [(one, two) for one, two in pairs if _run(one) not in seen]
        seen |= {_run(one) for one, _ in new}
        if new:
            kept[name] = new
    return kept


def _run(row: dict[str, Any]) -> tuple[str, int, float]:
    return row["solid"], int(row["seed"]), float(row["lr"])


def _named(name: str, pairs: Pairs) -> str:
    """Return how a choice of rates is told, with the rate on every solid."""
    rates = dict.fromkeys(f"{row['lr']:g} on {row['solid']}" for row, _ in pairs)
    return f"{ADAMS[name]} ({', '.join(rates)})"


def _listed(ahead: list[tuple[str, str]]) -> str:
    return ", ".join(f"{ADAMS[name]} on {solid}" for name, solid in ahead) or "none"


def _outdone(rows: pd.DataFrame) -> str:
    """Return where the seed that chooses the rate by the IoU chose one that ends lower."""
    ends = {
        (row["method"], row["solid"], row["seed"]): (row["lr"], row["iou"][-1])
        for row in rows.to_dict("records")
        if row["iou"]
    }
    told = []
    for solid in dict.fromkeys(rows["solid"]):
        seeds = dict.fromkeys(rows[rows["solid"] == solid]["seed"])
        pairs = [
            (ends.get((BY_IOU, solid, seed)), ends.get((FIXED, solid, seed))) for seed in seeds
        ]
        if all(one and two and two[1] > one[1] for one, two in pairs):
            told.append(str(solid))
    return (
        f"; 1e-4 ends higher than the rate chosen by the IoU in every seed on {', '.join(told)}"
        if told
        else ""
    )


class _Compared:
    """Adam beside L-BFGS on the same solids, from the same starts."""

    def __init__(self, pairs: Pairs) -> None:
        self.steps = [_after(slow, fast["step"][-1:]) for slow, fast in pairs]
        clocks = [fast["cpu"][-1] if fast["cpu"] else 0.0 for _, fast in pairs]
        timed = list(zip((slow for slow, _ in pairs), clocks, strict=True))
        self.iou = [float(np.nan_to_num(at(slow, "iou", clock))) for slow, clock in timed]
        self.pieces = [at(slow, "components", clock) for slow, clock in timed if slow["cpu"]]
        logs = bootstrap_mean([np.log(ratio(*pair)) for pair in pairs])
        middle, low, high = (float(np.exp(each)) for each in logs)
        self.speed = low, middle, high
        ends = [fast["iou"][-1] if fast["iou"] else 0.0 for _, fast in pairs]
        self.higher = bool(np.all(np.array(ends) > np.array(self.iou)))

    def __str__(self) -> str:
        low, middle, high = self.speed
        return (
            f"IoU {spread(self.steps)} and {spread(self.iou)}, pieces then "
            f"{_told(self.pieces)}, its time over L-BFGS's to one cross-entropy "
            f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        )


def _told(numbers: list[float]) -> str:
    return spread(numbers) if numbers else "none"


def _after(row: dict[str, Any], step: list[int]) -> float:
    """Return the IoU after so many iterations."""
    if not row["iou"] or not step:
        return 0.0
    return float(row["iou"][int(np.searchsorted(row["step"], step[0], side="right")) - 1])
