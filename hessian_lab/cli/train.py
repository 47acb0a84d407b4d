"""``hessian-lab train``."""

import argparse
import json
import logging
from typing import TYPE_CHECKING, Any

from hessian_lab.cli.flags import add_output, add_setup, given_setup
from hessian_lab.cli.parser import Parser
from hessian_lab.cli.views import LPIPS_FLAG, add_lpips, asked_lpips
from hessian_lab.signals import kind_of
from hessian_lab.training.setup import Setup

if TYPE_CHECKING:
    from hessian_lab.measures.lpips import LPIPS
    from hessian_lab.training.run import Run

HELP = "train a field and keep its trajectory"
EPILOG = """\
A killed run continues when the same command is typed again.

  hessian-lab train --act sine --signal astronaut --steps 200 --out runs/face
  hessian-lab train --signal song.wav --start 12 --seconds 2 --rate 16000 --act sine --omega 300
  hessian-lab train --signal torus-nerf --act gaussian --width 64 --lr 1 --steps 200
  hessian-lab train --signal kenburns --act sine --width 64 --steps 100 --dtype float32
  hessian-lab train --signal terrain --act gaussian --width 64 --optimizer adam --steps 1000 \\
      --batch-size 4096 --dtype float32

The papers' sounds, 4×256 by L-BFGS: some 8 GiB, and a day on two cores (half with --dtype float32):

  hessian-lab train --signal bwv1007 --seconds 7 --rate 44100 --width 256 --steps 500 \\
      --act sine --omega 3000,3000,30,30
  … --act gaussian --sigma 0.01, or --act relu_pe --octaves 8
"""

logger = logging.getLogger(__name__)


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    add_setup(parser)
    add_lpips(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Train, and print what came out."""
    from hessian_lab.cli.output import train_json, train_table
    from hessian_lab.cli.progress import trained

    given = given_setup(args)
    lpips = _lpips(args, Setup(**given))
    done = trained(args, given)
    first, last = (done.metrics["loss"].iloc[place] for place in (0, -1))
    if last > first:
        logger.warning("the loss rose from %.4g to %.4g: try a lower --lr", first, last)
    more, told = _made(done, lpips)
    if args.json:
        print(json.dumps(train_json(done) | more))
    else:
        print(train_table(done, files=told))
    return 0


def _lpips(args: argparse.Namespace, setup: Setup) -> "LPIPS | None":
    if args.lpips_weights is not None and kind_of(setup.signal) != "radiance":
        logger.warning("%s has no effect on %s", LPIPS_FLAG, setup.signal)
        return None
    return asked_lpips(args)


def _made(done: "Run", lpips: "LPIPS | None") -> tuple[dict[str, Any], list[str]]:
    """Write what a field has made of its signal; return what is told of it, twice."""
    from hessian_lab.measures.radiance import is_radiance
    from hessian_lab.measures.shape import is_shape
    from hessian_lab.measures.sound import is_sound, write_sounds
    from hessian_lab.measures.video import is_video

    if is_video(done):
        return _clip(done)
    if is_sound(done):
        sounds = [str(path) for path in write_sounds(done)]
        return {"sounds": sounds}, [f"the field and its error to listen to: {', '.join(sounds)}"]
    if is_radiance(done):
        return _views(done, lpips)
    return _solid(done) if is_shape(done) else ({}, [])


def _clip(done: "Run") -> tuple[dict[str, Any], list[str]]:
    from hessian_lab.cli.output import figure_title
    from hessian_lab.measures.video import measure_video, video_paths
    from hessian_lab.plots.style import save
    from hessian_lab.plots.video import plot_video
    from hessian_lab.training.files import finite

    found = measure_video(done)
    title = f"{figure_title(done, 'hessian')}. {done.record['data']['attribution']}"
    figure = plot_video(found.original, found.fitted, found.error, found.table, title=title)
    pictures = [str(path) for path in save(figure, done.path / "figures" / "video")]
    table, clip = (str(path) for path in video_paths(done))
    decibels = found.table["psnr"]
    more = {"frames": finite(found.table.to_dict("records")), "table": table, "clip": clip}
    told = (
        f"PSNR of {len(decibels)} frames: median {decibels.median():.2f} dB, least "
        f"{decibels.min():.2f}, largest {decibels.max():.2f}"
    )
    return more | {"pictures": pictures}, [told, clip, table, *pictures]


def _solid(done: "Run") -> tuple[dict[str, Any], list[str]]:
    from hessian_lab.cli.output import figure_title
    from hessian_lab.measures.shape import measure_shape, surface_path
    from hessian_lab.plots.shapes import plot_shapes
    from hessian_lab.plots.style import save

    found = measure_shape(done)
    source = found.true.source
    more: dict[str, Any] = {"iou": found.iou, "iou_resolution": found.resolution}
    told = [f"IoU {found.iou:.4f} on {found.resolution}³ points that were not fitted"]
    if found.surface is None:
        return more | {"surface": None}, [*told, "the field is outside everywhere: no surface"]
    meshes = {"true": found.true, f"fitted, IoU {found.iou:.3f}": found.surface}
    figure = plot_shapes(
        {name: (mesh.vertices, mesh.faces) for name, mesh in meshes.items()},
        up=found.up,
        title=f"{figure_title(done, 'hessian')}. {'' if source is None else source.attribution}",
    )
    pictures = [str(path) for path in save(figure, done.path / "figures" / "shape")]
    surface = str(surface_path(done))
    return more | {"surface": surface, "pictures": pictures}, [*told, surface, *pictures]


def _views(done: "Run", lpips: "LPIPS | None") -> tuple[dict[str, Any], list[str]]:
    from hessian_lab.cli.output import figure_title
    from hessian_lab.cli.views import told_views
    from hessian_lab.measures.radiance import measure_views, radiance_of

    seen = measure_views(done, lpips=lpips)
    title = f"{figure_title(done, 'hessian')}. {seen.scene.source.attribution}"
    return told_views(done.path, radiance_of(done), seen, title)
