"""How many eigenvalues are zero in 4×64 fields, before and after 50 steps of L-BFGS?

P1s Fig. 2. A spectrum of 12,737 parameters (14,785 with eight octaves) takes one to three minutes
on two cores: one image, one seed, the first and the last iterate. Three seeds and all 51 iterates
want a GPU for an hour.
"""

from dataclasses import replace

import pandas as pd

from analyses import activation_spectra
from analyses.activation_spectra import Config, fields_of, judged_none, judged_share
from analyses.study import Answer, Study, Verdict, main

FULL = Config(
    fields=tuple(one for one in fields_of(4, 64) if one.get("octaves") != 4),
    images=("camera",),
    seeds=(0,),
    every=50,
)
QUICK = replace(FULL, fields=tuple(fields_of(4, 24)), steps=10, every=10, size=24)
PRINTED = {"relu": 0.31, "relu_pe": 0.21}
LEAST = {"sine": 5e-9, "gaussian": 1e-18}


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the spectra say of C06 and C07."""
    by_act = {act: rows[rows["act"] == act] for act in (*PRINTED, *LEAST)}
    shares = [judged_share("C06", by_act[act], printed) for act, printed in PRINTED.items()]
    nones = [judged_none("C07", by_act[act], printed) for act, printed in LEAST.items()]
    found = [_both(shares), _both(nones)]
    return [one for one in found if one is not None]


def _both(parts: list[Verdict | None]) -> Verdict | None:
    """Return one verdict for two activations: it holds if both do."""
    told = [one for one in parts if one is not None]
    if len(told) < len(parts):
        return None
    answers = {one.answer for one in told}
    answer: Answer = answers.pop() if len(answers) == 1 else "holds only under"
    measured = "; ".join(
        f"{act} {one.measured}"
        for act, one in zip(PRINTED if told[0].claim == "C06" else LEAST, told, strict=True)
    )
    return Verdict(told[0].claim, answer, measured, f"first and last iterate; {told[0].settings}")


STUDY = Study(
    name="wide_spectra",
    question="How many eigenvalues are zero in 4×64 fields?",
    full=FULL,
    quick=QUICK,
    cells=activation_spectra.cells,
    measure=activation_spectra.measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
