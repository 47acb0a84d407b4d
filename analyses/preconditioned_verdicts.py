"""What the record of ``preconditioned_conditioning`` says of the papers' claims."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from analyses.study import Answer, Verdict
from analyses.words import spread

# Shares that make a claim, and that refute it.
MOST, FEW = 0.95, 0.5
# A rank correlation that makes one.
STRONG = 0.7
TARGET = "0.03"
# log₁₀ of a κ_eff beyond which double precision gives bounds, at some thousand parameters.
RESOLVED = 12.3


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return the verdict of every claim whose rows are there."""
    found = []
    for kinds, judge in JUDGES:
        parts = [rows[rows["kind"] == kind].dropna(axis=1, how="all") for kind in kinds]
        verdict = judge(*parts) if all(len(part) for part in parts) else None
        found += [verdict] if verdict is not None else []
    return found


def name_of(row: pd.Series) -> str:
    """Return what a field is called: ``gaussian σ=0.1``."""
    for name, letter in (("sigma", "σ"), ("omega", "ω")):
        if name in row and pd.notna(row[name]):
            return f"{row['act']} {letter}={row[name]:g}"
    return str(row["act"])


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with the name of their field."""
    return rows.assign(field=[name_of(row) for _, row in rows.iterrows()])


def changes(paths: pd.DataFrame) -> pd.DataFrame:
    """Return the proven rows, with the changes of log₁₀ κ by both scalings."""
    if "proven_identity" not in paths:
        return paths.iloc[:0]
    proven = named(paths[paths["proven_identity"].notna()])
    return proven.assign(
        by_equilibrated=proven["proven_equilibrated"] - proven["proven_identity"],
        by_jacobi=proven["proven_jacobi"] - proven["proven_identity"],
    )


def _seeds(rows: pd.DataFrame) -> str:
    return f"2×16 in 1-D, {rows['seed'].nunique()} seeds"


def _lowers(paths: pd.DataFrame) -> Verdict | None:
    proven = changes(paths)
    if not len(proven):
        return None
    own = proven[proven["act"] == "gaussian"]
    raised = {name: int((proven[f"by_{name}"] > 0).sum()) for name in ("equilibrated", "jacobi")}
    worse = (own[["by_equilibrated", "by_jacobi"]] > 0).to_numpy().any() if len(own) else False
    answer: Answer = "does not hold" if worse else "holds only under"
    answer = "holds" if not any(raised.values()) else answer
    doubles = paths[paths["act"] == "gaussian"]
    resolved = int(doubles["resolved_identity"].sum())
    parts = [
        f"{field}: E {spread(group['by_equilibrated'])}, J {spread(group['by_jacobi'])}"
        for field, group in proven.groupby("field", sort=False)
    ]
    measured = (
        f"change of log₁₀ κ, proven at {len(proven)} states: {'; '.join(parts)}; κ rises in "
        f"{raised['equilibrated']} (E) and {raised['jacobi']} (J)"
    )
    where = ", ".join(
        str(field)
        for field, group in proven.groupby("field", sort=False)
        if (group[["by_equilibrated", "by_jacobi"]] < 0).to_numpy().all()
    )
    settings = (
        f"{_seeds(paths)}, start and along the run; both lower κ everywhere for "
        f"{where or 'no field'}; in double precision κ of H is resolved at "
        f"{resolved} of {len(doubles)} Gaussian checkpoints"
    )
    return Verdict("C34", answer, measured, settings)


def _more(paths: pd.DataFrame) -> Verdict | None:
    proven = changes(paths)
    if not len(proven):
        return None
    gap = proven["by_equilibrated"] - proven["by_jacobi"]
    own = gap[proven["act"] == "gaussian"]
    share = float((own < 0).mean()) if len(own) else float((gap < 0).mean())
    answer: Answer = (
        "holds" if share >= MOST else "does not hold" if share < FEW else "holds only under"
    )
    parts = [f"{field} {spread(part)}" for field, part in gap.groupby(proven["field"], sort=False)]
    measured = (
        f"log₁₀ κ_E − log₁₀ κ_J, proven: {'; '.join(parts)}; negative in {share:.0%} of Gaussian "
        "states"
    )
    return Verdict("C35", answer, measured, f"{_seeds(paths)}; negative would favour E")


def _walks(walks: pd.DataFrame) -> Verdict | None:
    if "target" not in walks:
        return None
    walks = named(walks.dropna(subset=["target"]))
    parts, every = [], []
    for field, group in walks.groupby("field", sort=False):
        table = group.pivot(index=["seed", "target"], columns="method", values="kappa").dropna()
        if table.shape[1] < 2 or not len(table):
            continue
        gaps = table["equilibrated"] - table["identity"]
        every.extend(gaps)
        parts.append(f"{field} {spread(gaps)}, lower in {int((gaps < 0).sum())} of {len(gaps)}")
    if not every:
        return None
    share = float((np.array(every) < 0).mean())
    answer: Answer = "does not hold" if share <= FEW else "holds only under"
    answer = "holds" if share >= MOST else answer
    losses = ", ".join(f"{loss:g}" for loss in sorted(walks["target"].unique(), reverse=True))
    measured = f"log₁₀ κ of H, E run − plain run at equal loss: {'; '.join(parts)}"
    settings = (
        f"{_seeds(walks)}, 256 points, losses {losses}, tuned rates, exponent ½; κ proven where "
        "double precision does not resolve it"
    )
    return Verdict("C36", answer, measured, settings)


def _best(rates: pd.DataFrame, methods: tuple[str, ...]) -> pd.DataFrame:
    """Return the loss of every seed and method at its better exponent, by median over seeds."""
    columns = {}
    rates = rates.assign(loss=rates["loss"].fillna(np.inf))
    for method in methods:
        parts = [part for _, part in rates[rates["method"] == method].groupby("exponent")]
        if parts:
            best = min(parts, key=lambda part: part["loss"].median())
            columns[method] = best.set_index("seed")["loss"]
    return pd.DataFrame(columns)


def _converges(rates: pd.DataFrame, printed: pd.DataFrame) -> Verdict | None:
    parts, wins, total, won = [], 0, 0, []
    for field, group in named(rates).groupby("field", sort=False):
        table = _best(group, ("identity", "equilibrated", "jacobi"))
        if table.shape[1] < 3:
            return None
        first = int((table.idxmin(axis=1) == "equilibrated").sum())
        wins, total = wins + first, total + len(table)
        won += [field] if first >= np.ceil(7 / 8 * len(table)) else []
        medians = ", ".join(f"{name} {table[name].median():.1e}" for name in table)
        parts.append(f"{field}: E first in {first} of {len(table)} (median loss {medians})")
    fields = rates.assign(field=[name_of(row) for _, row in rates.iterrows()])["field"].nunique()
    answer: Answer = (
        "holds" if len(won) == fields else "holds only under" if won else "does not hold"
    )
    # No run may have ended with a loss.
    printed = printed.reindex(columns=list({**dict.fromkeys(printed), "start": 0, "loss": 0}))
    ends = ", ".join(
        f"{method} {part['start'].median():.2g} → {part['loss'].fillna(np.inf).median():.2g}"
        for method, part in printed.groupby("method", sort=False)
    )
    parts.append(f"{name_of(printed.iloc[0])} at the printed rate 2, p = ½: {ends}")
    settings = (
        f"2×16 in 1-D, 256 points, {rates['seed'].nunique()} seeds, each method at its best rate "
        f"and exponent; holds for {', '.join(won) if won else 'none'}"
    )
    return Verdict("C37", answer, "; ".join(parts), settings)


def _faster(rates: pd.DataFrame) -> Verdict | None:
    own = named(rates[rates["method"] != "abs-hessian"])
    own = own.dropna(subset=["log_own", "log_own_tenth", "log_kappa"])
    if len(own) < 6:
        return None
    never = 1e9
    steps = pd.Series(
        [never if one[TARGET] is None else one[TARGET] for one in own["steps_to"]], index=own.index
    )
    names = {
        "log_own_tenth": "κ_eff of the scaled H",
        "log_own": "κ of the scaled H (mostly bounds)",
        "log_tenth": "κ_eff of H",
    }
    found = {name: _rank_correlation(own[name], steps) for name in names}
    within = [
        _rank_correlation(part["log_own_tenth"], steps[part.index])
        for _, part in own.groupby("field")
        if steps[part.index].nunique() > 1
    ]
    overall, inside = found["log_own_tenth"], float(np.median(within)) if within else 0.0
    strong = [value >= STRONG for value in (overall, inside)]
    answer: Answer = (
        "holds" if all(strong) else "holds only under" if any(strong) else "does not hold"
    )
    measured = "Spearman with steps to the target: " + ", ".join(
        f"{text} {found[name]:.2f}" for name, text in names.items()
    )
    if within:
        measured += f"; κ_eff of the scaled H within a field {spread(within, digits=2)}"
    settings = (
        f"{len(own)} runs (field × preconditioner × exponent × seed) at tuned rates, target loss "
        f"{TARGET}, never reached in {int((steps == never).sum())}"
    )
    settings += (
        ""
        if all(strong)
        else ("; between fields, not within one" if strong[0] else "; not between fields")
    )
    return Verdict("C38", answer, measured, settings)


def _rank_correlation(first: pd.Series, second: pd.Series) -> float:
    """Return Spearman's correlation, 0 where one of the two does not vary."""
    if first.nunique() < 2 or second.nunique() < 2:
        return 0.0
    return float(spearmanr(first, second)[0])


