"""What the papers say of preconditioners themselves, measured on fixed states.

Part of the study ``preconditioned_conditioning``; its configuration gives sizes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from analyses.study import Row
from hessian_lab.fields.mlp import CoordinateMLP, make_field
from hessian_lab.losses import mse
from hessian_lab.optim.contract import Contract
from hessian_lab.optim.make import make_optimizer
from hessian_lab.probe.closed_diagonal import exact_diagonal
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.probe.scaling import scaling
from hessian_lab.probe.spectrum import spectrum
from hessian_lab.signal import Signal
from hessian_lab.signals import load_signal
from hessian_lab.training.run import fill, flat

Field = Mapping[str, Any]
FIELDS: tuple[dict[str, Any], ...] = (
    {"act": "sine", "omega": 30.0},
    {"act": "gaussian", "sigma": 0.1},
    {"act": "relu"},
    {"act": "relu_pe", "octaves": 8},
)
BATCH = 512


def digits(value: float, count: int = 6) -> float:
    """Return a number with as many digits as a record keeps."""
    return float(f"{value:.{count}g}")


def scales_of(field: Field) -> tuple[float | None, float | None]:
    """Return ω and σ of a field."""
    return field.get("omega"), field.get("sigma")


def field_of(
    field: Field, *, num_inputs: int = 2, width: int = 16, depth: int = 4, seed: int = 0
) -> CoordinateMLP:
    """Return a field of one output in float64."""
    options = {name: field[name] for name in ("omega", "sigma", "octaves") if field.get(name)}
    return make_field(field["act"], num_inputs, 1, width=width, depth=depth, seed=seed, **options)


def bounds(config: Any, seed: int) -> list[Row]:
    """Count violations of κ < (2 / |det|)(‖H‖_F/√N)^p, p = 1 as printed and N as proven."""
    generator = np.random.default_rng(seed)
    draws = max(20, int(250 * config.scale))
    printed = proven = 0
    gains = []
    for size in (2, 5, 10, 20, 40):
        for _ in range(draws):
            matrix = generator.standard_normal((size, size))
            printed_one, proven_one, gain = _guggenheimer(matrix + matrix.T)
            printed, proven = printed + printed_one, proven + proven_one
            gains.append(gain)
    row = {"matrices": "random", "draws": 5 * draws, "printed": printed, "proven": proven}
    rows = [row | {"largest_factor": digits(max(gains))}]
    # A field that double precision resolves.
    model, signal = field_of(FIELDS[0], num_inputs=1, depth=2, seed=seed), load_signal("sines", 100)
    one = _guggenheimer(dense_hessian(model, mse, signal).numpy())
    return [*rows, {"matrices": "sine", "draws": 1, "printed": one[0], "proven": one[1]}]


def _guggenheimer(matrix: np.ndarray) -> tuple[int, int, float]:
    """Return whether each bound is violated, and log₁₀ of the factor that left scaling gains."""
    size = len(matrix)
    values = np.linalg.svd(matrix, compute_uv=False)
    kappa = math.log10(values[0] / values[-1])
    determinant = np.log10(values).sum()
    mean = math.log10(np.linalg.norm(matrix) / math.sqrt(size))
    bound = math.log10(2) - determinant
    factor = np.log10(np.linalg.norm(matrix, axis=1)).sum() - size * mean
    return int(kappa >= bound + mean), int(kappa >= bound + size * mean), float(factor)


def estimators(config: Any, seed: int) -> list[Row]:
    """Compare E[(Hv)²] and E[v ⊙ Hv] with rows and diagonal, for 1 and for many probes."""
    signal, rows = load_signal("camera", config.size), []
    for field in (FIELDS[0], FIELDS[2]):
        model = field_of(field, width=config.width, depth=config.depth, seed=seed)
        matrix = dense_hessian(model, mse, signal)
        norms, diagonal = matrix.norm(dim=1), matrix.diagonal()
        live = norms > 1e-12 * norms.max()
        for kind in ("normal", "rademacher"):
            probes = _probes(kind, len(matrix), int(4000 * config.scale), seed)
            products = matrix @ probes
            square, mixed = products.square(), probes * products
            mean, count = mixed.mean(dim=1), probes.shape[1]
            error = mixed.std(dim=1) / math.sqrt(count)
            scores = ((mean - diagonal) / error)[live & (error > 0)]
            seen = live & (diagonal != 0)
            rows.append(
                {
                    "act": field["act"],
                    "probes": kind,
                    "num_probes": count,
                    "square_ratio": _median((square.mean(dim=1) / norms**2)[live]),
                    "printed_ratio": _median((square.mean(dim=1) / norms)[live]),
                    "square_one_probe": _median((square.std(dim=1) / norms**2)[live]),
                    "diagonal_bias": digits(float(scores.mean()), 3),
                    "diagonal_spread": digits(float(scores.std()), 3),
                    "diagonal_one_probe": _median((mixed.std(dim=1) / diagonal.abs())[seen]),
                }
            )
    return rows


def adahessian(config: Any, seed: int) -> list[Row]:
    """Compare the denominator of each AdaHessian, at rest, with row norms and diagonal."""
    signal, rows = load_signal("sines", 100), []
    for estimator in ("equilibrated", "pn-jacobi", "jacobi"):
        model = field_of(FIELDS[0], num_inputs=1, depth=2, seed=seed)
        matrix = dense_hessian(model, mse, signal)
        optimizer: Contract = make_optimizer(
            "adahessian", model, lr=1e-300, estimator=estimator, betas=(0.9, 0.999), eps=1e-300
        )
        for _ in range(max(50, int(1000 * config.scale))):
            optimizer.step(lambda model=model: mse(model(signal.coords), signal.values))
        scale = optimizer.preconditioner(model).scale
        assert scale is not None
        norms, diagonal = matrix.norm(dim=1), matrix.diagonal().abs()
        rows.append(
            {
                "estimator": estimator,
                "to_rows": _median(scale / norms),
                "to_rows_spread": digits(float((scale / norms).log10().std()), 3),
                "to_diagonal": _median(scale / diagonal),
                "to_diagonal_spread": digits(float((scale / diagonal).log10().std()), 3),
            }
        )
    return rows


def batches(config: Any, seed: int) -> list[Row]:
    """Compare H of a batch, and averages over batches, with H of all points."""
    signal, rows = load_signal("camera", max(32, int(224 * config.scale))), []
    count = max(10, int(40 * config.scale))
    for field in FIELDS[:3]:
        model = field_of(field, width=config.width, depth=config.depth, seed=seed)
        _adam(model, signal, int(300 * config.scale), seed)
        whole = dense_hessian(model, mse, signal)
        norm, rows_of = whole.norm(), whole.norm(dim=1)
        live = rows_of > 1e-12 * rows_of.max()
        average, squares = torch.zeros_like(whole), torch.zeros_like(rows_of)
        single, scales = [], []
        for index in range(count):
            part = dense_hessian(model, mse, _batch(signal, seed, index))
            single.append(float((part - whole).norm() / norm))
            scales.append(_median((part.norm(dim=1) / rows_of - 1).abs()[live]))
            # The moving average with decay 0.9, its bias corrected at the end.
            average = 0.9 * average + 0.1 * part
            squares = 0.9 * squares + 0.1 * part.square().sum(dim=1)
        average, squares = average / (1 - 0.9**count), squares / (1 - 0.9**count)
        rows.append(
            {
                "act": field["act"],
                "num_points": signal.num_points,
                "noise": digits(float(np.median(single))),
                "noise_ema": digits(float((average - whole).norm() / norm)),
                "scale_error": digits(float(np.median(scales))),
                "scale_error_ema": _median((squares.sqrt() / rows_of - 1).abs()[live]),
                "scale_bias_ema": _median((squares.sqrt() / rows_of)[live]),
            }
        )
    return rows


def moments(config: Any, seed: int) -> list[Row]:
    """Compare Adam's second moment with diagonals of curvature, and what each makes of κ."""
    signal, rows = load_signal("camera", config.size), []
    for field in FIELDS:
        for stage, num_steps in (("start", 0), ("trained", int(500 * config.scale))):
            model = field_of(field, width=config.width, depth=config.depth, seed=seed)
            _adam(model, signal, num_steps, seed)
            moment = _second_moment(model, signal, max(50, int(300 * config.scale)), seed)
            matrix = dense_hessian(model, mse, signal)
            ggn = exact_diagonal(model, mse, signal, matrix="ggn")
            scales = {
                "rows": matrix.norm(dim=1),
                "diagonal": matrix.diagonal().abs(),
                "ggn": ggn,
            }
            live = (moment > 0) & (ggn > 0)
            row: Row = {"act": field["act"], "stage": stage, "live": int(live.sum())}
            for name, scale in scales.items():
                row[f"spearman_{name}"] = digits(float(spearmanr(moment[live], scale[live])[0]), 4)
            ratio = (moment / ggn)[live].log10()
            row |= {"log_ratio": _median(ratio), "log_spread": digits(float(ratio.std()), 3)}
            for name, scale in {"none": None, **scales, "root": moment.sqrt()}.items():
                row[f"tenth_{name}"] = _tenth(matrix, scale)
            rows.append(row)
    return rows


