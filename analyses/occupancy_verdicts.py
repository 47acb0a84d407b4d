"""What fits of solids on batches say of the papers' comparisons of optimizers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.convergence_verdicts import ends as image_ends
from analyses.solids import edges, here, left_out, ratio, reached
from analyses.study import Answer, Verdict
from analyses.words import bootstrap_mean, spread

PRECONDITIONERS = ("esgd", "adahessian E", "adahessian J", "kfac", "shampoo")
UNIT = "esgd ε=1"
# Shares of pairs and of resamples that claims.md asks for.
NEARLY_ALL, RESAMPLES = 0.95, 2000
# The solids that claims.md asks for.
ASKED = ("nefertiti", "spot", "terrain")
# C83's "within 5×", and C86's "by more than 10 %".
PATIENCE, FINER = 5, 0.9

Pair = tuple[str, int]


def occupancy_verdicts(rows: pd.DataFrame, image: pd.DataFrame | None = None) -> list[Verdict]:
    """Judge the optimizers on solids.

    Args:
        rows: Of the record.
        image: Those of ``stochastic_convergence``, for C80.
    """
    known = here(rows)
    if not len(known):
        return []
    short, long = (known[known["part"] == part] for part in ("short", "long"))
    gaussian = short[short["field"] == "gaussian"]
    found = [
        _adam_beats_sgd(short),
        _rank_of_esgd(gaussian),
        None if image is None else _ranks_fall(gaussian, image),
        _refresh(gaussian),
        _shampoo_stops(gaussian),
        _time_to_target(gaussian),
        _better_iou(long[long["field"] == "sine"]),
        _finer_meshes(long[long["field"] == "gaussian"]),
    ]
    gone = left_out(rows, "solid") + _unmeasured(rows)
    return [
        Verdict(one.claim, one.answer, one.measured, one.settings + gone)
        for one in found
        if one is not None
    ]


def _unmeasured(rows: pd.DataFrame) -> str:
    names = ", ".join(name for name in ASKED if name not in set(rows["solid"]))
    return f"; asked for and not measured: {names}" if names else ""


def _records(rows: pd.DataFrame, method: str) -> dict[Pair, dict[str, Any]]:
    chosen = rows[rows["method"] == method].to_dict("records")
    return {(row["solid"], int(row["seed"])): row for row in chosen}


def _ends(rows: pd.DataFrame, method: str, quantity: str = "bce") -> dict[Pair, float]:
    """Return what every run of a method ends with; the worst there is for one that diverged."""
    worst = 0.0 if quantity == "iou" else math.inf
    found = {}
    for key, row in _records(rows, method).items():
        last = row[quantity][-1] if row[quantity] else None
        found[key] = worst if last is None else float(last)
    return found


def _gains(rows: pd.DataFrame, one: str, other: str, quantity: str = "bce") -> list[float]:
    """Return by how much a method ends better than another, by pair of solid and seed."""
    first, second = _ends(rows, one, quantity), _ends(rows, other, quantity)
    sign = 1 if quantity == "iou" else -1
    return [
        sign * (first[key] - second[key]) if first[key] != second[key] else 0.0
        for key in first
        if key in second
    ]


def _settings(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    steps = max((row[-1] for row in rows["step"] if len(row)), default=0)
    epochs = steps / -(-first["points"] // first["batch_size"])
    by = "IoU" if "by" in rows and (rows["by"] == "iou").all() else "cross-entropy"
    return (
        f"{max(rows['shape'].dropna(), default='')}, {first['batch_size']} of {first['points']} "
        f"points, {epochs:.3g} epochs; {', '.join(dict.fromkeys(rows['solid']))}; "
        f"{rows['seed'].nunique()} seeds, rates chosen on another and on {first['solid']} alone, "
        f"by the {by}{edges(rows, 'field', 'method')}"
    )


def _under(answer: Answer, text: str) -> str:
    """Return under what a claim holds, if it holds only there."""
    return f"; holds {text}" if answer == "holds only under" else ""


def _of(rows: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    return rows[rows["method"].isin(list(methods))]


def _share(holding: Sequence[object], asked: Sequence[object]) -> Answer:
    if len(holding) == len(asked):
        return "holds"
    return "holds only under" if holding else "does not hold"


def _mostly(gains: Sequence[float]) -> bool:
    """Tell whether nearly all pairs are gains."""
    return float(np.mean(np.asarray(gains) > 0)) >= NEARLY_ALL


def _adam_beats_sgd(rows: pd.DataFrame) -> Verdict | None:
    """Judge C63; of a rival whose best rate may lie beyond those tried nothing else is known."""
    parts: list[str] = []
    ahead, asked, untuned, rougher = (list[tuple[str, str]]() for _ in range(4))
    for field, group in rows.groupby("field", sort=False):
        texts = []
        for name in ("sgd", "sgd momentum"):
            gains, solid = (_gains(group, "adam", name, each) for each in ("bce", "iou"))
            if not gains:
                continue
            pair = str(field), name
            asked.append(pair)
            if _mostly(gains):
                at_edge = bool(_of(group, (name,))["at_edge"].any())
                (untuned if at_edge else ahead).append(pair)
            if not _mostly(solid):
                rougher.append(pair)
            texts.append(f"{name} {spread(gains)} (IoU {spread(solid)})")
        parts += [f"{field}: {', '.join(texts)}"] if texts else []
    if not asked:
        return None
    behind = [one for one in asked if one not in ahead + untuned]
    answer = _share(ahead, asked)
    if answer == "does not hold" and untuned:
        answer = "holds only under"
    where = _under(answer, f"against: {_listed(ahead) or 'none'}")
    where += f"; at the rates tried alone: {_listed(untuned)}" if untuned else ""
    where += f"; not in {NEARLY_ALL:.0%} of pairs: {_listed(behind)}" if behind else ""
    where += f"; by the IoU not: {_listed(rougher)}" if rougher else ""
    return Verdict(
        "C63",
        answer,
        f"cross-entropy of each − Adam's, and Adam's IoU − its: {'; '.join(parts)}",
        _settings(_of(rows, ("adam", "sgd", "sgd momentum"))) + where,
    )


def _listed(names: Sequence[Sequence[str]]) -> str:
    return ", ".join(" ".join(one) for one in names)


def _first_in(found: dict[str, dict[Pair, float]], name: str) -> float:
    """Return in how many resamples of the pairs a method has the least mean."""
    keys = sorted(set.intersection(*(set(values) for values in found.values())))
    # A run that diverged is as bad as none.
    table = np.array([[min(values[key], 1e3) for key in keys] for values in found.values()])
    draws = np.random.default_rng(0).integers(len(keys), size=(RESAMPLES, len(keys)))
    means = table[:, draws].mean(axis=2)
    return float(np.mean(means.argmin(axis=0) == list(found).index(name)))


def _rank_of_esgd(rows: pd.DataFrame) -> Verdict | None:
    found = {name: _ends(rows, name) for name in (*PRECONDITIONERS, UNIT)}
    found = {name: values for name, values in found.items() if values}
    if "esgd" not in found or len(found) < 2:
        return None
    rivals = {name: values for name, values in found.items() if not name.startswith("esgd")}
    shares = {
        name: _first_in({name: found[name], **rivals}, name)
        for name in ("esgd", UNIT)
        if name in found
    }
    answer: Answer = "holds" if shares["esgd"] >= NEARLY_ALL else "does not hold"
    if answer == "does not hold" and shares.get(UNIT, 0.0) >= NEARLY_ALL:
        answer = "holds only under"
    medians = {name: float(np.median(list(values.values()))) for name, values in found.items()}
    text = ", ".join(
        f"{name} {medians[name]:.3f} ({np.median(list(_ends(rows, name, 'iou').values())):.3f})"
        for name in sorted(medians, key=lambda name: medians[name])
    )
    first = ", ".join(f"{name} in {share:.0%}" for name, share in shares.items())
    return Verdict(
        "C79",
        answer,
        f"cross-entropy (IoU), best first: {text}; first of the preconditioners in resamples: "
        f"{first}",
        f"gaussian, {_settings(_of(rows, tuple(found)))}; ε is 1e-4 unless told, K-FAC's damping "
        f"0.01{_under(answer, f'for {UNIT}')}",
    )


def _ranks_fall(rows: pd.DataFrame, image: pd.DataFrame) -> Verdict | None:
    names = ("adam", *PRECONDITIONERS)
    plain = image[image["part"] == "batch"]
    there = {name: image_ends(plain, "gaussian", name) for name in names}
    here_ = {name: _ends(rows, name) for name in names}
    if not all(there.values()) or not all(here_.values()):
        return None
    on_image = {name: -float(np.median(list(values.values()))) for name, values in there.items()}
    on_solid = {name: float(np.median(list(values.values()))) for name, values in here_.items()}
    ranks = [
        {name: sorted(found.values()).index(found[name]) + 1 for name in names}
        for found in (on_image, on_solid)
    ]
    asked = ("adahessian E", "adahessian J", "shampoo")
    fallen = [name for name in asked if ranks[1][name] > ranks[0][name]]
    text = ", ".join(f"{name} {ranks[0][name]} → {ranks[1][name]}" for name in names)
    answer = _share(fallen, asked)
    return Verdict(
        "C80",
        answer,
        f"rank on the image → on solids, of {len(names)}: {text}",
        f"gaussian, images from stochastic_convergence, 256 wide; {_settings(_of(rows, names))}"
        + _under(answer, f"for: {', '.join(fallen)}"),
    )


def _refresh(rows: pd.DataFrame) -> Verdict | None:
    gains = {
        "E": _gains(rows, "esgd", "adahessian E"),
        "J": _gains(rows, "adahessian J N=100", "adahessian J"),
    }
    if not all(gains.values()):
        return None
    better = [name for name, values in gains.items() if _mostly(values)]
    text = "; ".join(f"{name} {spread(values)}" for name, values in gains.items())
    names = ("esgd", "adahessian E", "adahessian J N=100", "adahessian J")
    answer = _share(better, list(gains))
    return Verdict(
        "C82",
        answer,
        f"cross-entropy of AdaHessian at N = 1 − at N = 100, by its estimate: {text}",
        f"gaussian, {_settings(_of(rows, names))}; with E and N = 100 it is ESGD; better at "
        "N = 100 (positive) in 95 % of pairs asked" + _under(answer, f"for: {', '.join(better)}"),
    )


def _shampoo_stops(rows: pd.DataFrame) -> Verdict | None:
    names = [name for name in dict.fromkeys(rows["method"]) if name.startswith("shampoo")]
    ended = {name: float(np.median(list(_ends(rows, name).values()))) for name in names}
    if not ended or not _ends(rows, "esgd"):
        return None
    best = min(ended, key=lambda name: ended[name])
    late, parts = {}, []
    for name in ("esgd", UNIT):
        pairs = _both(rows, name, best)
        if pairs:
            fails = [_out_of_reach(*pair) for pair in pairs]
            finals = [math.isinf(reached(two, min(one["bce"]), "step")) for one, two in pairs]
            late[name] = float(np.mean(fails))
            parts.append(
                f"{name}'s after a fifth of its steps not within {PATIENCE}× its time in "
                f"{sum(fails)} of {len(fails)} pairs, its last not in equal steps in {sum(finals)}"
            )
    if "esgd" not in late:
        return None
    answer: Answer = "holds" if late["esgd"] == 1 else "does not hold"
    if answer == "does not hold" and max(late.values()) == 1:
        answer = "holds only under"
    told = ", ".join(f"{name} {value:.3f}" for name, value in ended.items())
    return Verdict(
        "C83",
        answer,
        f"cross-entropies that {best} reaches: {'; '.join(parts)}; ends: {told}",
        f"gaussian, {_settings(_of(rows, ('esgd', UNIT, *names)))}; Shampoo's ε 1e-4 unless told"
        + _under(answer, f"beside {UNIT}"),
    )


def _both(rows: pd.DataFrame, one: str, other: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the runs of two methods in pairs, where the first did not diverge."""
    first, second = _records(rows, one), _records(rows, other)
    return [(first[key], second[key]) for key in first if key in second and first[key]["bce"]]


