"""What is told of views that were held out, of a radiance field or of many small ones."""

import argparse
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessian_lab.cli.parser import Parser
from hessian_lab.names import plural

if TYPE_CHECKING:
    from hessian_lab.fields.volume import Volume
    from hessian_lab.measures.lpips import LPIPS
    from hessian_lab.measures.radiance import Seen

LPIPS_FLAG = "--lpips-weights"

logger = logging.getLogger(__name__)


def add_lpips(parser: Parser) -> None:
    """Add the flag that names the weights of LPIPS."""
    parser.add_argument_group("views that are held out").add_argument(
        LPIPS_FLAG,
        type=_two_files,
        metavar="BACKBONE,HEADS",
        help="also compare views of a scene by LPIPS, with your files of torchvision's AlexNet and "
        "of the heads for it",
    )


def asked_lpips(args: argparse.Namespace) -> "LPIPS | None":
    """Return LPIPS with the weights that were named, if any.

    Raises:
        InputError: If they cannot be used.
    """
    if args.lpips_weights is None:
        return None
    from hessian_lab.measures.lpips import load_lpips

    return load_lpips(*args.lpips_weights)


def _two_files(text: str) -> tuple[str, str]:
    backbone, _, heads = text.partition(",")
    if not backbone or not heads or "," in heads:
        raise argparse.ArgumentTypeError(f"must be two files with a comma between, got {text!r}")
    return backbone, heads


def told_views(
    directory: Path, model: "Volume", seen: "Seen", title: str
) -> tuple[dict[str, Any], list[str]]:
    """Draw the views and a turn around the scene; return what is told of them, twice."""
    from hessian_lab.measures.radiance import TABLE, write_turn
    from hessian_lab.plots.radiance import plot_views
    from hessian_lab.plots.style import save

    turn = str(write_turn(directory, model, seen.scene))
    if not len(seen.views):
        nothing: dict[str, Any] = {"held_out": {"views": 0}, "turntable": turn, "pictures": []}
        return nothing, ["no view was held out to compare with", turn]
    means = seen.table.drop(columns="view").mean()
    figure = plot_views(
        seen.scene.pictures[seen.views], seen.pictures, seen.depths, seen.table, title=title
    )
    pictures = [str(path) for path in save(figure, directory / "figures" / "views")]
    table = str(directory / TABLE)
    numbers = {name: float(mean) if math.isfinite(mean) else None for name, mean in means.items()}
    more: dict[str, Any] = {"held_out": {"views": len(seen.views)} | numbers}
    more |= {"views": table, "turntable": turn, "pictures": pictures}
    told = (
        f"{plural(len(seen.views), 'view')} held out: PSNR {means['psnr']:.2f} dB, "
        f"SSIM {_shown(means['ssim'])}"
    )
    if "lpips" in means:
        told += f", LPIPS {_shown(means['lpips'])}"
        _warn_if_small(seen)
    return more, [told, table, turn, *pictures]


def _shown(mean: float) -> str:
    return "–" if math.isnan(mean) else f"{mean:.4f}"


def _warn_if_small(seen: "Seen") -> None:
    from hessian_lab.measures.lpips import LEAST

    rows, columns = seen.scene.cameras.shape
    if min(rows, columns) < LEAST:
        logger.warning(
            "LPIPS needs %d pixels a side, views have %d×%d: take a larger --size",
            *(LEAST, rows, columns),
        )
