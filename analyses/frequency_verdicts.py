"""What fits, draws and batches say of frequencies, smoothness and initialisations."""

import numpy as np
import pandas as pd

from analyses.study import Answer, Verdict

# Bands of spatial frequency, in shares of the highest that the grid holds along an axis.
BANDS = (0.0, 0.125, 0.25, 0.5, 1.0)


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the fits say of the claims C98, C128 and C130–C132."""
    kinds = {str(kind): group for kind, group in rows.groupby("kind", sort=False)}
    return [
        _smooth(kinds["derivatives"]),
        _bias(kinds["bands"]),
        _complexity(kinds["size"]),
        _monotone(kinds["drawn"]),
        _robust(kinds["init"]),
        _noisy(kinds["noise"]),
        _compressed(kinds["size"]),
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
    slopes = rows.groupby("act")["gradient_correlation"].median()
    ordered = (
        slopes[["relu", "relu_pe"]].max() <= slopes["tanh"] <= slopes[["sine", "gaussian"]].min()
    )
    between = rough <= medians["tanh"] <= best and bool(ordered)
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
        late[act] = bool(table.iloc[:, -1].isna().mean() >= 0.5)
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


def _noisy(rows: pd.DataFrame) -> Verdict:
    parts, rises, starts = [], [], []
    for act, group in rows.groupby("act", sort=False):
        table = group.assign(
            start=group["noise"].map(lambda both: both[0]),
            end=group["noise"].map(lambda both: both[1]),
        )
        medians = table.groupby("frequency")[["start", "end", "psnr"]].median()
        rises.append(bool(medians["end"].is_monotonic_increasing))
        starts.append(float(medians["start"].max() / medians["start"].min()))
        told = ", ".join(
            f"k={int(k)} {row['end']:.2f} ({row['psnr']:.0f} dB)" for k, row in medians.iterrows()
        )
        parts.append(f"{act} {told}")
    answer: Answer = "holds only under" if any(rises) else "does not hold"
    settings = (
        f"{rows['shape'].iloc[0]} at most 4×16, cos πkx · cos πky on 64×64, batches of 256, "
        f"{rows['seed'].nunique()} seeds; at the start the noise changes by a factor of at most "
        f"{max(starts):.1f} with k; the fit is worse at high k, and the speculation does "
        "not part the two"
    )
    return Verdict("C81", answer, f"‖H_B − H‖ / ‖H‖ after training: {'; '.join(parts)}", settings)


def _compressed(rows: pd.DataFrame) -> Verdict:
    field, raw = (int(rows[name].iloc[0]) for name in ("tile_bytes", "raw_bytes"))
    answer: Answer = "holds" if field < raw else "does not hold"
    measured = (
        f"a field takes {field:,} bytes in float32, its tile {raw:,}: {field / raw:.1f} times"
    )
    return Verdict("C113", answer, measured, "4×64 sine per 100×100 RGB tile of 8 bits")