def _out_of_reach(esgd: dict[str, Any], shampoo: dict[str, Any]) -> bool:
    """Tell whether Shampoo needs 5 times the seconds, or more than all it had."""
    fifth = int(np.searchsorted(esgd["step"], esgd["step"][-1] / PATIENCE))
    target = min(esgd["bce"][: fifth + 1])
    return reached(shampoo, target) > PATIENCE * max(reached(esgd, target), 1e-3)


def _time_to_target(rows: pd.DataFrame) -> Verdict | None:
    rivals = [name for name in ("adam", *PRECONDITIONERS[1:]) if _ends(rows, name)]
    faster, asked, parts = [], [], []
    for name in ("esgd", UNIT):
        if not rivals or not _ends(rows, name):
            continue
        texts = []
        for rival in rivals:
            pairs = _both(rows, name, rival)
            shown = []
            for along in ("cpu", "step"):
                logs = [math.log(ratio(two, one, along)) for one, two in pairs]
                center, low, high = (float(np.exp(each)) for each in bootstrap_mean(logs))
                shown.append(f"{center:.2f} [{low:.2f}, {high:.2f}]")
                asked.append((name, rival, along))
                if low > 1:
                    faster.append((name, rival, along))
            texts.append(f"{rival} {shown[0]}, epochs {shown[1]}")
        parts.append(f"over {name}'s: {'; '.join(texts)}")
    if not any(name == "esgd" for name, _, _ in asked):
        return None
    published = [one for one in asked if one[0] == "esgd"]
    answer = _share([one for one in faster if one[0] == "esgd"], published)
    if answer == "does not hold" and faster:
        answer = "holds only under"
    return Verdict(
        "C84",
        answer,
        f"seconds and epochs to one cross-entropy, mean ratio and interval, {'; '.join(parts)}",
        f"gaussian, {_settings(_of(rows, ('esgd', UNIT, *rivals)))}; to the worse of the two ends"
        + _under(answer, f"(interval above 1): {_sooner(faster)}"),
    )


