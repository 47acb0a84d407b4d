"""``hessian-lab distil``."""

import argparse
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hessian_lab.cli.flags import FLAGS, add_output, add_setup, asked_setup, given_setup
from hessian_lab.cli.parser import Parser, number
from hessian_lab.cli.together import (
    add_together,
    check_every,
    ending,
    measure_with_progress,
    spectra_lines,
    spread,
    watching,
)
from hessian_lab.cli.views import add_lpips, asked_lpips
from hessian_lab.errors import UsageError
from hessian_lab.training.setup import Setup

if TYPE_CHECKING:
    import pandas as pd

    from hessian_lab.measures.lpips import LPIPS
    from hessian_lab.signals.scenes import Scene
    from hessian_lab.training.cells import CellRun
    from hessian_lab.training.run import Run

HELP = "a radiance field as a grid of small fields, trained together"
EPILOG = """\
The first stage of KiloNeRF: the box is cut into cells, and in each that is not empty a small field
learns what the trained field tells at points of the cell, by its own L-BFGS (or Adam). A killed run
continues with the next block of cells when the command is typed again.

  hessian-lab train --signal torus-nerf --act gaussian --width 64 --steps 200 --out runs/nerf
  hessian-lab distil --run runs/nerf --cells 8
  hessian-lab distil --run runs/nerf --cells 16 --cell-points 10000 --steps 100 --spectra --every 8

With --spectra the whole Hessian spectrum of every cell's field is measured, and κ and the share of
zero eigenvalues are drawn as maps through the scene.

Exit status: 0 done, 1 failed, 2 bad usage, 4 input missing or wrong, 130 interrupted (the same
command continues).
"""
JOB = {"act": "sine", "omega": 10.0, "width": 32, "depth": 2, "steps": 50, "dtype": "float32"}
# The scene is the teacher's.
TEACHERS = ("signal", "size", "points", "samples", "views", "directions")

logger = logging.getLogger(__name__)


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    group = parser.add_argument_group("cells")
    integers: dict[str, Any] = {"type": number(int), "metavar": "N"}
    group.add_argument("--run", required=True, metavar="DIR", help="the trained radiance field")
    group.add_argument("--cells", default=8, help="cells along an axis of the box (8)", **integers)
    group.add_argument(
        "--cell-points", default=1000, help="points of every cell (1000)", **integers
    )
    add_together(group, "cell")
    add_setup(parser, JOB)
    add_lpips(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Train the cells, measure them, draw, and print."""
    check_every(args)
    given = [FLAGS[name] for name in given_setup(args) if name in TEACHERS]
    if given:
        raise UsageError(f"{given[0]} must be left out: the scene is that of --run.")
    import json

    from hessian_lab.signals.radiance import load_scene
    from hessian_lab.training.files import finite
    from hessian_lab.training.run import load_run

    lpips, teacher = asked_lpips(args), load_run(args.run)
    # A scene that is gone is told before anything is trained.
    scene = load_scene(teacher.setup.signal, teacher.setup.size)
    done = _train(args, teacher)
    spectra = measure_with_progress(args, done) if args.spectra else None
    more, told = _told(done, scene, spectra, lpips)
    if args.json:
        print(json.dumps(finite(_object(done, spectra) | more)))
    else:
        print("\n".join([*_table(done, spectra), *told]))
    return ending(done, "cells")


def _train(args: argparse.Namespace, teacher: "Run") -> "CellRun":
    from hessian_lab.training.cells import train_cells

    setup = Setup(**asked_setup(args))
    for name, owner in replace(setup, signal=teacher.setup.signal).ignored().items():
        logger.warning("--%s has no effect on %s", name, owner)
    with watching("cells", "loss", quiet=args.quiet) as watch:
        return train_cells(
            setup,
            teacher,
            cells=args.cells,
            points=args.cell_points,
            block=args.block,
            out=args.out,
            overwrite=args.overwrite,
            watch=watch,
        )


def _told(
    done: "CellRun", scene: "Scene", spectra: "pd.DataFrame | None", lpips: "LPIPS | None"
) -> tuple[dict[str, Any], list[str]]:
    """Compare with the scene and with the teacher; return what is told of it, twice."""
    import torch

    from hessian_lab.cli.views import told_views
    from hessian_lab.measures.radiance import views_of, write_views
    from hessian_lab.plots.style import save
    from hessian_lab.plots.tile_maps import plot_cells
    from hessian_lab.training.quality import psnr

    field, teacher = done.field(), done.teacher()
    seen, taught = views_of(field, scene, lpips=lpips), views_of(teacher, scene)
    write_views(done.path, seen)
    title = f"{_headline(done)}. {scene.source.attribution}"
    more, told = told_views(done.path, field, seen, title)
    side = done.record["shape"][0]
    maps = plot_cells(done.table, spectra, side=side, title=title)
    drawn = [str(path) for path in save(maps, done.path / "figures" / "cells")]
    more["pictures"] += drawn
    line = "the trained field was not compared with"
    if len(seen.views):
        both = psnr(torch.from_numpy(seen.pictures), torch.from_numpy(taught.pictures))
        own = float(taught.table["psnr"].mean())
        more |= {"teacher_psnr": own, "psnr_to_teacher": both}
        line = f"the trained field itself: PSNR {own:.2f} dB; between the two {both:.2f} dB"
    return more, [told[0], line, "", f"results in {done.path}", *told[1:], *drawn]


def _headline(done: "CellRun") -> str:
    setup, side = done.setup, done.record["shape"][0]
    return (
        f"{len(done.table)} fields {setup.act} {setup.depth}×{setup.width} "
        f"({done.record['num_parameters']} parameters each) in {side}³ cells of {setup.signal}, "
        f"{setup.optimizer}, {setup.steps} steps"
    )


def _table(done: "CellRun", spectra: "pd.DataFrame | None") -> list[str]:
    table, side = done.table, done.record["shape"][0]
    return [
        _headline(done),
        "",
        f"{'occupied cells':<18} {len(table)} of {side**3}",
        f"{'loss':<18} {spread(table['loss'], '.2e')}",
        f"{'evaluations':<18} {spread(table['evaluations'], '.0f')}",
        f"{'seconds':<18} {done.record['seconds']:.1f}",
        *([] if spectra is None else spectra_lines(spectra)),
        "",
    ]


def _object(done: "CellRun", spectra: "pd.DataFrame | None") -> dict[str, Any]:
    return {
        "command": "distil",
        "run": str(done.path),
        "setup": done.setup.to_json(),
        "teacher": done.record["teacher"]["id"],
        "cells": done.record["shape"][0],
        "points": done.record["num_points"],
        "num_parameters": done.record["num_parameters"],
        "seconds": done.record["seconds"],
        "fields": done.table.to_dict("records"),
        "spectra": None if spectra is None else spectra.to_dict("records"),
    }
