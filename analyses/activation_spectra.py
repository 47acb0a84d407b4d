"""What are the Hessian's eigenvalues along a training, by activation, and how many are zero?

P1 Fig. 2 and P1s Figs 1–4: L-BFGS for 50 steps on a 50×50 image, all eigenvalues of the full-batch
Hessian in float64, pooled over the run. The papers state neither octaves, σ, ω, seeds nor images:
all are varied here. ``wide_spectra`` has the 4×64 fields.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from analyses.study import Row, Study, Verdict, main
from analyses.words import spread
from hessian_lab.names import plural
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.probe.spectrum import LADDER, Spectrum, pooled, spectrum
from hessian_lab.training.loop import train
from hessian_lab.training.run import Run
from hessian_lab.training.setup import Setup

# The window of the papers' histograms, and the numbers of bins that it may have had.
WINDOW = 0.01
BINS = (21, 51, 101, 201)
# Decades of |λ| / max|λ| of the histogram in the record.
DECADES = 16
Field = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """What is varied.

    Attributes:
        fields: The options of ``Setup`` of each network, with the ``group`` of its claims.
        images: Bundled images, reduced to 50×50.
        seeds: Of initialisations.
        steps: Of L-BFGS.
        every: Iterates from one spectrum to the next.
        size: Pixels per side.
    """

    fields: tuple[Field, ...]
    images: tuple[str, ...] = ("camera", "chelsea", "astronaut")
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    steps: int = 50
    every: int = 5
    size: int = 50


def fields_of(depth: int, width: int, **more: Any) -> list[Field]:
    """Return the four activations of the papers at one shape."""
    shape = {"depth": depth, "width": width, **more}
    return [
        {"act": "relu", **shape},
        {"act": "relu_pe", "octaves": 4, **shape},
        {"act": "relu_pe", "octaves": 8, **shape},
        {"act": "sine", "omega": 30.0, **shape},
        {"act": "gaussian", "sigma": 0.05, **shape},
    ]


SMALL = {"depth": 4, "width": 16}
VARIED = (
    *({"act": "relu_pe", "octaves": octaves, **SMALL} for octaves in (2, 6, 10)),
    *({"act": "sine", "omega": omega, **SMALL} for omega in (5.0, 10.0, 60.0, 188.5)),
    *({"act": "gaussian", "sigma": sigma, **SMALL} for sigma in (0.02, 0.1, 0.2, 0.3, 0.5, 1.0)),
)
FULL = Config(
    fields=(
        *fields_of(4, 16),
        *VARIED,
        *fields_of(4, 16, init="xavier_normal"),
        *(one for one in fields_of(1, 512) if one.get("octaves") is None),
        {"act": "relu_pe", "octaves": 1, "depth": 1, "width": 512},
    )
)
QUICK = replace(
    FULL, fields=tuple(fields_of(4, 16)), images=("camera",), seeds=(0,), steps=10, size=24
)


def cells(config: Config) -> list[Row]:
    """Return every network on every image from every seed; the largest ones from the first."""
    return [
        {**one, "image": image, "seed": seed}
        for one in config.fields
        for image in config.images
        for seed in (config.seeds[:1] if _is_large(one) else config.seeds)
    ]


def _is_large(field: Field) -> bool:
    return field["width"] > 64 and bool(field.get("octaves"))


def measure(config: Config, cell: Row) -> Row:
    """Train one network and measure its spectra."""
    options = {name: value for name, value in cell.items() if name not in ("image", "seed")}
    setup = Setup(
        signal=cell["image"],
        seed=cell["seed"],
        size=config.size,
        steps=config.steps,
        checkpoint_every=config.every * (4 if cell["width"] > 64 else 1),
        **options,
    )
    with TemporaryDirectory() as directory:
        run = train(setup, out=Path(directory) / "run")
        spectra = [_spectrum(run, step) for step in run.steps]
    return {
        "num_parameters": run.num_parameters,
        "num_outputs": run.record["shape"][1],
        "steps": run.steps,
        "psnr": round(float(run.metrics["psnr"].iloc[-1]), 2),
        **summary(spectra),
    }


def _spectrum(run: Run, step: int) -> Spectrum:
    model = run.model(step).double()
    return spectrum(dense_hessian(model, run.loss, run.signal().to(dtype=torch.float64)))


def summary(spectra: list[Spectrum]) -> Row:
    """Return what a row tells of the spectra of one run."""
    pool = pooled(spectra)
    values = np.concatenate([one.values.numpy() for one in spectra])
    inside = values[np.abs(values) <= WINDOW]
    least = [one.smallest_magnitude for one in spectra]
    return {
        "zero": _short(pool["numerical_zero_share"]),
        "structural": _short(pool["structural_zero_share"]),
        "negative": _short(pool["negative_share"]),
        "zero_by_step": [_short(one.numerical_zeros / len(one.values)) for one in spectra],
        "below": [
            _short(float(np.mean([one.shares_below[rung] for one in spectra]))) for rung in LADDER
        ],
        "in_window": _short(len(inside) / len(values)),
        "central_bin": [_short(_central(inside, count)) for count in BINS],
        "least": [_short(each) for each in (min(least), float(np.median(least)), max(least))],
        "floor": [_short(each) for each in _range([one.tolerance for one in spectra])],
        "radius": [_short(each) for each in _range([one.spectral_radius for one in spectra])],
        "kappa_tenth": [_short(_kappa_tenth(one)) for one in (spectra[0], spectra[-1])],
        "resolved": sum(one.condition_number_resolved for one in spectra),
        "histogram": _histogram(spectra),
    }


def _kappa_tenth(one: Spectrum) -> float:
    """Return max|λ| over the 10 %-quantile of |λ|."""
    tenth = float(np.quantile(one.magnitudes.numpy(), 0.1))
    return one.spectral_radius / tenth if tenth else float("inf")


def _central(inside: NDArray[np.float64], bins: int) -> float:
    """Return the share of the bin at zero among all values in the window."""
    if not len(inside):
        return 0.0
    counts, _ = np.histogram(inside, bins=bins, range=(-WINDOW, WINDOW))
    return float(counts[bins // 2] / len(inside))


def _histogram(spectra: list[Spectrum]) -> list[list[float]]:
    """Return shares of positive and of negative eigenvalues by half decades below max|λ|."""
    edges = np.linspace(-DECADES, 0, 2 * DECADES + 1)
    rows = []
    for sign in (1, -1):
        found = []
        for one in spectra:
            values = one.values.numpy()
            kept = values[(np.sign(values) == sign) & (np.abs(values) > one.tolerance)]
            places = np.clip(np.log10(np.abs(kept) / one.spectral_radius), -DECADES, 0)
            found.append(np.histogram(places, bins=edges)[0] / len(values))
        rows.append([_short(each) for each in np.mean(found, axis=0)])
    return rows


def _range(numbers: list[float]) -> tuple[float, float]:
    return min(numbers), max(numbers)


def _short(number: float) -> float:
    return float(f"{number:.4g}")


# What the papers print, and where.
PRINTED = {
    "C01": ("relu_pe", {"depth": 4}, 0.28),
    "C02": ("relu", {"depth": 4}, 0.28),
    "C03": ("relu_pe", {"depth": 4}, 0.45),
    "C08": ("relu", {"depth": 1}, 0.12),
}
XAVIER = {"relu": 0.24, "relu_pe": 0.05}
NONE_ZERO = {
    "C04": ("sine", {"depth": 4}, 5e-4),
    "C05": ("gaussian", {"depth": 4}, 1e-12),
}


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the spectra say of the claims C01–C18."""
    plain = rows[rows.get("init", pd.Series(index=rows.index, dtype=object)).isna()]
    found = [
        judged_share(claim, _of(plain, act, **shape), printed)
        for claim, (act, shape, printed) in PRINTED.items()
    ]
    for claim, (act, shape, printed) in NONE_ZERO.items():
        found.append(judged_none(claim, _of(plain, act, **shape), printed))
    wide = plain[plain["depth"] == 1]
    found += [_encoded_wide(_of(wide, "relu_pe")), _smooth_wide(wide)]
    if len(plain) < len(rows):
        xavier = rows[rows["init"] == "xavier_normal"] if "init" in rows else rows[:0]
        found += [_xavier(xavier), _xavier_smooth(xavier), _initialisation(plain, xavier)]
    small = plain[plain["depth"] == 4]
    found += [
        _everywhere(plain),
        _throughout(small),
        _encoding(small),
        _spike(small),
        _conditioning(small),
    ]
    return [one for one in found if one is not None]


