"""One small field for every tile of a large image or video, a block of tiles at a time."""

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hessian_lab.errors import InputError, UsageError
from hessian_lab.fields.stack import FieldStack, stack_fields
from hessian_lab.optim.stacked_lbfgs import StackedLBFGS
from hessian_lab.probe.memory import require_bytes
from hessian_lab.probe.scratch import require_disk
from hessian_lab.probe.sizes import numbers_at_once
from hessian_lab.signals.gif import gif_bytes
from hessian_lab.signals.tiles import Tiled, load_tiles
from hessian_lab.training.devices import named_device, usable_device
from hessian_lab.training.files import (
    locked,
    make_directory,
    read_json,
    write_atomically,
    write_json,
)
from hessian_lab.training.loop import using_threads
from hessian_lab.training.run import network_of
from hessian_lab.training.setup import Setup, digest, identity, setup_from_json
from hessian_lab.training.stacked_objective import CHUNK_NUMBERS, StackedObjective
from hessian_lab.training.tile_files import (
    CLIP,
    LOSSES,
    PICTURE,
    RECORD,
    TABLE,
    Blocks,
    claim,
    read_table,
    read_tiles,
)
from hessian_lab.training.trajectory import TrajectoryWriter, read_trajectory

# Options of each optimizer of stacks.
OPTIMIZERS = {
    "lbfgs": ("history_size", "tolerance_grad", "c2"),
    "adam": ("betas", "eps"),
}
# A reconstruction of more pixels is not drawn whole.
MOST_PIXELS = 1 << 27

Array = np.ndarray[Any, np.dtype[Any]]
Watch = Callable[[int, pd.DataFrame], None]


@dataclass(frozen=True, eq=False)
class TileRun:
    """Fields of the tiles of an image or video, on disk.

    Attributes:
        path: The directory.
        setup: What each field is, and how it was trained; ``signal``, ``size`` and the clip are the
            image's or video's.
        tile: Pixels per side of a tile.
        tile_frames: Frames of a video in a tile; None of an image.
        record: ``tiles.json``.
        table: One row per tile that is done: its number, first row and column, of a video also its
            first frame, loss, psnr, evaluations, and whether its optimizer had finished.
    """

    path: Path
    setup: Setup
    tile: int
    tile_frames: int | None
    record: dict[str, Any]
    table: pd.DataFrame

    def image(self) -> Tiled:
        """Return what was fitted.

        Raises:
            InputError: If it is no longer what was fitted.
        """
        image = _loaded(self.setup, self.tile, self.tile_frames)
        if image.source.sha256 != self.record["data"]["sha256"]:
            raise InputError(
                f"signal must be the one that was fitted, {self.record['data']['name']} is not: "
                f"its SHA-256 is {image.source.sha256[:12]}…."
            )
        return image

    @property
    def shown(self) -> Path:
        """Where that lies which the fields have made of the image or video."""
        return self.path / (PICTURE if self.tile_frames is None else CLIP)

    @property
    def losses(self) -> Array:
        """The loss of every tile before each step, and at the end [tiles, steps + 1]."""
        found: Array = np.load(self.path / LOSSES, allow_pickle=False)
        return found

    def stack(self, start: int, stop: int) -> FieldStack:
        """Return the trained fields of some tiles."""
        *axes, channels = self.record["shape"]
        rows = read_trajectory(self.path, len(self.table))[start:stop]
        parameters = torch.from_numpy(np.array(rows)).to(self.setup.device)
        return replace(_stack(self.setup, 1, channels, dims=len(axes)), parameters=parameters)


