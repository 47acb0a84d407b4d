"""What the anatomy of zeros says of the papers' claims C21, C22 and C23."""

import pandas as pd

from analyses.hessian_terms_verdicts import by_field, settings
from analyses.study import Answer, Verdict
from analyses.words import spread

# Decimal logarithms below which a quotient of two numbers says nothing.
UNDERFLOW = -100.0


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the rows say of the claims C21–C23."""
    parts = {str(name): part for name, part in rows.groupby("part")}
    judges = {"zeros": _units_vanish, "units": _every_layer, "bells": _keep_rank}
    return [judge(parts[name]) for name, judge in judges.items() if name in parts]


def _units_vanish(rows: pd.DataFrame) -> Verdict:
    last = int(rows["step"].value_counts().loc[lambda counts: counts == counts.max()].index.max())
    rows = rows[rows["step"] <= last]
    zeros = rows["structural"] + rows["others"]
    of_rows = rows["dead"] / rows["structural"]
    of_all = rows["dead"] / zeros
    answer: Answer = "holds only under"
    if of_all.min() >= 0.9:
        answer = "holds"
    elif of_all.median() < 0.5:
        answer = "does not hold"
    alike = rows["alike"].sum() / max(1, rows["others"].sum())
    measured = (
        f"units dead on every point make {spread(of_all, percent=True)} of the numerical zeros and "
        f"{spread(of_rows, percent=True)} of the zero rows; pairs never active together "
        f"{spread((rows['apart'] + rows['cut']) / zeros, percent=True)} of the zeros; the "
        "null spaces of single layers (units active on the same points) hold "
        f"{100 * alike:.3g} % of the others"
    )
    wrong = int(rows["false"].sum() + rows["unforeseen"].sum())
    where = (
        f"steps 0 and {last}; {wrong} rows predicted wrongly; {spread(rows['ambiguous'])} "
        "eigenvalues within a factor 100 of the floor; one point with zero derivative makes no zero"
    )
    return Verdict("C21", answer, measured, f"{settings(rows)}; {where}")


def _every_layer(rows: pd.DataFrame) -> Verdict:
    parts, deep, everywhere = [], [], []
    for name, group in by_field(rows):
        for _, row in group.iterrows():
            shares = row["any_dead"]
            told = ", ".join(f"{100 * share:.0f}" for share in shares)
            parts.append(f"{name} {row['depth']}×{row['width']} {told} %")
            everywhere.append(min(shares) > 0.5)
            deep.append(shares[-1] > 0.5)
    answer: Answer = "does not hold"
    if all(everywhere):
        answer = "holds"
    elif any(deep):
        answer = "holds only under"
    measured = f"share of initialisations with a dead unit, by layer: {'; '.join(parts)}"
    where = (
        f"{int(rows['draws'].iloc[0])} initialisations each, Kaiming; a grid on the square; more "
        f"than half in every layer in {sum(everywhere)} of {len(everywhere)} networks, in the last "
        f"layer in {sum(deep)}"
    )
    return Verdict("C22", answer, measured, where)


def _keep_rank(rows: pd.DataFrame) -> Verdict:
    parts, none, dying = [], [], []
    for name, group in by_field(rows):
        parts.append(
            f"{name} zero {spread(group['zero'], percent=True)}, smallest row "
            f"{_power(group['least_row'].min())} of the largest, correlation of log row and log φ′ "
            f"{group['correlation'].median():.2f}"
        )
        none += [name] if group["zero"].max() == 0 else []
        dying += [name] if group["floor_rows"].max() > 0 else []
    answer: Answer = "holds only under"
    if len(none) == len(parts):
        answer = "holds"
    elif not none:
        answer = "does not hold"
    where = (
        f"no numerical zeros for {', '.join(none) or 'none'}; rows of whole units below the floor "
        f"for {', '.join(dying) or 'none'}"
    )
    return Verdict("C23", answer, "; ".join(parts), f"{settings(rows)}; {where}")


def _power(logarithm: float) -> str:
    """Return a power of ten, or that it is no number any more."""
    return f"1e{logarithm:.0f}" if logarithm > UNDERFLOW else "below 1e-100"