def _of(rows: pd.DataFrame, act: str, **more: Any) -> pd.DataFrame:
    chosen = rows[rows["act"] == act]
    for name, value in more.items():
        chosen = chosen[chosen[name] == value]
    return chosen


def _settings(rows: pd.DataFrame) -> str:
    shapes = {f"{depth}×{width}" for depth, width in zip(rows["depth"], rows["width"], strict=True)}
    return (
        f"{', '.join(sorted(shapes))}; {', '.join(sorted(set(rows['image'])))}; "
        f"{plural(rows['seed'].nunique(), 'seed')}; floor n·eps·max|λ|"
    )


def judged_share(claim: str, rows: pd.DataFrame, printed: float) -> Verdict | None:
    """Judge a printed share of zeros: is it inside the range over seeds and images?"""
    if not len(rows):
        return None
    parts, inside = [], []
    key = "octaves" if rows["act"].iloc[0] == "relu_pe" else None
    for value, group in rows.groupby(key) if key else [("", rows)]:
        label = f"L={int(value)} " if key else ""
        parts.append(f"{label}{spread(group['zero'], percent=True)}")
        if group["zero"].min() <= printed <= group["zero"].max():
            inside.append(label.strip())
    answer = "does not hold"
    if inside:
        answer = "holds" if not key or len(inside) == len(parts) else "holds only under"
    where = f"; {printed:.0%} is inside at {', '.join(inside)}" if inside and key else ""
    return Verdict(claim, answer, f"zero {'; '.join(parts)}", _settings(rows) + where)