def _absolute(rates: pd.DataFrame, facts: pd.DataFrame) -> Verdict | None:
    parts, wins = [], {0.5: [], 1.0: []}
    for field, group in named(rates).groupby("field", sort=False):
        diagonal = _best(group, ("identity", "equilibrated", "jacobi")).min(axis=1)
        texts = []
        for exponent, shares in wins.items():
            chosen = group[(group["method"] == "abs-hessian") & (group["exponent"] == exponent)]
            if not len(chosen):
                return None
            losses = chosen.set_index("seed")["loss"].fillna(np.inf)
            shares.append(float((losses < diagonal.reindex(losses.index)).mean()))
            texts.append(f"p={exponent:g} {losses.median():.1e}, best in {shares[-1]:.0%}")
        parts.append(f"{field}: {'; '.join(texts)} (best diagonal {diagonal.median():.1e})")
    with_one, with_half = (np.array(wins[exponent]) >= 7 / 8 for exponent in (1.0, 0.5))
    answer: Answer = "holds only under" if with_one.any() or with_half.any() else "does not hold"
    answer = "holds" if with_one.all() and with_half.all() else answer
    gaps = facts.groupby("exponent")["gap"].max()
    measured = (
        f"eigenvalues of |H|^(-p) H off ±1 by at most {gaps[1.0]:.1e} (p = 1), {gaps[0.5]:.1e} "
        f"(p = ½); loss: {'; '.join(parts)}"
    )
    settings = (
        "2×16 in 1-D, tuned rates, median loss after the run, ridge 1e-6, P refreshed every 10 "
        f"steps; the printed exponent is ½; best in 7 of 8 seeds with p = 1 in {with_one.sum()}, "
        f"with p = ½ in {with_half.sum()} of {len(parts)} fields"
    )
    return Verdict("C40", answer, measured, settings)


