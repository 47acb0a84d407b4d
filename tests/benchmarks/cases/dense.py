"""The whole Hessian as a matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

from hessian_lab.losses import mse
from hessian_lab.probe.hessian import dense_hessian
from tests.benchmarks.case import BEST, OURS, Case, Contender, Target, Unit
from tests.benchmarks.peers import backpack, curvlinops, double_backward, torch_hessian
from tests.benchmarks.problem import Problem, hessian_reference, problem, units

# Columns that are checked, and of a large matrix those that are timed of who works by columns.
COLUMNS = 32
# Columns that curvlinops and a batched backward work on at once: the fastest of 1 to 64 on two
# cores, at 4×16 and at 4×64.
SMALL_BLOCKS, LARGE_BLOCKS = (32, 16), (16, 4)
MEASURE = "largest entry off columns by torch.func.jvp of jacrev, over the largest"


def _places(size: int) -> Tensor:
    return torch.linspace(0, size - 1, min(size, COLUMNS)).round().long()


def _largest(problem: Problem) -> Callable[[Tensor], float]:
    """Return what says how far a matrix, or its columns at the places, are from the reference."""
    places = _places(problem.size)
    reference = hessian_reference(problem, units(problem.size, places, torch.float64))

    def deviation(answer: Tensor) -> float:
        columns = answer if answer.shape == reference.shape else answer[:, places]
        return float((columns - reference).abs().max() / reference.abs().max())

    return deviation


def _ours(problem: Problem) -> Contender:
    return Contender(OURS, lambda: lambda: dense_hessian(problem.model, mse, problem.signal))


def _one_product(problem: Problem) -> Unit:
    """One matrix product [n, N]·[N, n]: what the closed form has to do at the least."""
    shape = problem.size, problem.signal.num_points
    left, right = torch.rand(shape, dtype=torch.float64), torch.rand(shape, dtype=torch.float64)
    return Unit("a product [n, N]·[N, n]", lambda: lambda: left @ right.T)


def _by_columns(problem: Problem, places: Tensor, blocks: tuple[int, int]) -> tuple[Contender, ...]:
    share = len(places) / problem.size
    together, rows = blocks
    few = f"{len(places)} columns, scaled" if share < 1 else ""

    def how(text: str) -> str:
        return ", ".join(each for each in (text, few) if each)

    return (
        Contender(
            "kept double backward",
            lambda: double_backward.columns(problem, places),
            how=how(""),
            share=share,
        ),
        Contender(
            "kept double backward",
            lambda: double_backward.columns(problem, places, rows),
            how=how(f"{rows} rows at once"),
            share=share,
        ),
        Contender(
            "curvlinops",
            lambda: curvlinops.columns(problem, places, together),
            how=how(f"{together} columns at once"),
            share=share,
        ),
    )


def small(quick: bool) -> Case:
    """Everything is timed whole."""
    found = problem("sine", 3 if quick else 16, side=6 if quick else 50)
    everywhere = torch.arange(found.size)
    return Case(
        name="dense-small",
        work=f"dense Hessian, {found.text}",
        ours=_ours(found),
        contenders=(
            *_by_columns(found, everywhere, SMALL_BLOCKS),
            Contender("torch.func.hessian", lambda: torch_hessian.whole(found), most_rounds=3),
            Contender("BackPACK", lambda: backpack.blocks(found), how="diagonal blocks only"),
        ),
        deviation=_largest(found),
        measure=MEASURE,
        tolerance=1e-10,
        rounds=1 if quick else 5,
        units=(_one_product(found),),
        targets=(Target(BEST, 20), Target("torch.func.hessian", 100)),
    )


def large(quick: bool) -> Case:
    """Who works by columns is timed on some, and scaled."""
    found = problem("sine", 4 if quick else 64, side=6 if quick else 50)
    return Case(
        name="dense-large",
        work=f"dense Hessian, {found.text}",
        ours=_ours(found),
        contenders=_by_columns(found, _places(found.size), LARGE_BLOCKS),
        deviation=_largest(found),
        measure=MEASURE,
        tolerance=1e-10,
        rounds=1 if quick else 3,
        units=(_one_product(found),),
        targets=(Target(BEST, 12),),
    )


def blocks(quick: bool) -> Case:
    """BackPACK has the diagonal blocks of networks of modules that it knows; ours is the matrix."""
    found = problem("tanh", 3 if quick else 16, side=6 if quick else 50)
    reference = _largest(found)
    slots = torch.tensor([value.numel() for value in found.parameters]).cumsum(0).tolist()
    starts = [0, *slots[:-1]]
    places = _places(found.size)
    columns = hessian_reference(found, units(found.size, places, torch.float64))

    def deviation(answer: Tensor | list[Tensor]) -> float:
        if isinstance(answer, Tensor):
            return reference(answer)
        gaps = []
        for start, stop, block in zip(starts, slots, answer, strict=True):
            inside = (places >= start) & (places < stop)
            gap = block[:, places[inside] - start] - columns[start:stop, inside]
            gaps.append(float(gap.abs().max()) if inside.any() else 0.0)
        return max(gaps) / float(columns.abs().max())

    return Case(
        name="dense-blocks",
        work=f"dense Hessian, {found.text}; BackPACK: diagonal blocks only",
        ours=_ours(found),
        contenders=(Contender("BackPACK", lambda: backpack.blocks(found)),),
        deviation=deviation,
        measure=MEASURE,
        tolerance=1e-10,
        rounds=1 if quick else 5,
    )


BUILDERS = {"dense-small": small, "dense-large": large, "dense-blocks": blocks}