def judged_none(claim: str, rows: pd.DataFrame, printed: float) -> Verdict | None:
    """Judge 'no zero eigenvalue': is anything below the floor?"""
    if not len(rows):
        return None
    name, symbol = ("omega", "ω") if rows["act"].iloc[0] == "sine" else ("sigma", "σ")
    parts, clean = [], []
    for value, group in rows.groupby(name):
        parts.append(f"{symbol}={value:g} {spread(group['zero'], percent=True)}")
        if group["zero"].max() == 0:
            clean.append(f"{value:g}")
    low = min(each[0] for each in rows["least"])
    high = max(each[2] for each in rows["least"])
    answer = "does not hold"
    if clean:
        answer = "holds" if len(clean) == len(parts) else "holds only under"
    if answer == "holds" and not low <= printed <= high:
        answer = "holds only under"
    floors = [min(each[0] for each in rows["floor"]), max(each[1] for each in rows["floor"])]
    measured = (
        f"zero {'; '.join(parts)}; min|λ| {low:.0e} … {high:.0e}, floor "
        f"{floors[0]:.0e} … {floors[1]:.0e}"
    )
    where = f"none below the floor at {symbol} = {', '.join(clean)}" if clean else "at no " + symbol
    return Verdict(claim, answer, measured, f"{_settings(rows)}; {where}")


def _encoded_wide(rows: pd.DataFrame) -> Verdict | None:
    if not len(rows):
        return None
    measured = f"zero {spread(rows['zero'], percent=True)} at L={int(rows['octaves'].iloc[0])}"
    answer = "does not hold" if rows["zero"].min() > 0 else "holds only under"
    bound = "rank H ≤ points·channels + 2·channels·512 forces zeros for grey images"
    return Verdict("C09", answer, measured, f"{_settings(rows)}; {bound}")


def _smooth_wide(rows: pd.DataFrame) -> Verdict | None:
    smooth = rows[rows["act"].isin(["sine", "gaussian"])]
    if not len(smooth):
        return None
    parts, none = [], []
    for act, group in smooth.groupby("act"):
        least = min(each[0] for each in group["least"])
        parts.append(f"{act} {spread(group['zero'], percent=True)}, min|λ| {least:.0e}")
        none += [str(act)] if group["zero"].max() == 0 else []
    answer = "holds" if len(none) == 2 else "holds only under" if none else "does not hold"
    where = f"none for {', '.join(none)}" if none else "zeros for both"
    return Verdict("C10", answer, "; ".join(parts), f"{_settings(smooth)}; {where}")


def _xavier(rows: pd.DataFrame) -> Verdict | None:
    parts, inside = [], 0
    for act, printed in XAVIER.items():
        group = _of(rows, act)
        if not len(group):
            return None
        parts.append(f"{act} {spread(group['zero'], percent=True)} ({printed:.0%} printed)")
        inside += bool(group["zero"].min() <= printed <= group["zero"].max())
    answer = ("does not hold", "holds only under", "holds")[inside]
    return Verdict("C11", answer, "; ".join(parts), _settings(rows) + "; Xavier normal")


def _xavier_smooth(rows: pd.DataFrame) -> Verdict | None:
    smooth = rows[rows["act"].isin(["sine", "gaussian"])]
    if not len(smooth):
        return None
    parts = [
        f"{act} {spread(group['zero'], percent=True)} at {spread(group['psnr'], digits=1)} dB"
        for act, group in smooth.groupby("act")
    ]
    clean = smooth["zero"].max() == 0
    trains = smooth.groupby("act")["psnr"].median().min() > 15
    answer = "holds" if clean and trains else "holds only under" if clean else "does not hold"
    return Verdict("C12", answer, "; ".join(parts), _settings(rows) + "; Xavier normal")


