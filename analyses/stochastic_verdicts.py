"""What curves on batches say of the papers' comparisons of optimizers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analyses.convergence_verdicts import ends, pairs, settings_of
from analyses.study import Answer, Verdict
from analyses.words import bootstrap_mean, spread

CURVATURE = ("esgd", "adahessian E", "adahessian J", "kfac", "shampoo")
SECOND_ORDER = ("lbfgs", "nonlinear_cg", "gauss_newton")
# P3 Fig. 1d-e: 29.36 - 26.61 dB.
PRINTED_GAIN = 2.75
# C45's and C136's own tolerances, dB.
REFRESH, INFINITY = 0.2, 0.3
# A run that gains less, in dB, is not said to train.
GAIN = 5.0
# Shares of pairs, and of bootstrap resamples, that claims.md asks for.
EIGHT_OF_NINE, SEVEN_OF_EIGHT, NEARLY_ALL = 8 / 9, 7 / 8, 0.95
RESAMPLES = 2000


_OPPOSITE: dict[Answer, Answer] = {
    "holds": "does not hold",
    "does not hold": "holds",
    "holds only under": "holds only under",
}


def stochastic_verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Judge the optimizers on batches."""
    batch = rows[rows["part"] == "batch"]
    init = batch.get("init", pd.Series(index=batch.index, dtype=object))
    plain = batch[init.isna()]
    found = [
        _adam_beats_sgd(plain),
        _beat(plain, "C69", "gaussian", (*CURVATURE, "esgd ε=1")),
        _rank_of_esgd(plain),
        _per_step_and_second(plain),
        _beat(plain, "C72", "gaussian", ("adahessian E", "shampoo")),
        _beat(plain, "C73", "sine", (*CURVATURE, "esgd ε=1")),
        _beat(plain, "C74", "wavelet", CURVATURE),
        _jacobi(plain),
        _refresh(plain),
        _of_autoencoders(plain),
        _wavelet(rows[rows["part"] == "epochs"]),
        _adam_on_encodings(plain),
        _below_esgd(plain),
        _encodings_gain(plain),
        _second_order(plain),
        _train(plain),
        _kfac_on_sine(plain, batch[init.notna()]),
        _infinity_norm(plain),
    ]
    return [one for one in found if one is not None]


def _batch(rows: pd.DataFrame) -> str:
    steps = max((row[-1] for row in rows["step"] if row), default=0)
    return f"batches, first {steps} steps; {settings_of(rows)}"


def _of(rows: pd.DataFrame, act: str, methods: Sequence[str]) -> pd.DataFrame:
    return rows[(rows["act"] == act) & rows["method"].isin(list(methods))]


def _most(gaps: Sequence[float], needed: float) -> Answer:
    """Return holds if so large a share of pairs is above 0, does not hold if none is."""
    share = float(np.mean(np.asarray(gaps) > 0))
    return "holds" if share >= needed else "holds only under" if share else "does not hold"


def _sides(gaps: Sequence[float], *, level: float = 0.0) -> Answer:
    """Return holds if every gap is above a level, does not hold if none is."""
    if min(gaps) > level:
        return "holds"
    return "does not hold" if max(gaps) <= level else "holds only under"


def _share(holding: Sequence[object], asked: Sequence[object]) -> Answer:
    if len(holding) == len(asked):
        return "holds"
    return "holds only under" if holding else "does not hold"


def _adam_beats_sgd(rows: pd.DataFrame) -> Verdict | None:
    parts, answers, ties = [], [], []
    for act in dict.fromkeys(rows["act"]):
        gaps, others = (pairs(rows, act, "adam", name) for name in ("sgd", "sgd momentum"))
        if gaps and others:
            answers.append(_most(gaps, NEARLY_ALL))
            ties.append(_most(others, NEARLY_ALL))
            parts.append(f"{act} {spread(gaps)} (momentum {spread(others)})")
    if not answers:
        return None
    chosen = rows[rows["method"].isin(["adam", "sgd", "sgd momentum"])]
    answer: Answer = "does not hold" if "holds" not in answers else "holds only under"
    answer = "holds" if {*answers, *ties} == {"holds"} else answer
    return Verdict("C62", answer, f"Adam − SGD in dB: {'; '.join(parts)}", _batch(chosen))


