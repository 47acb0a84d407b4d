"""Which frequencies does a field fit first, and how smooth is what it has fitted?

P1 Fig. 3 (gradients and Laplacians), and what P1–P3 say of spectral bias, encodings, ω, σ and
initialisations. Fields of 4×64 on 50×50 images.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analyses.study import Answer, Row, Study, Verdict, main
from hessian_lab.fields.mlp import make_field
from hessian_lab.training.loop import train
from hessian_lab.training.setup import Setup

FIELDS: tuple[dict[str, Any], ...] = (
    {"act": "sine", "omega": 30.0},
    {"act": "gaussian", "sigma": 0.05},
    {"act": "tanh"},
    {"act": "relu"},
    {"act": "relu_pe", "octaves": 8},
)
INITIALISATIONS = ("siren", "kaiming", "xavier_normal")
OMEGAS = (5.0, 10.0, 30.0, 60.0, 188.5)
SIGMAS = (1.0, 0.5, 0.2, 0.1, 0.05)
# Bands of spatial frequency, in shares of the highest that the grid holds along an axis.
BANDS = (0.0, 0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        images: Bundled images.
        seeds: Of initialisations.
        size: Pixels per side.
        shape: Depth and width.
        steps: Of Adam, whose order of frequencies is measured, and of L-BFGS.
        draws: Fields at initialisation per ω and σ.
    """

    images: tuple[str, ...] = ("camera", "chelsea", "astronaut")
    seeds: tuple[int, ...] = (0, 1, 2)
    size: int = 50
    shape: tuple[int, int] = (4, 64)
    steps: tuple[int, int] = (600, 150)
    draws: int = 10


FULL = Config()
QUICK = replace(
    FULL, images=("camera",), seeds=(0,), size=24, shape=(2, 16), steps=(60, 15), draws=3
)


def cells(config: Config) -> list[Row]:
    """Return every fit and every field that is drawn."""
    pairs = [(image, seed) for image in config.images for seed in config.seeds]
    fits = [
        {"kind": kind, **field, "image": image, "seed": seed}
        for kind in ("bands", "derivatives")
        for field in FIELDS
        for image, seed in pairs
    ]
    begun = [
        {"kind": "init", **field, "init": init, "image": image, "seed": seed}
        for field in FIELDS[:2]
        for init in INITIALISATIONS
        for image, seed in pairs
    ]
    drawn = [
        {"kind": "drawn", "act": act, name: value}
        for act, name, values in (("sine", "omega", OMEGAS), ("gaussian", "sigma", SIGMAS))
        for value in values
    ]
    return [*fits, *begun, *drawn, {"kind": "size"}]


def measure(config: Config, cell: Row) -> Row:
    """Measure one cell."""
    depth, width = config.shape
    return {"shape": f"{depth}×{width}", **MEASURES[cell["kind"]](config, cell)}


def _setup(config: Config, cell: Row, **more: Any) -> Setup:
    names = ("act", "omega", "sigma", "octaves", "init", "seed")
    options = {name: cell[name] for name in names if name in cell}
    depth, width = config.shape
    return Setup(
        signal=cell["image"], size=config.size, depth=depth, width=width, **options, **more
    )


