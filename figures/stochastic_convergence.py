"""Curves of every optimizer on batches, each at its best rate, against steps."""

from figures.optimizer_convergence import draw

NAME = "stochastic_convergence"
CAPTION = (
    "PSNR of each optimizer at its best rate (chosen on another seed), batches of 512, five linear "
    "maps of 256 on 256×256 pixels of chelsea (scikit-image, CC0), against steps; median and range "
    "over seeds. After P2 Figs 5, 8, 9 and P3 Figs 3, 5."
)
__all__ = ["CAPTION", "NAME", "draw"]
