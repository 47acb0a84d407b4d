"""``hessian-lab sparsity``."""

import argparse
import math
from typing import TYPE_CHECKING

from hessian_lab.cli.parser import Parser, number
from hessian_lab.cli.ranks import present
from hessian_lab.cli.source import add_source, check_every, source_run
from hessian_lab.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from hessian_lab.measures.sparsity import Range, Shares, Sparsity

HELP = "how many entries of Hessian–vector products are zero, by layer, along a training"
EPILOG = """\
Trains first, unless --run names a trajectory or the same training is in --out already. Without
flags it is the papers' field of 5 linear maps, 256 wide, ReLU behind an encoding of 8 octaves, on
chelsea at 256×256 (RGB) in batches of 512 by ESGD as their code runs it, but 500 steps of it: about
half a minute. Flags change that job one by one.

  hessian-lab sparsity
  hessian-lab sparsity --act gaussian --sigma 0.05 --recipe esgd-cvpr2025
  hessian-lab sparsity --run runs/relu_pe-1a2b3c4d --every 10 --batch-size 4096

The loss is a mean over a random batch, the same at every checkpoint: of --batch-size points, or of
as many as a step of the training took. With --run, --batch-size is that of the measurement alone.

Exit status: 0 done, 1 failed, 2 bad usage, 3 written but a check failed, 4 input missing or wrong,
130 interrupted (the same command continues).
"""
JOB = {
    "signal": "chelsea",
    "size": 256,
    "act": "relu_pe",
    "width": 256,
    "depth": 4,
    "recipe": "esgd-sparsity-pn",
    "steps": 500,
    "checkpoint_every": 50,
    "batch_size": 512,
    "dtype": "float32",
}


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    group = parser.add_argument_group("how to measure")
    group.add_argument(
        "--probes",
        type=number(int),
        default=8,
        metavar="N",
        help="Rademacher vectors v (default 8)",
    )
    group.add_argument(
        "--rtol",
        type=_rtols,
        default=(1e-7, 1e-3),
        metavar="X[,X…]",
        help="also count entries of at most X times the largest (default 1e-7,1e-3)",
    )
    group.add_argument(
        "--dense", action="store_true", help="also count the zeros of the Hessian itself"
    )
    group.add_argument(
        "--probe-seed",
        type=number(int),
        default=0,
        metavar="N",
        help="seed of the random vectors and of the batch (default 0)",
    )
    add_source(parser, job=JOB, matrices=False)


def run(args: argparse.Namespace) -> int:
    """Train unless told otherwise, count, draw, and print."""
    check_every(args)
    _check(args)
    batch_size = getattr(args, "batch_size", None)
    if args.run is not None and batch_size is not None:
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}.")
        # A trajectory that is there has its own; this one is the measurement's.
        del args.batch_size
    from hessian_lab.cli.output import tell
    from hessian_lab.cli.progress import Progress
    from hessian_lab.measures.checkpoints import selected
    from hessian_lab.measures.sparsity import Settings, SparsityAt, measure_sparsity
    from hessian_lab.probe.hessian import require_hessian

    def require(model: "nn.Module", num_points: int) -> None:
        if args.dense:
            size = sum(value.numel() for value in model.parameters() if value.requires_grad)
            require_hessian(model, size, min(num_points, batch_size or num_points))

    ranks = present(args)
    source = source_run(args, require)
    settings = Settings(
        num_probes=args.probes,
        rtols=args.rtol,
        batch_size=batch_size,
        dense=args.dense,
        seed=args.probe_seed,
    )
    progress = Progress("sparsity", len(selected(source.steps, args.every)), quiet=args.quiet)

    def watch(one: SparsityAt) -> None:
        progress.advance(loss=one.loss, psnr=one.psnr, zero=one.whole.zero.mean)

    try:
        result = measure_sparsity(source, settings, every=args.every, watch=watch, ranks=ranks)
    finally:
        progress.close()
    if not ranks.first:
        return 0
    pictures = _draw(result)
    return tell(
        args,
        result,
        lambda: "\n".join([*_table(result), "", f"results in {result.run.path}", *pictures]),
    )


def _rtols(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number or several with commas, got {text!r}"
        ) from None