def train_tiles(
    setup: Setup,
    *,
    tile: int = 32,
    tile_frames: int | None = None,
    block: int = 256,
    out: str | Path | None = None,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> TileRun:
    """Train a field of its own for every tile of an image or video, and keep all parameters.

    A killed run loses the block in flight; the same call continues. Memory is that of one block,
    beside the image, or the video in 8 bits.

    Args:
        setup: ``signal`` is an image or video (``load_tiles``), ``size`` the side of the image's
            centred square, or the rows of the video, by default all of it; the optimizer is
            ``lbfgs`` or ``adam``.
        tile: Pixels per side of a tile.
        tile_frames: Frames of a video in a tile; 8 by default.
        block: Tiles that are trained together.
        out: The directory; by default ``runs/tiles-<hash>``.
        overwrite: Start anew even if the directory holds such a run.
        watch: Called after every block with the number of tiles and the table so far.

    Raises:
        UsageError: For values out of range, an optimizer that stacks have not, a directory that
            holds something else.
        InputError: For an image or video that cannot be read.
        ResourceError: If a block does not fit in memory, or the parameters on the disk.
    """
    if block < 1:
        raise UsageError(f"block must be at least 1, got {block}.")
    asked_size = setup.size
    setup = replace(setup.resolved(), size=asked_size, device=named_device(setup.device))
    check_setup(setup)
    usable_device(setup.device)
    image = _loaded(setup, tile, tile_frames)
    cut = {"tile": tile} if image.rate is None else {"tile": tile, "tile_frames": image.sides[0]}
    known = identity(setup, {**cut, "data": image.source.sha256, "shape": image.shape})
    path = Path(out).expanduser() if out else Path("runs") / f"tiles-{digest(known)}"
    make_directory(path)
    with locked(path), using_threads(setup.threads or torch.get_num_threads()):
        claim(path, setup, image, known, overwrite=overwrite)
        train_blocks(path, setup, image, block, watch)
        done = load_tile_run(path)
        if not done.shown.exists() and math.prod(image.shape[:-1]) <= MOST_PIXELS:
            _draw(done, image, block)
    return done


def load_tile_run(path: str | Path) -> TileRun:
    """Return a run of tiles from its directory, as far as it is done.

    Raises:
        InputError: If the directory holds none, or one of a newer format.
    """
    directory = Path(path).expanduser()
    record, table = read_tiles(directory)
    if "tile" not in record:
        raise InputError(f"run must be one of tiles, {directory} is one of cells.")
    setup = setup_from_json(record["setup"])
    tile, frames = int(record["tile"]), record.get("tile_frames")
    return TileRun(directory, setup, tile, frames, record, table)


def _loaded(setup: Setup, tile: int, tile_frames: int | None) -> Tiled:
    clip = {name: getattr(setup, name) for name in ("start", "seconds", "rate")}
    return load_tiles(setup.signal, tile, setup.size, frames=tile_frames, **clip)


def check_setup(setup: Setup) -> None:
    """Check that fields that are trained together can be trained so.

    Raises:
        UsageError: If not.
    """
    if setup.optimizer not in OPTIMIZERS:
        raise UsageError(
            f"optimizer must be {' or '.join(OPTIMIZERS)} for fields that are trained together, "
            f"got {setup.optimizer}."
        )
    for name in setup.options:
        if name not in OPTIMIZERS[setup.optimizer]:
            allowed = ", ".join(OPTIMIZERS[setup.optimizer])
            raise UsageError(
                f"options of {setup.optimizer} for fields that are trained together are {allowed}, "
                f"got {name}."
            )
    for name in ("batch_size", "lr_final", "checkpoint_every"):
        if getattr(setup, name) is not None:
            raise UsageError(
                f"{name} must be left out for fields that are trained together: every step sees "
                "all points of each."
            )


def _stack(setup: Setup, count: int, channels: int, first: int = 0, *, dims: int = 2) -> FieldStack:
    return stack_fields(
        [
            network_of(replace(setup, seed=setup.seed + first + place), dims, channels)
            for place in range(count)
        ]
    )


def train_blocks(path: Path, setup: Setup, image: Blocks, block: int, watch: Watch | None) -> None:
    """Train the blocks that are not done; the directory is claimed and locked.

    Raises:
        ResourceError: If a block does not fit in memory, or the parameters on the disk.
    """
    _Training(path, setup, image, block, watch).run()


class _Training:
    """What is done of a run, and what is left."""

    def __init__(
        self, path: Path, setup: Setup, image: Blocks, block: int, watch: Watch | None
    ) -> None:
        self.path, self.setup, self.image, self.block = path, setup, image, block
        self.watch = watch
        self.dtype = getattr(torch, setup.dtype)
        self.size = setup.num_parameters(len(image.sides), image.shape[-1])
        self.coords = image.coords().to(device=setup.device, dtype=self.dtype)
        self._require_room()

    def _require_room(self) -> None:
        item, count = self.dtype.itemsize, min(self.block, self.image.num_tiles)
        pairs = min(self.setup.steps, int(self.setup.options.get("history_size", 100)))
        kept = 2 * pairs if self.setup.optimizer == "lbfgs" else 2
        points = self.image.num_points
        pixels = math.prod(self.image.shape[:-1])
        drawn = 2 * math.prod(self.image.shape) if pixels <= MOST_PIXELS else 0
        worked = numbers_at_once(
            CHUNK_NUMBERS,
            device=torch.device(self.setup.device),
            itemsize=item,
            num_buffers=3 * (self.setup.depth + 2),
        )
        layers = 3 * (self.setup.depth + 1) * max(self.setup.width, 2 * (self.setup.octaves or 1))
        require_bytes(
            # Pairs are copied once where some of the fields have finished.
            item * count * ((2 * kept + 8) * self.size + 6 * points * self.image.shape[-1])
            + item * layers * max(points, worked // max(1, self.setup.width))
            + drawn,
            f"A block of {count} fields of {self.size} parameters",
            device=torch.device(self.setup.device),
            cure="Take a smaller --block.",
        )
        require_disk(
            self.path,
            item * self.image.num_tiles * self.size,
            "The trajectory",
            cure="Take larger tiles (--tile).",
        )

    def run(self) -> None:
        """Train the blocks that are not done."""
        rows: list[Any] = read_table(self.path).to_dict("records")
        # A process that was killed between the two files has one block more of losses.
        losses = list(np.load(self.path / LOSSES)[: len(rows)]) if rows else []
        count = self.image.num_tiles
        writer = TrajectoryWriter(self.path, count, self.size, self.dtype)
        try:
            for start in range(len(rows), count, self.block):
                begun = time.perf_counter()
                found, curves = self._train(start, min(start + self.block, count), writer)
                rows += found
                losses += list(curves)
                self._save(rows, losses, time.perf_counter() - begun)
                if self.watch is not None:
                    self.watch(count, pd.DataFrame(rows))
        finally:
            writer.close()

    def _train(
        self, start: int, stop: int, writer: TrajectoryWriter
    ) -> tuple[list[dict[str, Any]], Array]:
        values = self.image.values(start, stop).to(device=self.setup.device, dtype=self.dtype)
        dims, channels = len(self.image.sides), self.image.shape[-1]
        stack = _stack(self.setup, stop - start, channels, start, dims=dims)
        objective = StackedObjective(stack, self.coords, values)
        walk = _lbfgs if self.setup.optimizer == "lbfgs" else _adam
        curves = []
        for state in walk(objective, stack.parameters, self.setup):
            # They are changed in place.
            curves.append(state[1].cpu().clone())
        rows = []
        parameters, losses, evaluations, finished = (each.cpu() for each in state)
        for place, index in enumerate(range(start, stop)):
            writer.write(index, parameters[place])
            corner = dict(zip(self.image.axes, self.image.corner(index), strict=True))
            loss = float(losses[place])
            rows.append(
                {"tile": index, **corner, "loss": loss}
                | {"psnr": _psnr(loss, self.image.shape[-1])}
                | {"evaluations": int(evaluations[place]), "finished": bool(finished[place])}
            )
        return rows, torch.stack(curves, dim=1).numpy().astype(np.float32)

    def _save(self, rows: list[Any], losses: list[Array], seconds: float) -> None:
        """Write the table last: what it counts is there."""
        write_atomically(self.path / LOSSES, lambda stream: np.save(stream, np.stack(losses)))
        record = read_json(self.path / RECORD, "a run of tiles")
        write_json(self.path / RECORD, record | {"seconds": record["seconds"] + seconds})
        text = pd.DataFrame(rows).to_csv(index=False).encode()
        write_atomically(self.path / TABLE, lambda stream: stream.write(text))


# Parameters, losses, evaluations and which have finished, of all fields.
State = tuple[Tensor, Tensor, Tensor, Tensor]


def _lbfgs(objective: StackedObjective, start: Tensor, setup: Setup) -> Iterator[State]:
    options = {"lr": setup.lr, **setup.options}
    optimizer = StackedLBFGS(objective, start, **options)
    for step in range(setup.steps + 1):
        if step:
            optimizer.step()
        yield optimizer.parameters, optimizer.losses, optimizer.evaluations, optimizer.finished


def _adam(objective: StackedObjective, start: Tensor, setup: Setup) -> Iterator[State]:
    together = torch.nn.Parameter(start.clone())
    assert setup.lr is not None
    optimizer = torch.optim.Adam([together], lr=setup.lr, **setup.options)
    count = torch.ones(len(start), dtype=torch.long)
    losses, together.grad = objective(together.detach())
    for step in range(setup.steps + 1):
        if step:
            optimizer.step()
            losses, together.grad = objective(together.detach())
        yield together.detach(), losses, count * (step + 1), ~losses.isfinite()


def _psnr(loss: float, channels: int) -> float:
    """Return the PSNR of a loss that sums half of squares over channels."""
    return float(-10 * np.log10(2 * loss / channels)) if loss else float("inf")


def reconstruct(run: TileRun, image: Tiled, block: int) -> Array:
    """Return what the fields are at the pixels, 8 bits [rows, columns, channels] or of frames."""
    dtype, device = getattr(torch, run.setup.dtype), run.setup.device
    coords = image.coords().to(dtype=dtype, device=device)
    pixels = np.zeros(image.shape, dtype=np.uint8)
    points = max(1, CHUNK_NUMBERS // run.setup.width)
    for start in range(0, len(run.table), block):
        stop = min(start + block, len(run.table))
        stack = run.stack(start, stop)
        with torch.no_grad():
            found = [stack(part) for part in coords.split(max(1, points // (stop - start)))]
        values = torch.cat(found, dim=1).nan_to_num().clamp(0, 1).mul(255).round()
        parts = values.to(device="cpu", dtype=torch.uint8).numpy()
        for place, index in enumerate(range(start, stop)):
            pixels[image.place(index)] = parts[place].reshape(*image.sides, -1)
    return pixels


def _draw(run: TileRun, image: Tiled, block: int) -> None:
    from PIL import Image

    pixels = reconstruct(run, image, block)
    if image.rate is not None:
        data = gif_bytes(pixels, image.rate)
        write_atomically(run.shown, lambda file: file.write(data))
        return
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if image.shape[-1] == 1 else pixels).save(stream, "PNG")
    write_atomically(run.shown, lambda file: file.write(stream.getvalue()))
