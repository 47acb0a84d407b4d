"""What the zeros of Hessian–vector products say of the papers' claims C52–C59, C61 and C129."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analyses.study import Answer, Verdict
from analyses.words import spread

SMOOTH = ("sine", "gaussian", "wavelet", "sinc")
RELU = ("relu", "relu_pe")
# One entry in so many may cancel to zero by rounding alone: it is no structure.
CHANCE = 1e-5
# Of H v for v = H⁻¹ e_k: what counts as another entry, relative to the largest.
REST = 1e-9
# Thresholds of claims.md.
MOSTLY = 0.5
SAME_SHARE = 0.02
STEADY = 0.10
# Shares this near are equal: seeds differ by as much.
EQUAL_SHARE = 0.01
# Qualities are equal up to this many dB.
EQUAL_PSNR = 1.0


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the rows tell of each claim; claims whose rows are missing are left out."""
    judges: tuple[Callable[[pd.DataFrame], Verdict | None], ...] = (
        _dense,
        _sparse,
        _entropy,
        _order,
        _picture,
        _persists,
        _octaves,
        _rescaled,
        _measure_zero,
        _noisy,
    )
    found = (judge(rows) for judge in judges)
    return [one for one in found if one is not None]


def _paths(rows: pd.DataFrame, acts: tuple[str, ...] = (), **more: object) -> pd.DataFrame:
    """Return the checkpoints of the runs of some activations."""
    if "kind" not in rows:
        return rows[:0]
    chosen = rows[rows["kind"] == "path"]
    if not len(chosen):
        return chosen
    for name, value in more.items():
        chosen = chosen[chosen[name] == value]
    return chosen[chosen["act"].isin(acts)] if acts and len(chosen) else chosen