def _check(args: argparse.Namespace) -> None:
    if args.probes < 1:
        raise UsageError(f"probes must be at least 1, got {args.probes}.")
    if not 0 <= args.probe_seed < 2**64:
        raise UsageError(f"probe-seed must be in [0, 2**64), got {args.probe_seed}.")
    for rtol in args.rtol:
        if not 0 < rtol < 1:
            raise UsageError(f"rtol must be in (0, 1), got {rtol:g}.")


def _draw(result: "Sparsity") -> list[str]:
    from hessian_lab.cli.output import headline
    from hessian_lab.measures.sparsity import product_matrices
    from hessian_lab.plots.sparsity import plot_sparsity
    from hessian_lab.plots.style import save

    measured = [one for one in result.measured if math.isfinite(one.whole.zero.mean)]
    if not measured:
        return []
    last = measured[-1]
    matrices = product_matrices(result.run, result.settings, last.step)
    if not matrices:
        return []
    layers = {name: [one.layers[name].zero.mean for one in measured] for name in last.layers}
    whole = {"H v exactly 0": [one.whole.zero.mean for one in measured]}
    for place, rtol in enumerate(result.settings.rtols):
        whole[f"|H v| {_bound(rtol)} max"] = [one.whole.within[place].mean for one in measured]
    whole["gradient exactly 0"] = [one.whole.gradient_zero for one in measured]
    figure = plot_sparsity(
        {name.removesuffix(".weight"): matrix.cpu().numpy() for name, matrix in matrices.items()},
        steps=[one.step for one in measured],
        layers=layers,
        whole=whole,
        step=last.step,
        title=headline(result.run),
    )
    return [str(path) for path in save(figure, result.run.path / "figures" / "sparsity")]


def _table(result: "Sparsity") -> list[str]:
    from hessian_lab.cli.output import Fit, first_middle_last, headline

    settings, fit = result.settings, Fit(result.run)
    lines = [
        headline(result.run),
        f"zeros of H v at {len(result.measured)} checkpoints, {settings.num_probes} Rademacher v,",
        f"{settings.batch_size} points, {result.run.setup.dtype}; mean over v (least … most)",
        "",
        f"{'step':>5} {'loss':>8}{fit.head} {_heads(settings.rtols)}",
    ]
    for place in first_middle_last(len(result.measured)):
        one = result.measured[place]
        lines.append(f"{one.step:5d} {one.loss:8.2e}{fit.at(one.step)} {_row(one.whole)}")
    last = result.measured[-1]
    width = max(len(name) for name in (*last.layers, *last.layer_weights))
    lines += ["", f"at step {last.step}:", f"{'':>{width}} {_heads(settings.rtols)}"]
    parts = last.layers | last.layer_weights | {"all weights": last.weights}
    lines += [f"{name:>{width}} {_row(part)}" for name, part in parts.items()]
    whole = last.whole
    lines += [
        "",
        f"P(g = 0 | H v = 0)  {_percent(whole.gradient_zero_where_zero)}",
        f"P(H v = 0 | g ≠ 0)  {_percent(whole.zero_where_gradient)}",
    ]
    return [*lines, *_dense_lines(result)]


def _heads(rtols: tuple[float, ...]) -> str:
    within = "".join(f"{_bound(rtol):>8}" for rtol in rtols)
    return f"{'H v = 0':>22} {within}{'g = 0':>8}"


def _bound(rtol: float) -> str:
    return f"≤{rtol:g}".replace("e-0", "e-")


def _row(part: "Shares") -> str:
    within = "".join(f"{_percent(each.mean):>8}" for each in part.within)
    return f"{_range(part.zero):>22} {within}{_percent(part.gradient_zero):>8}"


def _range(share: "Range") -> str:
    return f"{_percent(share.mean)} ({_percent(share.low)} … {_percent(share.high)})"


def _dense_lines(result: "Sparsity") -> list[str]:
    last = result.measured[-1]
    if not last.dense:
        return []
    width = max(len(name) for name in last.dense)
    heads = "".join(f"{_bound(rtol):>8}" for rtol in result.settings.rtols)
    lines = ["", f"entries of H itself at step {last.step}:"]
    lines.append(f"{'':>{width}} {'n':>6} {'zero':>8}{heads} {'zero rows':>10}")
    for name, part in last.dense.items():
        within = "".join(f"{_percent(each):>8}" for each in part.within)
        lines.append(
            f"{name:>{width}} {part.size:6d} {_percent(part.zero):>8}{within} "
            f"{_percent(part.zero_rows):>10}"
        )
    return lines


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.1%}"
