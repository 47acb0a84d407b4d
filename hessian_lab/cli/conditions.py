"""The table of condition numbers: values, or bounds with ≥."""

import math

from hessian_lab.cli.output import NAMES, Fit, first_middle_last, headline
from hessian_lab.measures.conditioning import ConditionAt, Conditions
from hessian_lab.probe.conditioning import ConditionEnclosure
from hessian_lab.probe.conditions import Conditioning

LABELS = {
    "identity": "H",
    "equilibrated": "D^E",
    "jacobi": "D^J",
    "equilibrated_estimated": "D^E, est.",
    "jacobi_estimated": "D^J, est.",
    "optimizer": "P",
}


def conditions_table(result: Conditions, *, pictures: list[str]) -> str:
    """Return the condition numbers along a run, for people."""
    settings, run = result.settings, result.run
    fit = Fit(run)
    head = f"{'step':>5} {'loss':>8}{fit.head}"
    lines = [
        headline(run),
        f"condition of {NAMES[settings.matrix]} at {len(result.measured)} checkpoints",
        "dense, float64" + _estimates(result),
        *_own(result),
        "",
        f"{head}  {'scaled by':<9} {_columns()}",
    ]
    last = result.measured[-1]
    for place in first_middle_last(len(result.measured)):
        lines += _rows(result.measured[place], fit)
    for name, scaled in last.layers.items():
        lines += ["", f"{name} at step {last.step}:"]
        lines += [
            f"{'':>{len(head)}}  {LABELS[key]:<9} {_numbers(one)}" for key, one in scaled.items()
        ]
    lines += ["", "κ: ≥ where min|λ| is below the rounding floor; eff.: above it alone;"]
    lines += ["eff10: max|λ| over the 10 % quantile of |λ|; below: eigenvalues under the floor;"]
    lines += ["unscaled: entries of D too small to divide by; κ is that of D with a 1 there"]
    lines += _proven(result)
    return "\n".join([*lines, "", f"results in {run.path}", *pictures])


def _estimates(result: Conditions) -> str:
    settings = result.settings
    if not settings.estimated:
        return ""
    return f"; est.: from {settings.estimated} products, seed {settings.seed}"


def _own(result: Conditions) -> list[str]:
    if not result.settings.preconditioned:
        return []
    return [f"P: the preconditioner of {result.run.setup.optimizer} there, training once more"]


def _columns() -> str:
    return f"{'κ':>9} {'eff.':>8} {'eff10':>9} {'below':>5} {'unscaled':>8}"


def _rows(one: ConditionAt, fit: Fit) -> list[str]:
    head = f"{one.step:5d} {one.loss:8.2e}{fit.at(one.step)}"
    rows, width = [], len(head)
    for name, each in one.scaled.items():
        rows.append(f"{head:>{width}}  {LABELS[name]:<9} {_numbers(each)}")
        head = ""
    return rows


def _numbers(one: Conditioning) -> str:
    return (
        f"{_bound(one.kappa, resolved=one.resolved):>9} {_plain(one.effective):>8} "
        f"{_bound(one.eff10, resolved=one.eff10_resolved):>9} {one.num_below:5d} "
        f"{one.num_unscaled:8d}"
    )


def _bound(value: float, *, resolved: bool) -> str:
    return _plain(value) if resolved or math.isnan(value) else f"≥ {value:.1e}"


def _plain(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1e}"


def _proven(result: Conditions) -> list[str]:
    if not any(one.exact for one in result.measured):
        return []
    lines = ["", f"proven, in interval arithmetic: log₁₀ κ, within {_widest(result):.0e}"]
    names = list(next(one for one in result.measured if one.exact).exact)
    lines.append(f"{'step':>5} " + " ".join(f"{LABELS[name]:>12}" for name in names))
    for place in first_middle_last(len(result.measured)):
        one = result.measured[place]
        if one.exact:
            shown = " ".join(f"{_log10(one.exact[name]):>12}" for name in names)
            lines.append(f"{one.step:5d} {shown}")
    return lines


def _widest(result: Conditions) -> float:
    widths = [
        each.upper - each.lower
        for one in result.measured
        for each in one.exact.values()
        if math.isfinite(each.upper)
    ]
    return max(widths, default=0.0)


def _log10(one: ConditionEnclosure) -> str:
    if one.singular:
        return "∞ (singular)"
    return f"{one.log10:.4f}" if one.known else "not enclosed"