def _of_kind(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    return rows[rows["kind"] == kind] if "kind" in rows else rows[:0]


def label(act: str, octaves: float | None) -> str:
    """Return the name of a field."""
    if act != "relu_pe":
        return {"relu": "ReLU"}.get(act, act)
    return f"ReLU-PE L={int(octaves or 0)}"


def _labelled(rows: pd.DataFrame) -> pd.DataFrame:
    if not len(rows):
        return rows.assign(field="", step=0, steps=0)
    octaves = rows["octaves"] if "octaves" in rows else pd.Series(np.nan, index=rows.index)
    names = [label(*pair) for pair in zip(rows["act"], octaves, strict=True)]
    return rows.assign(field=names)


def _setting(rows: pd.DataFrame) -> str:
    steps = int(rows["step"].max())
    return (
        f"5 linear maps, chelsea RGB, batches of the training, Rademacher v, "
        f"{rows['seed'].nunique()} seeds, {' and '.join(sorted(set(rows['optimizer'])))}, "
        f"steps 0 … {steps}"
    )


def _dense(rows: pd.DataFrame) -> Verdict | None:
    """C52: dense for smooth fields and any v."""
    smooth, counter = _paths(rows, SMOOTH), _of_kind(rows, "counter")
    if not len(smooth) or not len(counter):
        return None
    worst32, worst64 = smooth["zero"].max(), smooth["zero_float64"].max()
    random = max(worst64, counter["random_zero"].max())
    single = int((counter["rest"] <= REST).sum())
    clean = worst32 <= CHANCE and random <= CHANCE
    answer: Answer = "does not hold" if not clean else "holds only under" if single else "holds"
    measured = (
        f"random v: exact zeros at most {_percent(worst32)} in float32, {_percent(worst64)} in "
        f"float64 ({len(smooth)} states); v = H⁻¹e_k: one entry of {int(counter['size'].iloc[0])} "
        f"above {REST:g} max in {single} of {len(counter)} networks, the rest at most "
        f"{counter['rest'].max():.0e}"
    )
    where = "for random v, not for any v: H is invertible" if clean and single else "random v"
    return Verdict("C52", answer, measured, f"{_setting(smooth)}; 4×16 in float64; {where}")


def _sparse(rows: pd.DataFrame) -> Verdict | None:
    """C53: sparse for every ReLU field."""
    small, large = _of_kind(rows, "small"), _paths(rows, RELU)
    if not len(small):
        return None
    least = min(each[0] for each in small["quantiles"])
    if len(large):
        least = min(least, float(large["zero"].min()))
    parts = [
        f"{_shape(row)} {_percent(row['quantiles'][2])} "
        f"[{_percent(row['quantiles'][0])}, {_percent(row['quantiles'][4])}]"
        for row in small.to_dict("records")
    ]
    none, total = int(small["without_zeros"].sum()), int(small["seeds"].sum())
    answer: Answer = "holds" if least > MOSTLY else "holds only under"
    answer = "does not hold" if least == 0 else answer
    measured = f"zeros at the start: {'; '.join(parts)}; none at all in {none} of {total} networks"
    if len(large):
        start, end = large[large["step"] == 0], _last(large)
        measured += (
            f"; 256 wide {spread(start['zero'], percent=True)} at the start, "
            f"{spread(end['zero'], percent=True)} at the end"
        )
    count = int(small["seeds"].iloc[0])
    return Verdict("C53", answer, measured, f"{count} seeds a shape, camera, MSE; depends on "
                   "depth, width, encoding, batch and training")  # fmt: skip


def _shape(row: Mapping[Any, Any]) -> str:
    encoded = f" L={int(row['octaves'])}" if row["octaves"] else ""
    more = " biases > 0" if row["positive"] else ""
    return f"{int(row['depth'])}×{int(row['width'])}{encoded}{more}"


def _entropy(rows: pd.DataFrame) -> Verdict | None:
    """C54: the same under cross-entropy."""
    paths = _paths(rows)
    if not len(paths):
        return None
    gap = (paths["zero_bce"] - paths["zero"]).abs()
    same = int((paths["bce_differs"] == 0).sum())
    measured = (
        f"|share under BCE − share under MSE| at most {_percent(gap.max())}; the same entries are "
        f"zero in {same} of {len(paths)} states, else at most {int(paths['bce_differs'].max())} "
        "entries differ"
    )
    answer: Answer = "holds" if gap.max() <= SAME_SHARE else "does not hold"
    return Verdict("C54", answer, measured, _setting(paths) + "; as C52 and C53 hold for MSE")


def _layer_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over layers and checkpoints, as the papers' bars, by field and seed."""
    named = _labelled(rows)
    named = named.assign(mean=[float(np.mean(each)) for each in named["zero_by_layer"]])
    return named.groupby(["field", "seed"])["mean"].mean().unstack("seed")


def _order(rows: pd.DataFrame) -> Verdict | None:
    """C55: ReLU > PE4 > PE8 > 0 = sine = Gaussian through training by ESGD."""
    paths = _paths(rows, optimizer="esgd")
    if not len(paths):
        return None
    paths = paths[paths["steps"] == _common_steps(paths)]
    means = _layer_means(paths)
    order = ["ReLU", "ReLU-PE L=4", "ReLU-PE L=8"]
    smooth = [name for name in ("sine", "gaussian") if name in means.index]
    if not smooth or not set(order) <= set(means.index):
        return None
    dense = means.loc[smooth].to_numpy().max() <= CHANCE
    sparse = means.loc[order].to_numpy().min() > 0
    ordered = (np.diff(means.loc[order].to_numpy(), axis=0) < 0).all()
    answer: Answer = "holds" if dense and sparse and ordered else "holds only under"
    answer = answer if dense and sparse else "does not hold"
    parts = [f"{name} {spread(means.loc[name], percent=True)}" for name in [*order, *smooth]]
    where = "in this order for every seed" if ordered else "not in this order for every seed"
    return Verdict(
        "C55",
        answer,
        f"mean over layers and checkpoints: {'; '.join(parts)}",
        f"{_setting(paths)}, the papers' rates; {where}; the papers print no numbers",
    )


def _common_steps(paths: pd.DataFrame) -> float:
    """Return the length of most runs."""
    return float(paths["steps"].mode().iloc[0])


def _picture(rows: pd.DataFrame) -> Verdict | None:
    """C56: the penultimate layer's matrix is mostly zero for ReLU-PE, not for Gaussian."""
    paths = _labelled(_paths(rows, optimizer="esgd"))
    paths = paths[paths["steps"] == _common_steps(paths)] if len(paths) else paths
    encoded = paths[paths["field"].isin(["ReLU-PE L=4", "ReLU-PE L=8"])]
    bell = paths[paths["field"] == "gaussian"]
    if not len(encoded) or not len(bell):
        return None
    parts, mostly = [], []
    for when, chosen in (("start", encoded[encoded["step"] == 0]), ("end", _last(encoded))):
        shares = chosen["zero_by_layer"].map(lambda each: each[-2])
        mostly.append(bool(shares.min() > MOSTLY))
        parts.append(
            f"{when} {spread(shares, percent=True)} zero ("
            f"{spread(chosen['zero_rows'], percent=True)} of rows, "
            f"{spread(chosen['zero_columns'], percent=True)} of columns)"
        )
    inside = encoded["zeros_in_lines"].dropna()
    other = bell["zero_by_layer"].map(lambda each: each[-2]).max()
    measured = (
        f"ReLU-PE: {'; '.join(parts)}; of its zeros {spread(inside, percent=True)} lie in zero "
        f"rows and columns; Gaussian at most {_percent(other)}"
    )
    clean = other <= CHANCE and bell[["zero_rows", "zero_columns"]].to_numpy().max() == 0
    answer: Answer = "holds" if all(mostly) else "holds only under" if any(mostly) else (
        "does not hold"
    )  # fmt: skip
    answer = answer if clean else "does not hold"
    where = "mostly zero after training, not at the start" if mostly == [False, True] else (
        "whole rows and columns: dead units"
    )  # fmt: skip
    return Verdict("C56", answer, measured, f"{_setting(encoded)}; {where}")


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["step"] == rows["steps"]]