def _beat(rows: pd.DataFrame, claim: str, act: str, methods: Sequence[str]) -> Verdict | None:
    gaps = {name: pairs(rows, act, name, "adam") for name in methods}
    gaps = {name: values for name, values in gaps.items() if values}
    if not gaps:
        return None
    ahead = [name for name, values in gaps.items() if _most(values, EIGHT_OF_NINE) == "holds"]
    text = "; ".join(f"{name} {spread(values)}" for name, values in gaps.items())
    where = f"; ahead in 8 of 9 pairs: {', '.join(ahead) or 'none'}"
    settings = f"{act}, {_batch(_of(rows, act, ('adam', *gaps)))}{where}"
    return Verdict(claim, _share(ahead, list(gaps)), f"− Adam in dB: {text}", settings)


def _rank_of_esgd(rows: pd.DataFrame) -> Verdict | None:
    found = {name: ends(rows, "gaussian", name) for name in CURVATURE}
    found = {name: values for name, values in found.items() if values}
    if "esgd" not in found:
        return None
    medians = {name: float(np.median(list(values.values()))) for name, values in found.items()}
    ranking = sorted(medians, key=lambda name: -medians[name])
    text = ", ".join(f"{name} {medians[name]:.1f}" for name in ranking)
    first = _first_in(found, "esgd")
    answer: Answer = "holds" if first >= NEARLY_ALL else "does not hold"
    return Verdict(
        "C70",
        answer,
        f"ESGD is number {ranking.index('esgd') + 1}, first in {first:.0%} of resamples: {text} dB",
        f"gaussian, {_batch(_of(rows, 'gaussian', CURVATURE))}",
    )


def _first_in(found: dict[str, dict[tuple[str, int], float]], name: str) -> float:
    """Return in how many resamples of the pairs a method has the best mean."""
    keys = sorted(set.intersection(*(set(values) for values in found.values())))
    # A run that diverged is as bad as none.
    table = np.array([[max(values[key], -1e3) for key in keys] for values in found.values()])
    draws = np.random.default_rng(0).integers(len(keys), size=(RESAMPLES, len(keys)))
    means = table[:, draws].mean(axis=2)
    return float(np.mean(means.argmax(axis=0) == list(found).index(name)))


def _per_step_and_second(rows: pd.DataFrame) -> Verdict | None:
    gaps = {name: pairs(rows, "gaussian", name, "esgd") for name in CURVATURE[1:3]}
    if not all(gaps.values()):
        return None
    chosen = _of(rows, "gaussian", CURVATURE[:3])
    chosen = chosen[chosen["wall"].map(bool)]
    seconds = chosen.groupby("method")["wall"].apply(
        lambda column: np.median([walls[-1] - walls[0] for walls in column])
    )
    costs = {name: float(seconds[name] / seconds["esgd"]) for name in gaps if name in seconds}
    better = [name for name, values in gaps.items() if min(values) > 0]
    dearer = [name for name, cost in costs.items() if cost > 1]
    answer = _share(better, list(gaps))
    answer = answer if len(dearer) == len(gaps) else "does not hold"
    text = "; ".join(f"{name} − ESGD {spread(values)} dB" for name, values in gaps.items())
    cost = ", ".join(f"{cost:.2f}" for cost in costs.values())
    return Verdict(
        "C71",
        answer,
        f"at equal steps {text}; {cost} times its seconds",
        f"gaussian, {_batch(chosen)}; products every step against every 100",
    )


def _jacobi(rows: pd.DataFrame) -> Verdict | None:
    true = pairs(rows, "gaussian", "adahessian J", "adahessian E")
    published = pairs(rows, "gaussian", "adahessian J published", "adahessian E")
    if not true or not published:
        return None
    answer: Answer = "does not hold"
    if min(published) > 0:
        answer = "holds only under"
    if min(true) > 0:
        answer = "holds"
    measured = (
        f"AdaHessian − AdaHessian (E) in dB: J {spread(true)}, "
        f"J as published, √E∣H v∣, {spread(published)}"
    )
    chosen = _of(rows, "gaussian", ("adahessian E", "adahessian J", "adahessian J published"))
    return Verdict("C39", answer, measured, f"gaussian, {_batch(chosen)}")