def _bounds(facts: pd.DataFrame) -> Verdict:
    random = facts[facts["matrices"] == "random"]
    draws, printed = int(random["draws"].sum()), int(random["printed"].sum())
    proven = int(facts["proven"].sum())
    answer: Answer = "does not hold" if printed else "holds"
    factor = float(random["largest_factor"].max())
    measured = (
        f"violated as printed in {printed} of {draws}, with exponent N in {proven}; "
        f"log₁₀ of the factor that D^E gains is at most {factor:.1e}"
    )
    settings = "random symmetric, N = 2 … 40; factor det(D)/(‖H‖_F/√N)^N of left scaling"
    return Verdict("C41", answer, measured, settings)


def _rows(facts: pd.DataFrame) -> Verdict:
    exact = facts["square_ratio"].between(0.95, 1.05).all()
    printed = facts["printed_ratio"].between(0.95, 1.05).all()
    answer: Answer = "holds" if printed else "holds only under" if exact else "does not hold"
    measured = (
        f"median of E[(Hv)²]/‖H_i‖² {spread(facts['square_ratio'])}, as printed E[(Hv)²]/‖H_i‖ "
        f"{spread(facts['printed_ratio'])}; one probe's relative deviation of the square "
        f"{spread(facts['square_one_probe'])}"
    )
    settings = f"{_fact(facts)}; the square of the norm, not the norm"
    return Verdict("C42", answer, measured, settings)