def stability(config: Any, seed: int) -> list[Row]:
    """Find the largest rate at which gradient descent does not leave, in units of 2/λmax."""
    signal, rows = load_signal("sines", 100), []
    for field in FIELDS[:2]:
        model = field_of(field, num_inputs=1, depth=2, seed=seed)
        rate = 0.02 if field["act"] == "gaussian" else 1e-3
        optimizer: Contract = make_optimizer("sgd", model, lr=rate)
        taken = 0
        for until in (int(100 * config.scale), int(1000 * config.scale)):
            while taken < until:
                optimizer.step(lambda model=model: mse(model(signal.coords), signal.values))
                taken += 1
            largest = spectrum(dense_hessian(model, mse, signal)).lambda_max
            factor = _largest_factor(model, signal, largest, max(20, int(200 * config.scale)))
            rows.append(
                {
                    "act": field["act"],
                    "step": taken,
                    "rate": rate,
                    "sharpness": digits(rate * largest / 2),
                    "factor": digits(factor, 4),
                }
            )
    return rows


def _largest_factor(model: CoordinateMLP, signal: Signal, largest: float, num_steps: int) -> float:
    """Bisect the rate over 2/λmax, up to which the loss of the next steps stays below its start."""
    start = flat(model).clone()

    def stays(factor: float) -> bool:
        fill(model, start)
        first = None
        for _ in range(num_steps):
            loss = mse(model(signal.coords), signal.values)
            first = loss.item() if first is None else first
            if not loss.item() <= 1.01 * first:
                return False
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for value, gradient in zip(model.parameters(), gradients, strict=True):
                    value.sub_(gradient, alpha=factor * 2 / largest)
        return True

    low, high = 1 / 16, 16.0
    for _ in range(9):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if stays(middle) else (low, middle)
    fill(model, start)
    return low