def _bands(config: Config, cell: Row) -> Row:
    """Return, by band, the step at which half of the signal's energy there was fitted."""
    steps = config.steps[0]
    setup = _setup(
        config, cell, optimizer="adam", lr=3e-3, steps=steps, checkpoint_every=max(1, steps // 60)
    )
    with TemporaryDirectory() as directory:
        run = train(setup, out=Path(directory) / "run")
        signal = run.signal()
        target = _band_energies(signal.values, config.size)
        left = []
        for step in run.steps:
            with torch.no_grad():
                rest = run.model(step)(signal.coords) - signal.values
            left.append(_band_energies(rest, config.size) / target)
    half = [
        next(
            (step for step, shares in zip(run.steps, left, strict=True) if shares[band] < 0.5), None
        )
        for band in range(len(BANDS) - 1)
    ]
    return {"half": half, "left": [round(float(each), 4) for each in left[-1]]}


def _band_energies(values: Tensor, size: int) -> NDArray[np.float64]:
    """Return the energy [bands] of an image by distance from frequency 0, its mean left out."""
    image = values.detach().double().view(size, size, -1)
    power = torch.fft.fft2(image - image.mean(dim=(0, 1)), dim=(0, 1)).abs().square().sum(dim=2)
    axis = torch.fft.fftfreq(size).abs() * 2
    radius = torch.maximum(axis[:, None], axis[None, :])
    found = []
    for low, high in pairwise(BANDS):
        inside = (radius > low) & (radius <= high)
        found.append(float(power[inside].sum()))
    return np.array(found)


def _derivatives(config: Config, cell: Row) -> Row:
    """Return errors of value, gradient and Laplacian against differences of the image."""
    with TemporaryDirectory() as directory:
        setup = _setup(
            config, cell, optimizer="lbfgs", steps=config.steps[1], checkpoint_every=10**6
        )
        run = train(setup, out=Path(directory) / "run")
        signal, model = run.signal(), run.model(run.steps[-1])
    coords = signal.coords.clone().requires_grad_()
    gradient, laplacian = derivatives(model, coords)
    size = config.size
    spacing = float((signal.coords[:, 0].max() - signal.coords[:, 0].min()) / (size - 1))
    image = signal.values.sum(dim=1).view(size, size)
    inner = (slice(1, -1), slice(1, -1))
    first = torch.stack(torch.gradient(image, spacing=spacing))[(slice(None), *inner)]
    second = (
        image[2:, 1:-1] + image[:-2, 1:-1] + image[1:-1, 2:] + image[1:-1, :-2] - 4 * image[inner]
    ) / spacing**2
    norms = gradient.view(size, size, 2)[inner].norm(dim=-1)
    curved = laplacian.view(size, size)[inner]
    return {
        "psnr": round(float(run.metrics["psnr"].iloc[-1]), 2),
        "gradient_correlation": _correlation(norms, first.norm(dim=0)),
        "laplacian_correlation": _correlation(curved, second),
        "laplacian_zero": round(float((laplacian == 0).double().mean()), 4),
    }


def derivatives(model: nn.Module, coords: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradient [p, d] and Laplacian [p] of the sum of a field's channels, by autograd."""
    (gradient,) = torch.autograd.grad(model(coords).sum(), coords, create_graph=True)
    laplacian = torch.zeros(len(coords), dtype=coords.dtype)
    for axis in range(coords.shape[1]):
        if gradient.requires_grad:
            part = torch.autograd.grad(
                gradient[:, axis].sum(), coords, retain_graph=True, allow_unused=True
            )[0]
            laplacian += 0 if part is None else part[:, axis]
    return gradient.detach(), laplacian.detach()


def _correlation(one: Tensor, other: Tensor) -> float:
    pair = torch.stack([one.flatten().double(), other.flatten().double()])
    # The Laplacian of a ReLU field is zero everywhere.
    if not bool(pair.std(dim=1).all()):
        return 0.0
    return round(float(torch.corrcoef(pair)[0, 1]), 4)


def _init(config: Config, cell: Row) -> Row:
    with TemporaryDirectory() as directory:
        setup = _setup(
            config, cell, optimizer="lbfgs", steps=config.steps[1], checkpoint_every=10**6
        )
        run = train(setup, out=Path(directory) / "run")
    return {"psnr": round(float(run.metrics["psnr"].iloc[-1]), 2)}


def _drawn(config: Config, cell: Row) -> Row:
    """Return the mean frequency of fields at initialisation, in shares of the grid's highest."""
    size, found = 64, []
    axis = torch.linspace(-1, 1, size, dtype=torch.float64)
    coords = torch.cartesian_prod(axis, axis)
    name = "omega" if cell["act"] == "sine" else "sigma"
    for seed in range(config.draws):
        depth, width = config.shape
        field = make_field(
            cell["act"], 2, 1, width=width, depth=depth, seed=seed, **{name: cell[name]}
        )
        with torch.no_grad():
            image = field(coords).view(size, size)
        # Without it the jump from edge to edge would pass for high frequencies.
        window = torch.hann_window(size, dtype=image.dtype)
        power = torch.fft.fft2((image - image.mean()) * torch.outer(window, window)).abs().square()
        frequency = torch.fft.fftfreq(size).abs() * 2
        radius = torch.maximum(frequency[:, None], frequency[None, :])
        found.append(float((power * radius).sum() / power.sum()))
    return {"frequency": [float(f"{each:.4g}") for each in found]}


def _size(_: Config, __: Row) -> Row:
    """Return the parameters of the papers' 5×256 fields on RGB images."""
    counted = {}
    for octaves in (None, 4, 8):
        act = "relu" if octaves is None else "relu_pe"
        options = {} if octaves is None else {"octaves": octaves}
        field = make_field(act, 2, 3, width=256, depth=4, seed=0, **options)
        counted[act if octaves is None else f"relu_pe L={octaves}"] = sum(
            value.numel() for value in field.parameters()
        )
    return {"parameters": counted}


MEASURES = {
    "bands": _bands,
    "derivatives": _derivatives,
    "init": _init,
    "drawn": _drawn,
    "size": _size,
}


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the fits say of the claims C98, C128 and C130–C132."""
    kinds = {kind: rows[rows["kind"] == kind] for kind in MEASURES}
    return [
        _smooth(kinds["derivatives"]),
        _bias(kinds["bands"]),
        _complexity(kinds["size"]),
        _monotone(kinds["drawn"]),
        _robust(kinds["init"]),
    ]


def _settings(rows: pd.DataFrame) -> str:
    images = ", ".join(dict.fromkeys(rows["image"]))
    return f"{rows['shape'].iloc[0]}; {images}; {rows['seed'].nunique()} seeds"


def _smooth(rows: pd.DataFrame) -> Verdict:
    parts, medians = [], {}
    for act, group in rows.groupby("act", sort=False):
        medians[act] = float(group["laplacian_correlation"].median())
        parts.append(
            f"{act} {group['gradient_correlation'].median():.2f} / {medians[act]:.2f} at "
            f"{group['psnr'].median():.1f} dB"
        )
    rough = max(medians[act] for act in ("relu", "relu_pe"))
    best = min(medians["sine"], medians["gaussian"])
    between = rough <= medians["tanh"] <= best
    answer: Answer = "holds" if between else "holds only under" if best > rough else "does not hold"
    measured = f"correlation of gradient norm / Laplacian with the image's: {'; '.join(parts)}"
    zero = rows[rows["act"] == "relu"]["laplacian_zero"].min()
    settings = (
        f"L-BFGS, {_settings(rows)}; the Laplacian of a ReLU field is 0 at {zero:.0%} of the "
        "points at least; the order follows the fit"
    )
    return Verdict("C98", answer, measured, settings)


def _bias(rows: pd.DataFrame) -> Verdict:
    parts, late = [], {}
    for act, group in rows.groupby("act", sort=False):
        table = pd.DataFrame(group["half"].tolist())
        steps = [
            f"{table[band].median():.0f}" if table[band].notna().mean() > 0.5 else "never"
            for band in table
        ]
        late[act] = bool(table.iloc[:, -1].isna().mean() > 0.5)
        parts.append(f"{act} {', '.join(steps)}")
    others = [act for act in late if act not in ("relu", "tanh") and late[act]]
    answer: Answer = "holds" if late["relu"] and not others else "holds only under"
    answer = answer if late["relu"] else "does not hold"
    names = ", ".join(f"≤ {high:g}" for high in BANDS[1:])
    measured = (
        f"steps of Adam to half of the energy in bands {names} of the highest: {'; '.join(parts)}"
    )
    return Verdict("C128", answer, measured, f"Adam 3e-3, {_settings(rows)}")


def _complexity(rows: pd.DataFrame) -> Verdict:
    counted = rows["parameters"].iloc[0]
    grows = counted["relu"] < counted["relu_pe L=4"] < counted["relu_pe L=8"]
    text = ", ".join(f"{name} {count:,}" for name, count in counted.items())
    return Verdict("C130", "holds" if grows else "does not hold", text, "5×256, RGB images")


def _monotone(rows: pd.DataFrame) -> Verdict:
    parts, rises = [], []
    for act, name, symbol, sign in (("sine", "omega", "ω", 1), ("gaussian", "sigma", "σ", -1)):
        group = rows[rows["act"] == act].sort_values(name)
        medians = group["frequency"].map(np.median)
        rises.append(bool((sign * np.diff(medians) > 0).all()))
        parts.append(
            ", ".join(
                f"{symbol}={value:g} {median:.3f}"
                for value, median in zip(group[name], medians, strict=True)
            )
        )
    answer: Answer = "holds" if all(rises) else "holds only under"
    measured = f"mean frequency at the start, of the grid's highest: {'; '.join(parts)}"
    draws = len(rows["frequency"].iloc[0])
    settings = f"{rows['shape'].iloc[0]}, 64×64 grid under a Hann window, {draws} seeds"
    return Verdict("C131", answer, measured, settings)


def _robust(rows: pd.DataFrame) -> Verdict:
    parts, widths = [], {}
    for act, group in rows.groupby("act", sort=False):
        medians = group.groupby("init", sort=False)["psnr"].median()
        widths[act] = float(medians.max() - medians.min())
        told = ", ".join(f"{init} {value:.1f}" for init, value in medians.items())
        parts.append(f"{act} {told} dB")
    holds = widths["gaussian"] < widths["sine"]
    measured = (
        f"{'; '.join(parts)}; spread {widths['gaussian']:.1f} (Gaussian), {widths['sine']:.1f} "
        "(sine) dB"
    )
    answer: Answer = "holds" if holds else "does not hold"
    return Verdict("C132", answer, measured, f"L-BFGS, {_settings(rows)}")


STUDY = Study(
    name="field_frequencies",
    question="Which frequencies does a field fit first, and how smooth is what it has fitted?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