def _persists(rows: pd.DataFrame) -> Verdict | None:
    """C57: the share stays."""
    paths = _labelled(_paths(rows, RELU))
    if not len(paths):
        return None
    parts, changes, later = [], [], []
    keys = ["field", "optimizer", "steps", "seed"]
    for key, run in paths.groupby(keys):
        ordered = run.sort_values("step")["zero"].to_numpy()
        changes.append((*key, float(ordered[-1] - ordered[0])))
        later.append(float(np.ptp(ordered[1:])))
    table = pd.DataFrame(changes, columns=[*keys, "change"])
    shown = table[table["field"].isin(["ReLU", "ReLU-PE L=4", "ReLU-PE L=8"])]
    for (name, optimizer), group in shown.groupby(["field", "optimizer"]):
        parts.append(f"{name} by {optimizer} {spread(group['change'], percent=True)} points")
    steady = table["change"].abs().max() <= STEADY
    falls = table["change"].min() < -STEADY
    answer: Answer = "holds" if steady else "does not hold" if falls else "holds only under"
    measured = (
        f"change from the start to the end: {'; '.join(parts)}; from the first checkpoint after "
        f"the start on it moves by {spread(later, percent=True)} points"
    )
    return Verdict("C57", answer, measured, _setting(paths) + "; it grows, then stays"
                   if answer == "holds only under" else _setting(paths))  # fmt: skip


def _octaves(rows: pd.DataFrame) -> Verdict | None:
    """C58: more octaves, fewer zeros."""
    paths = _paths(rows, ("relu_pe",), optimizer="esgd")
    if not len(paths) or paths["octaves"].nunique() < 3:
        return None
    seeds = paths.groupby("octaves")["seed"].unique()
    paths = paths[paths["seed"].isin(set.intersection(*map(set, seeds)))]
    if not len(paths):
        return None
    end = min(paths.groupby(["octaves", "seed"])["step"].max())
    parts, monotone = [], []
    for when, step in (("start", 0), (f"step {int(end)}", end)):
        chosen = paths[paths["step"] == step].groupby("octaves")["zero"]
        medians = chosen.median().sort_index()
        differences = np.diff(medians.to_numpy())
        monotone.append(
            bool((differences < EQUAL_SHARE).all() or (differences > -EQUAL_SHARE).all())
        )
        told = ", ".join(f"L={int(name)} {_percent(value)}" for name, value in medians.items())
        parts.append(f"{when}: {told}")
    answer: Answer = "holds" if all(monotone) else "holds only under" if any(monotone) else (
        "does not hold"
    )  # fmt: skip
    names = [name for name, one in zip(("start", "end"), monotone, strict=True) if one]
    where = f"monotone at the {' and the '.join(names)}" if names else "monotone at neither end"
    where += f", {_percent(EQUAL_SHARE)} apart being equal"
    shown = paths[paths["step"].isin([0, end])]
    return Verdict("C58", answer, "; ".join(parts), f"{_setting(shown)}; medians; {where}")


def _rescaled(rows: pd.DataFrame) -> Verdict | None:
    """C59: only few gradient components are rescaled."""
    paths = _paths(rows, RELU)
    if not len(paths):
        return None
    missed = paths["zero_where_gradient"]
    dead = paths["gradient_zero_where_zero"].dropna()
    answer: Answer = "does not hold" if missed.max() <= CHANCE else "holds only under"
    answer = "holds" if missed.median() > MOSTLY else answer
    measured = (
        f"live components (g ≠ 0) with H v = 0: {_percent(missed.median())}, at most "
        f"{_percent(missed.max())}; zero entries of H v whose gradient is zero too: "
        f"{_percent(dead.min())} or more, in {len(dead)} states"
    )
    return Verdict("C59", answer, measured, _setting(paths))


