"""``hessian-lab derivatives``."""

import argparse
from typing import TYPE_CHECKING

from hessian_lab.cli.flags import add_output, add_setup, asked_setup
from hessian_lab.cli.parser import Parser, number
from hessian_lab.cli.source import source_run
from hessian_lab.errors import UsageError
from hessian_lab.signals import kind_of
from hessian_lab.training.setup import Setup

if TYPE_CHECKING:
    from hessian_lab.measures.derivatives import Measured

HELP = "a fitted signal with its gradient and Laplacian by the coordinates"
EPILOG = """\
Trains first, unless --run names a trajectory or the same training is in --out already. Without
flags it is a 4×64 sine field on camera at 64×64, 100 L-BFGS steps: some ten seconds. Flags change
that job one by one.

  hessian-lab derivatives --act relu_pe
  hessian-lab derivatives --run runs/sine-1a2b3c4d --step 20
  hessian-lab derivatives --signal sines --size 256 --act gaussian

The field's derivatives are exact (autograd, float64), the target's finite differences. Colours:
errors are over all channels, the picture shows the luminance 0.299 R + 0.587 G + 0.114 B.

Exit status: 0 done, 1 failed, 2 bad usage, 3 written but a check failed, 4 input missing or wrong,
130 interrupted (the same command continues).
"""
JOB = {"act": "sine", "width": 64, "size": 64, "steps": 100}
SYMBOLS = {"values": "f", "gradient": "∇f", "laplacian": "Δf"}


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    parser.add_argument(
        "--run", metavar="DIR", help="measure this trajectory (on --device); do not train"
    )
    parser.add_argument(
        "--step", type=number(int), metavar="N", help="of which checkpoint (the last)"
    )
    add_setup(parser, JOB)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Train unless told otherwise, differentiate, draw, and print."""
    if args.step is not None and args.step < 0:
        raise UsageError(f"step must be at least 0, got {args.step}.")
    _require_grid(args)
    from hessian_lab.cli.output import tell
    from hessian_lab.measures.derivatives import measure_derivatives

    result = measure_derivatives(source_run(args), args.step)
    pictures = _draw(result)
    return tell(
        args,
        result,
        lambda: "\n".join([*_table(result), "", f"results in {result.run.path}", *pictures]),
    )


def _require_grid(args: argparse.Namespace) -> None:
    """Refuse a signal whose points fill no grid, before it is trained."""
    signal = asked_setup(args).get("signal", Setup.signal)
    if args.run is None and kind_of(signal) in ("shape", "radiance"):
        raise UsageError(
            f"signal must fill a grid to be differentiated, the points of {signal} do not: take an "
            "image, a sound, a video or sines."
        )


def _draw(result: "Measured") -> list[str]:
    from hessian_lab.cli.output import headline
    from hessian_lab.measures.derivatives import KINDS
    from hessian_lab.plots.derivatives import plot_derivatives
    from hessian_lab.plots.style import save

    if result.failures or len(result.shape) > 2:
        return []
    parts = []
    for one in (result.field.luminance(), result.target.luminance()):
        arrays = {kind: getattr(one, kind).cpu().numpy()[:, 0] for kind in KINDS}
        parts.append(
            {kind: each.reshape(*result.shape, *each.shape[1:]) for kind, each in arrays.items()}
        )
    channels = result.field.values.shape[1]
    title = f"{headline(result.run)}{', luminance' if channels > 1 else ''}, step {result.step}"
    figure = plot_derivatives(*parts, title=title)
    return [str(path) for path in save(figure, result.run.path / "figures" / "derivatives")]


def _table(result: "Measured") -> list[str]:
    from hessian_lab.cli.output import Fit, headline

    fit, over = Fit(result.run), "points and axes"
    if result.field.values.shape[1] > 1:
        over = "points, channels and axes"
    lines = [
        headline(result.run),
        f"step {result.step}: loss {result.loss:.3e}{fit.told(result.step)}",
        f"root mean squares over {over}, by coordinates in [-1, 1]",
        "",
        f"{'':>4} {'target':>10} {'field':>10} {'error':>10} {'/ target':>9} "
        f"{'by differences':>15}",
    ]
    for kind, one in result.errors.items():
        share = one.error / one.target if one.target else float("inf")
        lines.append(
            f"{SYMBOLS[kind]:>4} {one.target:10.3e} {one.field:10.3e} {one.error:10.3e} "
            f"{share:9.2%} {one.sampled_error:15.3e}"
        )
    return [
        *lines,
        "",
        "by differences: the error when the field too is differentiated on the grid;",
        "the rest of the error is what the field does between the points.",
    ]
