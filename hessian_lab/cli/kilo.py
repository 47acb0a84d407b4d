"""``hessian-lab kilo``."""

import argparse
import logging
from typing import TYPE_CHECKING, Any

from hessian_lab.cli.flags import add_output, add_setup, asked_setup
from hessian_lab.cli.parser import Parser, number
from hessian_lab.cli.together import (
    add_together,
    check_every,
    ending,
    measure_with_progress,
    num_diverged,
    spectra_lines,
    spread,
    watching,
)
from hessian_lab.signals import kind_of
from hessian_lab.training.setup import Setup

if TYPE_CHECKING:
    import pandas as pd

    from hessian_lab.training.tiles import TileRun

HELP = "a small field for every tile of a large image or video, trained together"
EPILOG = """\
All tiles of a block are trained at once, each by its own L-BFGS (or Adam), from a seed of its own.
Memory is that of one block, beside the image or clip; a killed run continues with the next block
when the command is typed again. Tiles of a video are boxes of frames, rows and columns; of its clip
every row is taken unless --size says how many.

  hessian-lab kilo --signal retina --tile 32
  hessian-lab kilo --signal mandelbrot --size 4096 --tile 64 --width 64 --depth 4
  hessian-lab kilo --signal photo.jpg --optimizer adam --lr 3e-3 --steps 200
  hessian-lab kilo --signal retina --size 512 --spectra
  hessian-lab kilo --signal kenburns --tile 18 --tile-frames 8 --depth 3 --width 64

With --spectra the whole Hessian spectrum of every tile is measured, and κ and the share of zero
eigenvalues are drawn as maps over the picture, or over every slab of a video.

Exit status: 0 done, 1 failed, 2 bad usage, 4 input missing or wrong, 130 interrupted (the same
command continues).
"""
JOB = {"signal": "retina", "act": "sine", "width": 32, "depth": 2, "steps": 20, "dtype": "float32"}

logger = logging.getLogger(__name__)


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    group = parser.add_argument_group("tiles")
    integers: dict[str, Any] = {"type": number(int), "metavar": "N"}
    group.add_argument("--tile", default=32, help="pixels per side of a tile (32)", **integers)
    group.add_argument("--tile-frames", help="frames of a video in a tile (8)", **integers)
    add_together(group, "tile")
    add_setup(parser, JOB)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Train the tiles, measure them if asked, draw, and print."""
    check_every(args)
    import json

    from hessian_lab.training.files import finite

    done = _train(args)
    spectra = measure_with_progress(args, done) if args.spectra else None
    pictures = _draw(done, spectra)
    if args.json:
        print(json.dumps(finite(_object(done, spectra) | {"pictures": pictures})))
    else:
        print("\n".join([*_table(done, spectra), "", f"results in {done.path}", *pictures]))
    return ending(done, "tiles")


def _train(args: argparse.Namespace) -> "TileRun":
    from hessian_lab.training.tiles import train_tiles

    setup = Setup(**asked_setup(args))
    for name, owner in setup.ignored().items():
        logger.warning("--%s has no effect on %s", name, owner)
    if args.tile_frames is not None and kind_of(setup.signal) != "video":
        logger.warning("--tile-frames has no effect on %s", setup.signal)
    with watching("tiles", "psnr", quiet=args.quiet) as watch:
        return train_tiles(
            setup,
            tile=args.tile,
            tile_frames=args.tile_frames,
            block=args.block,
            out=args.out,
            overwrite=args.overwrite,
            watch=watch,
        )


def _draw(done: "TileRun", spectra: "pd.DataFrame | None") -> list[str]:
    import numpy as np
    from PIL import Image

    from hessian_lab.plots.style import save
    from hessian_lab.plots.tile_maps import plot_clip_tiles, plot_tiles
    from hessian_lab.signals.gif import read_gif

    shape = done.record["shape"]
    rows, columns = shape[-3:-1]
    given: dict[str, Any] = {"shape": (rows, columns), "tile": done.tile}
    given["title"] = f"{_headline(done)}. {done.record['data']['attribution']}"
    pixels = None
    if done.shown.exists() and done.tile_frames is not None:
        pixels = read_gif(done.shown, shape[0], done.record["rate"])
    elif done.shown.exists():
        # It is our own, however large.
        with Image.open(done.shown) as image:
            pixels = np.asarray(image).reshape(shape)
    plot = plot_tiles if done.tile_frames is None else plot_clip_tiles
    figure = plot(pixels, done.table, spectra, **given)
    drawn = [str(one) for one in save(figure, done.path / "figures" / "tiles")]
    return ([str(done.shown)] if pixels is not None else []) + drawn


def _headline(done: "TileRun") -> str:
    setup = done.setup
    sides = [done.tile, done.tile]
    if done.tile_frames is not None:
        sides = [done.tile_frames, *sides]
    tile, size = ("×".join(map(str, each)) for each in (sides, done.record["shape"][:-1]))
    return (
        f"{len(done.table)} fields {setup.act} {setup.depth}×{setup.width} "
        f"({done.record['num_parameters']} parameters each) on {tile} tiles of "
        f"{done.record['data']['name']} {size}, {setup.optimizer}, {setup.steps} steps"
    )


def _table(done: "TileRun", spectra: "pd.DataFrame | None") -> list[str]:
    table = done.table
    lines = [
        _headline(done),
        "",
        f"{'PSNR (dB)':<18} {spread(table['psnr'], '.2f')}",
        f"{'evaluations':<18} {spread(table['evaluations'], '.0f')}",
        f"{'finished early':<18} {int(table['finished'].sum()) - num_diverged(done)}",
        f"{'seconds':<18} {done.record['seconds']:.1f}",
    ]
    return lines + ([] if spectra is None else spectra_lines(spectra))


def _object(done: "TileRun", spectra: "pd.DataFrame | None") -> dict[str, Any]:
    found = {
        "command": "kilo",
        "run": str(done.path),
        "setup": done.setup.to_json(),
        "tile": done.tile,
        "tile_frames": done.tile_frames,
        "shape": done.record["shape"],
        "num_parameters": done.record["num_parameters"],
        "seconds": done.record["seconds"],
        "tiles": done.table.to_dict("records"),
    }
    return found | {"spectra": None if spectra is None else spectra.to_dict("records")}
