"""Which optimizer fits which field fastest on batches, each at its best rate?

P2 Figs 5, 8, 9 and P3 Figs 3, 5: batches of 512, five linear maps of 256 on 256×256. The first 256
steps, two epochs of the papers' hundreds, take two hours on two cores; the full length (64,000
steps, 9 pairs of image and seed for each of 36 combinations) wants a GPU for a day.
"""

from dataclasses import replace

from analyses import optimizer_convergence
from analyses.study import main

FULL = replace(optimizer_convergence.FULL, parts=("batch",))
QUICK = replace(optimizer_convergence.QUICK, parts=("batch",))
STUDY = replace(
    optimizer_convergence.STUDY,
    name="stochastic_convergence",
    question="Which optimizer fits which field fastest on batches, each at its best rate?",
    full=FULL,
    quick=QUICK,
)

if __name__ == "__main__":
    main(STUDY)