def _sooner(faster: Sequence[tuple[str, str, str]]) -> str:
    """Return over which rivals a method is sooner, by what it is counted in."""
    found: dict[str, list[str]] = {}
    for name, rival, along in faster:
        unit = "seconds" if along == "cpu" else "epochs"
        found.setdefault(f"{name} in {unit} over", []).append(rival)
    return "; ".join(f"{start} {', '.join(rivals)}" for start, rivals in found.items())


def _better_iou(rows: pd.DataFrame) -> Verdict | None:
    gains = {name: _gains(rows, name, "adam", "iou") for name in ("esgd", UNIT)}
    gains = {name: values for name, values in gains.items() if values}
    if "esgd" not in gains:
        return None
    answer: Answer = "holds" if min(gains["esgd"]) > 0 else "does not hold"
    if answer == "does not hold" and any(min(values) > 0 for values in gains.values()):
        answer = "holds only under"
    text = "; ".join(f"{name} {spread(values)}" for name, values in gains.items())
    adam = list(_ends(rows, "adam", "iou").values())
    apart = "; ".join(f"{name} {spread(_gains(rows, name, 'adam', 'chamfer'))}" for name in gains)
    return Verdict(
        "C85",
        answer,
        f"IoU − Adam's {spread(adam)}: {text}; Adam's Chamfer distance − its: {apart}",
        f"sine, {_settings(_of(rows, ('adam', *gains)))}; 1,000 epochs printed"
        + _under(answer, f"for {UNIT}"),
    )