def absolute(_config: Any, seed: int) -> list[Row]:
    """Return how far the eigenvalues of |H|^{-p} H are from ±1, for p = 1 and as printed, p = ½."""
    model = field_of(FIELDS[0], num_inputs=1, depth=2, seed=seed)
    signal, rows = load_signal("sines", 100), []
    for exponent in (0.5, 1.0):
        optimizer: Contract = make_optimizer(
            "psgd", model, lr=1e-300, preconditioner="abs-hessian", exponent=exponent, eps=1e-300
        )
        optimizer.step(lambda: mse(model(signal.coords), signal.values))
        matrix = dense_hessian(model, mse, signal)
        scaled = optimizer.preconditioner(model).precondition(matrix).dense()
        found = spectrum((scaled + scaled.T) / 2)
        gap = float((found.magnitudes - 1).abs().max())
        kappa = math.log10(found.condition_number)
        rows.append({"exponent": exponent, "gap": digits(gap), "log_kappa": digits(kappa)})
    return rows


FACTS: dict[str, Callable[[Any, int], list[Row]]] = {
    "bounds": bounds,
    "estimators": estimators,
    "adahessian": adahessian,
    "batches": batches,
    "moments": moments,
    "stability": stability,
    "absolute": absolute,
}


def _median(values: Tensor) -> float:
    return digits(float(values.median()), 4)


def _tenth(matrix: Tensor, scale: Tensor | None) -> float:
    """Return log₁₀ of max|λ| over the 10 % quantile of |λ| of a scaled matrix."""
    root = None if scale is None else scaling(scale).inverse_sqrt
    scaled = matrix if root is None else root.unsqueeze(1) * matrix * root
    found = spectrum(scaled)
    quantile = max(float(torch.quantile(found.magnitudes, 0.1)), found.tolerance)
    return digits(math.log10(found.spectral_radius / quantile))


def _probes(kind: str, size: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(size, count, dtype=torch.float64, generator=generator)
    return normal if kind == "normal" else normal.sign()


def _batch(signal: Signal, seed: int, index: int) -> Signal:
    generator = torch.Generator().manual_seed(1_000_003 * seed + index)
    chosen = torch.randperm(signal.num_points, generator=generator)[:BATCH]
    return Signal(signal.coords[chosen], signal.values[chosen])


def _adam(model: CoordinateMLP, signal: Signal, num_steps: int, seed: int) -> None:
    optimizer: Contract = make_optimizer("adam", model, lr=1e-3)
    for index in range(num_steps):
        part = _batch(signal, seed + 1000, index)
        optimizer.step(lambda part=part: mse(model(part.coords), part.values))


def _second_moment(model: CoordinateMLP, signal: Signal, count: int, seed: int) -> Tensor:
    """Return the mean of squared batch gradients at fixed parameters."""
    total = torch.zeros_like(flat(model))
    for index in range(count):
        part = _batch(signal, seed + 2000, index)
        loss = mse(model(part.coords), part.values)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        total += torch.cat([gradient.flatten() for gradient in gradients]).square()
    return total / count
