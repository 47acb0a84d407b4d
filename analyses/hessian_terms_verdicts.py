"""What the parts of the Hessian and its smoothness say of the papers' claims."""

from typing import Any

import numpy as np
import pandas as pd

from analyses.smoothness import ACROSS
from analyses.study import Answer, Verdict
from analyses.words import spread

OPTIONS = {"octaves": "L", "omega": "ω", "sigma": "σ"}
NAMES = {
    "relu": "ReLU",
    "relu_pe": "ReLU-PE",
    "sine": "sine",
    "gaussian": "Gaussian",
    "tanh": "tanh",
}
SMOOTH = ("sine", "gaussian")
ROUGH = ("relu", "relu_pe")
# Where in the lists over ε = 1e-1, 1e-2, … the lengths stand.
HUNDREDTH, THOUSANDTH, NEXT = 1, 2, 3


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the rows say of the claims C19, C20, C24–C27 and C49."""
    parts = {str(name): part for name, part in rows.groupby("part")}
    found: list[Verdict] = []
    if "terms" in parts:
        found += [_gauss_newton(parts["terms"]), _three_kinds(parts["terms"])]
    if "smooth" in parts:
        found += [_twice(parts["smooth"]), _lipschitz(parts["smooth"])]
    if "points" in parts:
        found.append(_deltas(parts["points"]))
    if "kinks" in parts:
        found.append(_ends(parts["kinks"]))
    if "terms" in parts:
        found.append(_approximates(parts["terms"]))
    return found


def label(row: pd.Series) -> str:
    """Return a field in words: ``Gaussian σ=0.1``."""
    words = NAMES[row["act"]]
    for option, symbol in OPTIONS.items():
        if option in row and not pd.isna(row[option]):
            words += f" {symbol}={row[option]:g}"
    return words


def by_field(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows of each field, in their order."""
    labels = rows.apply(label, axis=1)
    return [(name, rows[labels == name]) for name in dict.fromkeys(labels)]


def settings(rows: pd.DataFrame) -> str:
    """Return what rows were measured on."""
    shapes = sorted({f"{row['depth']}×{row['width']}" for _, row in rows.iterrows()})
    images = ", ".join(sorted(set(rows["image"])))
    return f"{', '.join(shapes)}; {images}; {rows['seed'].nunique()} seeds"


def _gauss_newton(rows: pd.DataFrame) -> Verdict:
    rows = rows[(rows["loss"] == "mse") & rows["act"].isin(ROUGH)]
    last = _last(rows)
    parts = []
    for step in sorted(set(rows["step"])):
        group = rows[rows["step"] == step]
        parts.append(f"step {int(step)} {spread(group['residual'], percent=True)}")
    start, end = rows[rows["step"] == 0], rows[rows["step"] == last]
    answer: Answer = "holds only under"
    if rows["residual"].max() < 0.05:
        answer = "holds"
    elif end["residual"].median() > 0.5:
        answer = "does not hold"
    where = "not at the start, where the cross-layer part dominates"
    if "residual_spectral" in rows:
        where += (
            f"; in the 2-norm {spread(start['residual_spectral'].dropna(), percent=True)} there, "
            f"{spread(end['residual_spectral'].dropna(), percent=True)} at step {last}"
        )
    measured = f"‖H−G‖_F/‖H‖_F of ReLU and ReLU-PE: {'; '.join(parts)}"
    extra = _extra_zeros(end)
    return Verdict("C19", answer, measured, f"{settings(rows)}; L-BFGS; {where}{extra}")


def _extra_zeros(rows: pd.DataFrame) -> str:
    if "zero" not in rows:
        return ""
    more = (rows["zero_ggn"] - rows["zero"]).dropna()
    if not len(more):
        return ""
    return f"; G has {spread(more, percent=True)} points more numerical zeros than H there"