def _diagonal(facts: pd.DataFrame) -> Verdict:
    signs = facts[facts["probes"] == "rademacher"]
    # The mean of standard scores of dependent entries; unbiased, it stays within a few tenths.
    unbiased = signs["diagonal_bias"].abs().max() < 0.5
    answer: Answer = "does not hold" if not unbiased else "holds only under"
    answer = "holds" if unbiased and signs["diagonal_one_probe"].max() < 1 else answer
    measured = (
        f"mean standard score of the bias {spread(signs['diagonal_bias'])}; one probe's relative "
        f"deviation of the median entry {spread(signs['diagonal_one_probe'])}"
    )
    return Verdict("C43", answer, measured, f"{_fact(signs)}; unbiased, but one probe is noise")


def _fact(facts: pd.DataFrame) -> str:
    acts = ", ".join(sorted(facts["act"].unique()))
    return f"{acts}, camera, start, {facts['seed'].nunique()} seeds"


def _adahessian(facts: pd.DataFrame) -> Verdict:
    found = {name: group for name, group in facts.groupby("estimator")}
    published = found["equilibrated"]
    rows = published["to_rows"].between(0.9, 1.1).all()
    closer = (published["to_rows_spread"] < published["to_diagonal_spread"]).all()
    answer: Answer = "holds" if rows and closer else "does not hold"
    parts = [
        f"{name}: over row norms {spread(group['to_rows'])} (log-spread "
        f"{group['to_rows_spread'].median():.2g}), over |diagonal| {spread(group['to_diagonal'])} "
        f"({group['to_diagonal_spread'].median():.2g})"
        for name, group in found.items()
    ]
    return Verdict("C44", answer, "; ".join(parts), "fixed Hessian, sine 2×16 in 1-D")


def _noise(facts: pd.DataFrame) -> Verdict:
    noisy = (facts["noise"] > 0.5).groupby(facts["act"]).all()
    halved = (facts["noise_ema"] < 0.5 * facts["noise"]).groupby(facts["act"]).all()
    both = noisy & halved
    answer: Answer = (
        "holds"
        if both.all()
        else "holds only under"
        if noisy.any() or halved.any()
        else "does not hold"
    )
    parts = [
        f"{act}: ‖H_B−H‖/‖H‖ {spread(group['noise'])}, averaged {spread(group['noise_ema'])}; "
        f"error of D {spread(group['scale_error'])}, averaged {spread(group['scale_error_ema'])}"
        for act, group in facts.groupby("act", sort=False)
    ]
    repaired = facts["scale_error_ema"] < 0.5 * facts["scale_error"]
    scale = repaired.groupby(facts["act"]).all()
    settings = (
        f"4×16, B = 512 of {facts['num_points'].max():.0f} points, after 300 Adam steps, moving "
        f"average of decay 0.9; noise above ½ in every seed for "
        f"{', '.join(noisy.index[noisy]) or 'none'}; error of H halved for "
        f"{', '.join(halved.index[halved]) or 'none'}, of D for "
        f"{', '.join(scale.index[scale]) or 'none'} (the squares of noise add up)"
    )
    return Verdict("C46", answer, "; ".join(parts), settings)