def _measure_zero(rows: pd.DataFrame) -> Verdict | None:
    """C61: smooth activations are zero nowhere, ReLU on a positive share."""
    smooth, rough = _paths(rows, SMOOTH), _paths(rows, RELU)
    if not len(smooth) or not len(rough):
        return None

    def most(name: str, chosen: pd.DataFrame) -> float:
        return max(float(np.max(each)) for each in chosen[f"phi_zero_{name}"])

    single, double = most("float32", smooth), most("float64", smooth)
    start = most("float64", smooth[smooth["step"] == 0])
    dead = max(float(np.max(each)) for each in smooth["dead_float32"])
    least = min(float(np.min(each[:2])) for each in rough["phi_zero_float64"])
    answer: Answer = "does not hold" if least == 0 else "holds"
    if answer == "holds" and max(single, double) > 0:
        answer = "holds only under"
    by_act = [f"{act} {_percent(most('float32', group))}" for act, group in smooth.groupby("act")]
    measured = (
        f"exact zeros of φ, φ′ or φ″ in a layer: smooth at most {_percent(single)} in float32 "
        f"({', '.join(by_act)}), {_percent(double)} in float64 ({_percent(start)} at the start); "
        f"ReLU φ and φ′ at least {_percent(least)}; smooth units zero on every point "
        f"{_percent(dead)}"
    )
    where = "; in exact arithmetic, not where exp underflows" if single else ""
    return Verdict("C61", answer, measured, _setting(smooth) + where)


def _noisy(rows: pd.DataFrame) -> Verdict | None:
    """C129: encodings make noisy gradients, against sine at equal quality."""
    paths = _paths(rows, optimizer="adam")
    if "gradient_noise" not in paths or not len(paths):
        return None
    named = _labelled(paths[paths["step"] > 0])
    parts, noisier, rougher = [], [], []
    for name in ("ReLU-PE L=4", "ReLU-PE L=8"):
        pairs = equal_quality(named[named["field"] == name], named[named["field"] == "sine"])
        if not pairs:
            continue
        noise = [first["gradient_noise"] / second["gradient_noise"] for first, second in pairs]
        rough = [first["roughness"] / second["roughness"] for first, second in pairs]
        noisier += noise
        rougher += rough
        quality = spread([first["psnr"] for first, _ in pairs], digits=3)
        parts.append(
            f"{name} over sine at {quality} dB: noise of the mini-batch gradient × "
            f"{spread(noise)}, roughness of ∇f × {spread(rough)}"
        )
    if not parts:
        return None
    above = [min(ratios) > 1 for ratios in (noisier, rougher)]
    answer: Answer = "holds" if all(above) else "does not hold"
    if any(above) and not all(above):
        answer = "holds only under"
    where = [text for text, one in zip(("the gradient by θ", "∇f"), above, strict=True) if one]
    told = f"higher in every pair for {' and '.join(where)}" if where else "not in every pair"
    return Verdict("C129", answer, "; ".join(parts), f"{_setting(paths)}, Adam at the papers' "
                   f"rates; {told}")  # fmt: skip


def equal_quality(first: pd.DataFrame, second: pd.DataFrame) -> list[tuple[pd.Series, pd.Series]]:
    """Return, for each seed of both, the pair of checkpoints whose PSNR is nearest."""
    pairs = []
    for seed in sorted(set(first["seed"]) & set(second["seed"])):
        ones = first[(first["seed"] == seed) & first["gradient_noise"].notna()]
        others = second[(second["seed"] == seed) & second["gradient_noise"].notna()]
        if not len(ones) or not len(others):
            continue
        gaps = np.abs(ones["psnr"].to_numpy()[:, None] - others["psnr"].to_numpy())
        place, other = np.unravel_index(gaps.argmin(), gaps.shape)
        if gaps[place, other] <= EQUAL_PSNR:
            pairs.append((ones.iloc[int(place)], others.iloc[int(other)]))
    return pairs


def _percent(share: float) -> str:
    if 0 < share < 1e-3:
        return f"{100 * share:.1g} %"
    return f"{100 * share:.4g} %"