def _three_kinds(rows: pd.DataFrame) -> Verdict:
    rows = rows[rows["loss"] == "mse"]
    start = rows[rows["step"] == 0]
    parts = [
        f"{name} {_middle(group, 'ggn')} / {_middle(group, 'activation')} / "
        f"{_middle(group, 'cross')}"
        for name, group in by_field(start)
    ]
    exact = rows[rows["act"].isin(ROUGH)]["activation"].max() == 0
    holds = rows["identity"].max() < 1e-10 and exact
    measured = (
        f"the three parts sum to H within {rows['identity'].max():.0e} of a double backward; "
        f"GGN / φ″ / cross-layer at the start, in units of ‖H‖_F: {'; '.join(parts)}"
    )
    return Verdict("C20", "holds" if holds else "does not hold", measured, settings(rows))


def _middle(rows: pd.DataFrame, name: str) -> str:
    return f"{100 * rows[name].median():.0f} %"


def _approximates(rows: pd.DataFrame) -> Verdict:
    last = _last(rows[rows["loss"] == "mse"])
    end = rows[(rows["step"] == last) & (rows["width"] == rows["width"].min())]
    parts, good, total = [], [], 0
    for loss, group in end.groupby("loss", sort=False):
        for name, one in by_field(group):
            total += 1
            parts.append(f"{str(loss).upper()} {name} {spread(one['residual'], percent=True)}")
            good += [f"{str(loss).upper()} {name}"] if one["residual"].max() < 0.1 else []
    answer: Answer = "holds only under"
    if len(good) == total:
        answer = "holds"
    elif not good:
        answer = "does not hold"
    measured = f"‖H−G‖_F/‖H‖_F after {last} L-BFGS steps: {'; '.join(parts)}"
    where = f"below 10 % in every run for {', '.join(good) or 'none'}"
    return Verdict("C49", answer, measured, f"{settings(end)}; {where}")


def _last(rows: pd.DataFrame) -> int:
    """Return the last step that all images have."""
    counts = rows.groupby("step")["image"].nunique()
    return int(max(counts[counts == counts.max()].index))


def _column(rows: pd.DataFrame, name: str) -> Any:
    return np.array(rows[name].tolist(), dtype=float)


def _twice(rows: pd.DataFrame) -> Verdict:
    rows = rows[rows["direction"] == "random"]
    parts, smooth_falls, rough_stays = [], True, True
    for name, group in by_field(rows):
        missed = _column(group, "missed")
        slopes = np.log10(missed[:, THOUSANDTH] / missed[:, NEXT])
        act = group["act"].iloc[0]
        if act in ROUGH:
            stays = missed[:, HUNDREDTH : THOUSANDTH + 1]
            parts.append(f"{name} stays at {spread(stays.ravel(), percent=True)}")
            rough_stays &= bool(np.median(np.log10(stays[:, 0] / stays[:, 1])) < 1)
        else:
            parts.append(f"{name} falls as ε^{np.median(slopes):.2g}")
            smooth_falls &= bool(slopes.min() > 1.7) if act in SMOOTH else True
    answer: Answer = "holds" if smooth_falls and rough_stays else "does not hold"
    if smooth_falls != rough_stays:
        answer = "holds only under"
    lengths = "ε = 1e-2 and 1e-3 for ReLU, 1e-3 to 1e-4 for smooth fields"
    measured = f"‖central difference − Hv‖/‖Hv‖, {lengths}: {'; '.join(parts)}"
    steps = ", ".join(str(int(step)) for step in sorted(set(rows["step"])))
    return Verdict("C24", answer, measured, f"{settings(rows)}; unit directions; steps {steps}")