def _moment(facts: pd.DataFrame) -> Verdict:
    least = facts["spearman_ggn"].min()
    moved = facts.groupby("stage")["log_ratio"].median()
    same = facts["log_spread"].max() < 0.1
    answer: Answer = "holds" if same else "holds only under" if least >= 0.5 else "does not hold"
    parts = [
        f"{act} {spread(group['spearman_ggn'])}" for act, group in facts.groupby("act", sort=False)
    ]
    measured = (
        f"Spearman of v with diag GGN: {'; '.join(parts)}; log₁₀ v/diag GGN, median: "
        + ", ".join(f"{value:.1f} ({stage})" for stage, value in moved.items())
        + f"; spread {spread(facts['log_spread'], digits=2)} decades"
    )
    settings = f"{_states(facts)}; a rank correlation, not an identity"
    return Verdict("C47", answer, measured, settings)


def _less(facts: pd.DataFrame) -> Verdict | None:
    trained = facts[facts["stage"] == "trained"]
    seen = (trained[["tenth_root", "tenth_rows"]] < RESOLVED).all(axis=1)
    if not seen.any():
        return None
    dropped = int((~seen).sum())
    trained = trained[seen]
    ratio = 10 ** (trained["tenth_root"] - trained["tenth_rows"])
    by_act = ratio.groupby(trained["act"]).median()
    answer: Answer = "holds" if (by_act > 3).all() else "holds only under"
    answer = "does not hold" if (by_act <= 2).all() else answer
    parts = [f"{act} {spread(part)}" for act, part in ratio.groupby(trained["act"], sort=False)]
    settings = f"{_states(trained)}; above 3 for {', '.join(by_act.index[by_act > 3]) or 'none'}"
    settings += f"; {dropped} states not resolved" if dropped else ""
    return Verdict(
        "C48", answer, f"κ_eff of √v over κ_eff of row norms: {'; '.join(parts)}", settings
    )


def _states(facts: pd.DataFrame) -> str:
    return f"4×16, camera 50×50, B = 512, Adam, {facts['seed'].nunique()} seeds"


def _stability(facts: pd.DataFrame) -> Verdict:
    inside = facts["factor"].between(0.8, 1.2)
    answer: Answer = (
        "holds" if inside.all() else "holds only under" if inside.any() else "does not hold"
    )
    parts = [
        f"{act} step {step:.0f}: {spread(group['factor'])}"
        for (act, step), group in facts.groupby(["act", "step"], sort=False)
    ]
    settings = (
        f"{_seeds(facts)}, gradient descent on from a state of gradient descent, loss never above "
        f"its start in 200 steps; {inside.mean():.0%} within 20 %"
    )
    measured = f"largest stable rate over 2/λmax: {'; '.join(parts)}"
    return Verdict("C51", answer, measured, settings)


JUDGES: tuple[tuple[tuple[str, ...], Callable[..., Verdict | None]], ...] = (
    (("path",), _lowers),
    (("path",), _more),
    (("walk",), _walks),
    (("rate", "printed"), _converges),
    (("rate",), _faster),
    (("rate", "absolute"), _absolute),
    (("bounds",), _bounds),
    (("estimators",), _rows),
    (("estimators",), _diagonal),
    (("adahessian",), _adahessian),
    (("batches",), _noise),
    (("moments",), _moment),
    (("moments",), _less),
    (("stability",), _stability),
)