def _refresh(rows: pd.DataFrame) -> Verdict | None:
    parts, worst = [], []
    for act in dict.fromkeys(rows["act"]):
        gaps = pairs(rows, act, "esgd", "adahessian E")
        between = pairs(rows, act, "esgd N=10", "adahessian E")
        published = pairs(rows, act, "esgd published", "adahessian E")
        if gaps:
            worst.append(float(np.median(gaps)))
            parts.append(f"{act} {spread(gaps)}")
        if gaps and between and published:
            parts[-1] += f" (N = 10 {spread(between)}, N = 100 as published {spread(published)})"
    if not worst:
        return None
    chosen = rows[rows["method"].isin(["esgd", "esgd N=10", "esgd published", "adahessian E"])]
    return Verdict(
        "C45",
        _sides(worst, level=-REFRESH),
        f"ESGD with N = 100 − N = 1 in dB: {'; '.join(parts)}",
        f"within {REFRESH} dB asked; {_batch(chosen)}",
    )


def _of_autoencoders(rows: pd.DataFrame) -> Verdict | None:
    rivals = ("sgd", "rmsprop", "adahessian J")
    parts, gaps = [], []
    for act in dict.fromkeys(rows["act"]):
        found = {name: pairs(rows, act, "esgd", name) for name in rivals}
        if all(found.values()):
            gaps += [value for values in found.values() for value in values]
            text = ", ".join(f"{name} {spread(values)}" for name, values in found.items())
            parts.append(f"{act}: {text}")
    if not gaps:
        return None
    chosen = rows[rows["method"].isin(["esgd", *rivals])]
    settings = f"carried over to fields, images alone; {_batch(chosen)}"
    answer = _most(gaps, SEVEN_OF_EIGHT)
    return Verdict("C50", answer, f"ESGD − each in dB: {'; '.join(parts)}", settings)


def _wavelet(rows: pd.DataFrame) -> Verdict | None:
    if not len(rows):
        return None
    printed, tuned = (
        pairs(rows, "wavelet", f"esgd {rates}", f"adam {rates}") for rates in ("printed", "tuned")
    )
    ended = {
        name: list(ends(rows, "wavelet", name).values()) for name in dict.fromkeys(rows["method"])
    }
    if not printed or not tuned:
        return None
    mean, low, high = bootstrap_mean(tuned)
    inside = mean > 0 and low <= PRINTED_GAIN <= high
    answer: Answer = "holds" if inside else "does not hold"
    if answer == "does not hold" and (mean > 0 or np.mean(printed) > 0):
        answer = "holds only under"
    text = ", ".join(f"{name} {spread(values)}" for name, values in ended.items())
    measured = (
        f"ESGD − Adam {spread(printed)} dB at the papers' rates, {mean:.2f} "
        f"[{low:.2f}, {high:.2f}] on average at tuned ones (printed {PRINTED_GAIN}); {text} dB"
    )
    steps = max(row[-1] for row in rows["step"] if row)
    return Verdict("C68", answer, measured, f"wavelet, {steps} steps; {settings_of(rows)}")


def _adam_on_encodings(rows: pd.DataFrame) -> Verdict | None:
    gaps = pairs(rows, "relu_pe", "adam", "esgd")
    if not gaps:
        return None
    settings = _batch(_of(rows, "relu_pe", ("adam", "esgd")))
    answer = _most(gaps, EIGHT_OF_NINE)
    return Verdict("C76", answer, f"Adam − ESGD {spread(gaps)} dB on ReLU-PE L=8", settings)


def _below_esgd(rows: pd.DataFrame) -> Verdict | None:
    gaps = {name: pairs(rows, "gaussian", name, "esgd") for name in ("kfac", "shampoo")}
    if not all(gaps.values()):
        return None
    below = [name for name, values in gaps.items() if max(values) < 0]
    text = "; ".join(f"{name} − ESGD {spread(values)} dB" for name, values in gaps.items())
    settings = f"gaussian, {_batch(_of(rows, 'gaussian', ('esgd', *gaps)))}; type-2 K-FAC, Alg. 4"
    return Verdict("C77", _share(below, list(gaps)), text, settings)


