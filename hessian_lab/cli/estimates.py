"""Tables of what products say: extreme eigenvalues, densities and traces, with their errors."""

import math
from collections.abc import Iterable

from hessian_lab.cli.output import NAMES, Fit, first_middle_last, headline
from hessian_lab.measures.estimates import Estimate, Estimates
from hessian_lab.measures.traces import TraceAt, Traces, Value
from hessian_lab.probe.log_density import LogDensity

BAR_WIDTH = 30


def estimates_table(result: Estimates, *, pictures: list[str]) -> str:
    """Return the estimates along a run, for people."""
    measured, fit = result.measured, Fit(result.run)
    lines = [headline(result.run), *_how(result), ""]
    lines.append(
        f"{'step':>5} {'loss':>8}{fit.head} {'λmin':>9} {'λmax':>9} {'residual':>8} "
        f"{'trace':>16} {'κ':>9}"
    )
    for place in first_middle_last(len(measured)):
        one = measured[place]
        lines.append(f"{one.step:5d} {one.loss:8.2e}{fit.at(one.step)} {_row(one.whole)}")
    last = measured[-1]
    lines += ["", f"at step {last.step}, largest and smallest eigenvalues:", *_extremes(last.whole)]
    if last.whole.density is not None:
        lines += ["", *_ladder(last.whole, last.whole.density)]
    if last.layers:
        lines += ["", *_layers(last.layers)]
    lines += ["", f"results in {result.run.path}", *pictures]
    return "\n".join(lines)


def trace_table(result: Traces) -> str:
    """Return the traces along a run, for people."""
    settings, fit = result.settings, Fit(result.run)
    how = (
        "in closed form, float64"
        if settings.method == "exact"
        else f"{settings.method}, {settings.num_products} products, {result.run.setup.dtype}"
    )
    lines = [
        headline(result.run),
        f"trace of {NAMES[settings.matrix]} at {len(result.measured)} checkpoints ({how})",
        "",
        f"{'step':>5} {'loss':>8}{fit.head} {'trace':>11} {'std. error':>10}  "
        f"{settings.level:.0%} interval",
    ]
    for place in first_middle_last(len(result.measured)):
        one = result.measured[place]
        lines.append(f"{one.step:5d} {one.loss:8.2e}{fit.at(one.step)} {_value(one.trace)}")
    last = result.measured[-1]
    lines += _layer_traces(last)
    return "\n".join([*lines, "", f"results in {result.run.path}"])


def _layer_traces(last: TraceAt) -> list[str]:
    if not last.layers:
        return []
    rows = [f"{name:>22} {_value(one)}" for name, one in last.layers.items()]
    return ["", f"layers at step {last.step}:", *rows]


def _value(one: Value) -> str:
    return f"{one.mean:11.4e} {one.standard_error:10.1e}  [{one.low:.5g}, {one.high:.5g}]"


def _how(result: Estimates) -> list[str]:
    settings = result.settings
    what = f"{NAMES[settings.matrix]} at {len(result.measured)} checkpoints"
    dtype = result.run.setup.dtype
    if settings.method == "lanczos":
        return [f"extreme eigenvalues of {what}", f"from products (Lanczos, {dtype})"]
    return [
        f"spectrum of {what}, from products ({dtype}):",
        f"density from {settings.num_probes} probes × {settings.num_steps} Lanczos steps, "
        "extremes with residuals",
    ]


def _row(one: Estimate) -> str:
    residual = max(one.residuals, default=math.nan)
    trace, error = one.trace
    kappa = "–" if math.isnan(one.condition_number) else f"≥ {one.condition_number:.1e}"
    shown = "–" if math.isnan(trace) else f"{trace:.3e} ± {error:.0e}"
    return f"{one.lambda_min:9.2e} {one.lambda_max:9.2e} {residual:8.0e} {shown:>16} {kappa:>9}"


def _extremes(one: Estimate) -> Iterable[str]:
    rows = zip(one.extreme_values, one.residuals, one.converged, strict=True)
    for value, residual, converged in rows:
        yield f"{value:16.6e} ± {residual:.0e}{'' if converged else '  not converged'}"


def _ladder(one: Estimate, density: LogDensity) -> list[str]:
    """Return the shares below multiples of max|λ|, and what is not resolved."""
    lump = density.lump
    end = density.floor / one.spectral_radius if one.spectral_radius else 0.0
    lowest = end, float(lump.estimate), float(lump.lower), float(lump.upper)
    rows = [
        (f"{ratio:.1e} max|λ|{mark}", share, low, high)
        for mark, each in (("  ", one.shares_within), (" *", [lowest]))
        for ratio, share, low, high in each
    ]
    return [
        f"share of |λ| at or below   ({lump.level:.0%} interval)",
        *(
            f"{label} {share:6.1%} ({low:5.1%} to {high:6.1%}) "
            f"{'█' * round(BAR_WIDTH * share)}".rstrip()
            for label, share, low, high in rows
        ),
        "* where the resolution ends: zero and small eigenvalues are not told apart",
    ]


def _layers(layers: dict[str, Estimate]) -> list[str]:
    width = max(len(name) for name in layers)
    return [
        f"{'layer':>{width}} {'n':>8} {'λmin':>9} {'λmax':>9} {'trace':>10}",
        *(
            f"{name:>{width}} {one.size:8d} {one.lambda_min:9.2e} {one.lambda_max:9.2e} "
            f"{'–' if math.isnan(one.trace[0]) else f'{one.trace[0]:.3e}':>10}"
            for name, one in layers.items()
        ),
    ]