def _lipschitz(rows: pd.DataFrame) -> Verdict:
    constants, at_hundredth, bounded = {}, {}, True
    for name, group in by_field(rows):
        moved = _column(group, "moved")
        constants[name] = group["jump"].to_numpy() / ACROSS
        if group["act"].iloc[0] in SMOOTH:
            # Quotients at ε = 1e-4 and 1e-5 agree where they have a limit.
            ratios = moved[:, NEXT] / moved[:, NEXT + 1] / 10
            bounded &= bool(np.abs(ratios - 1).max() < 0.5)
        at_hundredth[name] = float(np.median(moved[:, HUNDREDTH]))
    rough = [name for name in constants if name.startswith("ReLU")]
    smooth = [name for name in constants if name.split()[0] in ("sine", "Gaussian")]
    if not rough or not smooth:
        return Verdict("C25", "not yet measured", "–", settings(rows))
    largest = max(float(constants[name].max()) for name in smooth)
    unbounded = all(float(np.median(constants[name])) > largest for name in rough)
    farther = min(at_hundredth[name] for name in smooth) > max(at_hundredth[name] for name in rough)
    answer: Answer = "does not hold"
    if bounded and unbounded:
        answer = "holds only under" if farther else "holds"
    measured = (
        f"‖ΔH‖/(ε‖H‖) over ε = {ACROSS:g} where a pre-activation first changes its sign: "
        f"{'; '.join(f'{name} {spread(each)}' for name, each in constants.items())}"
    )
    moves = "; ".join(f"{name} {100 * each:.2g} %" for name, each in at_hundredth.items())
    where = f"over ε = 0.01 H moves by {moves}: continuous is not slowly varying"
    return Verdict("C25", answer, measured, f"{settings(rows)}; {where}")


def _deltas(rows: pd.DataFrame) -> Verdict:
    sizes = sorted(set(rows["size"]))
    parts, ratios = [], []
    for step in sorted(set(rows["step"])):
        for name, group in by_field(rows[rows["step"] == step]):
            medians = []
            for size in sizes:
                missed = _column(group[group["size"] == size], "missed")[:, 0]
                medians.append(float(np.median(missed)))
            parts.append(
                f"step {int(step)} {name} {', '.join(f'{100 * one:.2g}' for one in medians)} %"
            )
            ratios.append(medians[-1] / medians[-2])
    answer: Answer = "holds only under"
    if min(ratios) >= 0.7 and max(ratios) <= 1.4:
        answer = "holds"
    elif np.median(ratios) < 0.5:
        answer = "does not hold"
    points = ", ".join(f"{int(size)}²" for size in sizes)
    measured = f"share of the gradient's change at ε = 1e-2 that Hv misses, {points} points: "
    where = f"one field each, trained on 50×50; the last doubling changes it {spread(ratios)} times"
    return Verdict("C26", answer, measured + "; ".join(parts), f"{settings(rows)}; {where}")


def _ends(rows: pd.DataFrame) -> Verdict:
    parts, excess = [], {"rough": 0, "smooth": 0}
    runs = {"rough": 0, "smooth": 0}
    for name, group in by_field(rows):
        end = _column(group, "near_end")
        # As many as lie below 1e-2 of a unit's size, thinned a hundredfold: a smooth density.
        expected = end[:, 3] / 100
        found = end[:, 1]
        kind = "rough" if group["act"].iloc[0] in ROUGH else "smooth"
        excess[kind] += int((found > expected + 4 * np.sqrt(expected + 1)).sum())
        runs[kind] += len(group)
        parts.append(
            f"{name} {spread(found)} pre-activations within 1e-4 of a kink where "
            f"{spread(expected)} are expected"
        )
    if not runs["rough"]:
        return Verdict("C27", "not yet measured", "–", settings(rows))
    answer: Answer = "does not hold"
    if excess["rough"] and not excess["smooth"]:
        answer = "holds" if excess["rough"] == runs["rough"] else "holds only under"
    done = f"{int(rows['converged'].sum())} of {len(rows)} runs had converged"
    where = (
        f"after at most {int(rows['iterations'].max())} L-BFGS iterations, {done}; an excess in "
        f"{excess['rough']} of {runs['rough']} ReLU runs"
    )
    return Verdict("C27", answer, "; ".join(parts), f"{settings(rows)}; {where}")