def _encodings_gain(rows: pd.DataFrame) -> Verdict | None:
    plain, adam = (pairs(rows, "relu_pe", "esgd", name) for name in ("sgd", "adam"))
    if not plain or not adam:
        return None
    answer: Answer = _OPPOSITE[_sides(plain)]
    measured = f"ESGD − SGD {spread(plain)} dB, ESGD − Adam {spread(adam)} dB on ReLU-PE L=8"
    settings = f"an image, not a radiance field; {_batch(_of(rows, 'relu_pe', ('esgd', 'sgd')))}"
    return Verdict("C92", answer, measured, settings)


def _second_order(rows: pd.DataFrame) -> Verdict | None:
    parts, gaps = [], []
    for act in dict.fromkeys(rows["act"]):
        for name in SECOND_ORDER:
            found = pairs(rows, act, "adam", name)
            gaps += found
            parts += [f"{act} {name} {spread(found)}"] if found else []
    if not gaps:
        return None
    settings = _batch(rows[rows["method"].isin(["adam", *SECOND_ORDER])])
    return Verdict(
        "C111",
        _sides(gaps),
        f"Adam − each in dB at equal steps: {'; '.join(parts)}",
        f"{settings}; a step of theirs takes more time; one batch size",
    )


def _train(rows: pd.DataFrame) -> Verdict | None:
    asked = ("adahessian E", "esgd", "kfac", "lbfgs")
    gains: dict[str, list[float]] = {name: [] for name in asked}
    for row in rows[rows["method"].isin(asked)].to_dict("records"):
        if row["act"] in ("gaussian", "sine"):
            ended = row["psnr"][-1] - row["psnr"][0] if row["psnr"] else -np.inf
            gains[row["method"]].append(ended)
    if not all(gains.values()):
        return None
    curvature = all(min(gains[name]) > GAIN for name in asked[:-1])
    fails = [gain <= GAIN for gain in gains["lbfgs"]]
    answer: Answer = "holds" if curvature and all(fails) else "does not hold"
    if answer == "does not hold" and curvature and any(fails):
        answer = "holds only under"
    text = ", ".join(f"{name} {spread(values)}" for name, values in gains.items())
    chosen = rows[rows["method"].isin(asked) & rows["act"].isin(["gaussian", "sine"])]
    settings = f"to train: {GAIN:g} dB in every run; {_batch(chosen)}"
    return Verdict("C135", answer, f"gain over the start in dB: {text}", settings)


def _kfac_on_sine(rows: pd.DataFrame, other: pd.DataFrame) -> Verdict | None:
    names = [name for name in dict.fromkeys(rows["method"]) if name.startswith("kfac")]
    gaps = {name: pairs(rows, "sine", name, "adam") for name in names}
    gaps = {name: values for name, values in gaps.items() if values}
    if not gaps:
        return None
    if len(other):
        gaps["Xavier init"] = pairs(other, "sine", "kfac", "adam")
        gaps = {name: values for name, values in gaps.items() if values}
    text = "; ".join(f"{name} {spread(values)}" for name, values in gaps.items())
    every = [-gap for values in gaps.values() for gap in values]
    settings = f"sine, {_batch(_of(rows, 'sine', ('adam', *names)))}; type-2, damping 0.1"
    return Verdict("C123", _sides(every), f"− Adam in dB: {text}", settings)


def _infinity_norm(rows: pd.DataFrame) -> Verdict | None:
    parts, middle = [], []
    for act in dict.fromkeys(rows["act"]):
        gaps = pairs(rows, act, "esgd_max", "esgd")
        if gaps:
            parts.append(f"{act} {spread(gaps)}")
            middle.append(float(np.median(gaps)))
    if not middle:
        return None
    settings = _batch(rows[rows["method"].isin(["esgd", "esgd_max"])])
    answer = _sides(middle, level=-INFINITY)
    return Verdict("C136", answer, f"ESGD-max − ESGD in dB: {'; '.join(parts)}", settings)