def _initialisation(plain: pd.DataFrame, xavier: pd.DataFrame) -> Verdict | None:
    parts, falls = [], []
    for act in ("relu", "relu_pe"):
        first, second = _of(plain, act, depth=4), _of(xavier, act, depth=4)
        keys = ["octaves", "image", "seed"] if act == "relu_pe" else ["image", "seed"]
        both = first.merge(second, on=keys, suffixes=("", "_xavier"))
        if not len(both):
            return None
        change = both["zero_xavier"] - both["zero"]
        falls.append(change.max() < 0)
        parts.append(f"{act} {spread(change, percent=True)} points")
    answer = "holds" if all(falls) else "holds only under" if any(falls) else "does not hold"
    return Verdict("C16", answer, f"change {'; '.join(parts)}", _settings(xavier))


def _everywhere(rows: pd.DataFrame) -> Verdict | None:
    smooth = rows[rows["act"].isin(["sine", "gaussian"])]
    rough = rows[rows["act"].isin(["relu", "relu_pe"])]
    if not len(smooth) or not len(rough):
        return None
    with_zeros = smooth[smooth["zero"] > 0]
    without = rough[rough["zero"] == 0]
    answer = "holds" if not len(with_zeros) and not len(without) else "holds only under"
    measured = (
        f"{len(with_zeros)} of {len(smooth)} smooth runs have zeros, {len(without)} of "
        f"{len(rough)} ReLU and ReLU-PE runs have none"
    )
    sigmas = sorted({f"{value:g}" for value in with_zeros.get("sigma", pd.Series()).dropna()})
    where = f"; exceptions at σ = {', '.join(sigmas)}" if sigmas else ""
    return Verdict("C13", answer, measured, _settings(rows) + where)


def _throughout(rows: pd.DataFrame) -> Verdict | None:
    rough = rows[rows["act"].isin(["relu", "relu_pe"])]
    if not len(rough):
        return None
    drift = rough["zero_by_step"].map(lambda shares: max(shares) - min(shares))
    least = rough["zero_by_step"].map(min)
    answer = "holds" if drift.max() <= 0.05 else "holds only under"
    answer = "does not hold" if least.min() == 0 else answer
    measured = f"within a run the share moves by {spread(drift, percent=True)} points"
    return Verdict("C14", answer, measured, _settings(rough) + "; zeros at every iterate measured")


def _encoding(rows: pd.DataFrame) -> Verdict | None:
    first, second = _of(rows, "relu"), _of(rows, "relu_pe")
    both = first.merge(second, on=["image", "seed"], suffixes=("", "_encoded"))
    if not len(both):
        return None
    change = both["zero_encoded"] - both["zero"]
    answer = "does not hold" if change.max() < 0 else "holds only under"
    measured = f"ReLU-PE − ReLU {spread(change, percent=True)} points"
    settings = _settings(rows) + "; the papers print a rise at 4×16 and falls elsewhere"
    return Verdict("C15", answer, measured, settings)


def _spike(rows: pd.DataFrame) -> Verdict | None:
    acts = ("relu", "relu_pe", "sine")
    groups = {act: _of(rows, act) for act in acts}
    if not all(len(group) for group in groups.values()):
        return None
    central = {
        act: np.array(group["central_bin"].tolist()).reshape(-1, len(BINS))
        for act, group in groups.items()
    }
    stable = all(
        np.median(central[act][:, place]) > np.median(central["sine"][:, place])
        for act in acts[:2]
        for place in range(len(BINS))
    )
    parts = [
        f"{act} {np.median(central[act][:, 0]):.0%} … {np.median(central[act][:, -1]):.0%}"
        for act in acts
    ]
    measured = (
        f"share of the window in the bin at 0, {BINS[0]} … {BINS[-1]} bins: {'; '.join(parts)}"
    )
    return Verdict("C17", "holds" if stable else "does not hold", measured, _settings(rows))


def _conditioning(rows: pd.DataFrame) -> Verdict | None:
    medians, smooth_best = {}, True
    for act in ("relu", "relu_pe", "sine", "gaussian"):
        group = _of(rows, act)
        if not len(group):
            return None
        last = pd.Series(
            [each[1] if each[1] is not None else np.inf for each in group["kappa_tenth"]]
        )
        medians[act] = (last.median(), last.min(), last.max())
    rough = min(medians[act][1] for act in ("relu", "relu_pe"))
    better = [act for act in ("sine", "gaussian") if medians[act][2] < rough]
    smooth_best = len(better) == 2
    answer = "holds" if smooth_best else "holds only under" if better else "does not hold"
    parts = [f"{act} {median:.1e}" for act, (median, *_) in medians.items()]
    measured = f"max|λ| / 10 %-quantile of |λ| at the last iterate, median: {'; '.join(parts)}"
    where = f"; in every run for {', '.join(better)}" if better else "; in every run for neither"
    return Verdict("C18", answer, measured, _settings(rows) + where)


STUDY = Study(
    name="activation_spectra",
    question="What are the Hessian's eigenvalues along a training, by activation?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
