"""What fits of sounds and of solids by L-BFGS say of the papers' comparisons."""

from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd

from analyses.solids import at, here, left_out, ratio
from analyses.study import Answer, Verdict
from analyses.words import bootstrap_mean, spread

# The papers' fields of sounds, best first, and what else two of them may be.
ORDER = ("sine 3000, 3000", "gaussian 0.01", "relu_pe", "relu")
OTHERS = {"sine 3000, 3000": "sine 3000, 30", "gaussian 0.01": "gaussian 0.03"}
PRINTED_OMEGA, CLOSE = (3000.0, 3000.0), 1.0
# How Adam's rates are told.
ADAMS = {
    "adam": "Adam at its best rate by the cross-entropy",
    "adam by IoU": "Adam at its best by the IoU",
    "adam 1e-4": "Adam at 1e-4",
}
# P1s §4.3, and the interval that "about twice as fast" is taken for.
PRINTED_SPEED, ABOUT = 2.0, (1.5, 3.0)


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
    ranked = {
        order: [clip for clip, found in ends.items() if _descends(found, order)] for order in orders
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
        f"{' > '.join(map(_short, order))} in {', '.join(names)}"
        for order, names in ranked.items()
        if names
    )
    return Verdict(
        "C101",
        answer,
        f"SNR in dB after equal iterations: {'; '.join(parts)}",
        f"{_clips(known)}; in the papers' order: {where or 'none'}; a Gaussian's number is its σ, "
        f"a sine's its first two ω{left_out(rows, 'clip')}",
    )


def _short(name: str) -> str:
    """Return the name of a field without what ends an entry of a list."""
    return name.replace(", ", "/")


def _other(name: str) -> tuple[str, ...]:
    return (OTHERS[name],) if name in OTHERS else ()


def _descends(found: dict[str, list[float]], order: tuple[str, ...]) -> bool:
    """Tell whether the medians of these fields fall in this order."""
    if not set(order) <= set(found):
        return False
    medians = [float(np.median(found[name])) for name in order]
    return all(one > other for one, other in pairwise(medians))


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


def _pairs(rows: pd.DataFrame, slow: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the runs of Adam with those of L-BFGS from the same start."""
    records = {(row["method"], row["solid"], row["seed"]): row for row in rows.to_dict("records")}
    return [
        (row, records["lbfgs", name, seed])
        for (method, name, seed), row in records.items()
        if method == slow and ("lbfgs", name, seed) in records
    ]


def _solid(rows: pd.DataFrame) -> Verdict | None:
    known = here(rows)
    found = {name: _pairs(known, name) for name in ADAMS} if len(known) else {}
    found = {name: pairs for name, pairs in found.items() if pairs}
    if "adam" not in found:
        return None
    compared = {name: _Compared(pairs) for name, pairs in found.items()}
    ahead = [name for name, one in compared.items() if one.higher]
    low, _, high = compared["adam"].speed
    holds = len(ahead) == len(compared) and ABOUT[0] <= low and high <= ABOUT[1]
    answer: Answer = "holds" if holds else "holds only under" if ahead else "does not hold"
    lbfgs = known[known["method"] == "lbfgs"].to_dict("records")
    ends = {
        name: _told([row[name][-1] for row in lbfgs if row[name]])
        for name in ("iou", "components", "cpu")
    }
    edge = ", ".join(dict.fromkeys(known[known["at_edge"]]["method"]))
    told = f"; best rate at the edge of those tried: {edge}" if edge else ""
    parts = "; ".join(f"{ADAMS[name]}: {one}" for name, one in compared.items())
    return Verdict(
        "C104",
        answer,
        f"L-BFGS: IoU {ends['iou']}, pieces {ends['components']}, in "
        f"{ends['cpu']} s of one core; at equal iterations and at equal seconds "
        f"{parts} (printed {PRINTED_SPEED:g})",
        f"sine {lbfgs[0]['shape']}, {lbfgs[0]['points']:g} points of "
        f"{', '.join(dict.fromkeys(known['solid']))} at once, {known['seed'].nunique()} seeds, "
        f"rates chosen on another{told}; L-BFGS's IoU is higher in every pair at equal seconds "
        f"against: {', '.join(ADAMS[name] for name in ahead) or 'none'}{left_out(rows, 'solid')}",
    )


class _Compared:
    """Adam beside L-BFGS on the same solids, from the same starts."""

    def __init__(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
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