def _finer_meshes(rows: pd.DataFrame) -> Verdict | None:
    ended = {name: _ends(rows, name, "chamfer") for name in ("adam", "esgd", UNIT)}
    ended = {name: values for name, values in ended.items() if values}
    if not {"adam", "esgd"} <= set(ended):
        return None
    finer, asked, parts = [], [], []
    for solid in dict.fromkeys(rows["solid"]):
        middle = {
            name: float(np.median([value for key, value in values.items() if key[0] == solid]))
            for name, values in ended.items()
        }
        asked += [(name, solid) for name in middle if name != "adam"]
        finer += [
            (name, solid)
            for name, value in middle.items()
            if name != "adam" and value < FINER * middle["adam"]
        ]
        floor = float(rows[rows["solid"] == solid]["floor"].iloc[0])
        text = ", ".join(f"{name} {value:.3g}" for name, value in middle.items())
        parts.append(f"{solid} {text} (of itself {floor:.2g})")
    published = [one for one in asked if one[0] == "esgd"]
    answer = _share([one for one in finer if one[0] == "esgd"], published)
    if answer == "does not hold" and finer:
        answer = "holds only under"
    under = _under(answer, f"for: {', '.join(f'{name} on {solid}' for name, solid in finer)}")
    gains = {name: _gains(rows, name, "adam", "iou") for name in ("esgd", UNIT)}
    told = ", ".join(f"{name} {spread(values)}" for name, values in gains.items() if values)
    return Verdict(
        "C86",
        answer,
        f"Chamfer distance to the solid, medians: {'; '.join(parts)}; IoU − Adam's: {told}",
        f"gaussian, {_settings(_of(rows, tuple(ended)))}; more than 10 % below Adam's asked; 500 "
        f"epochs printed{under}",
    )
