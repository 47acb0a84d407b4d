"""``hessian-lab list``."""

import argparse
import textwrap

from hessian_lab.cli.parser import Parser
from hessian_lab.fields import FIELD_DEFAULTS
from hessian_lab.optim import DEFAULT_RATES, RECIPES, SUMMARIES
from hessian_lab.signals import SIGNALS
from hessian_lab.signals.registry import entries

HELP = "list activations, signals, optimizers or recipes"


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    parser.add_argument("what", choices=("acts", "signals", "optimizers", "recipes"))


def run(args: argparse.Namespace) -> int:
    """Print one name per line, with what it takes by default."""
    lines = {"acts": _acts, "signals": _signals, "optimizers": _optimizers, "recipes": _recipes}
    print("\n".join(lines[args.what]()))
    return 0


def _acts() -> list[str]:
    return [
        f"{name:10s} " + ", ".join(f"{key} {value}" for key, value in defaults.items())
        for name, defaults in FIELD_DEFAULTS.items()
    ]


def _signals() -> list[str]:
    from hessian_lab.signals.bundled import FILES

    texts = {name: attribution for name, (_, attribution) in FILES.items()}
    texts["mandelbrot"] = "the Mandelbrot set, computed at any size"
    texts["sines"] = "sin 2πx + sin 6πx on [-1, 1], 256 points"
    texts["terrain"] = "the solid under a landscape: elevations from matplotlib's sample data"
    texts["torus-nerf"] = "posed pictures of a chequered torus, rendered here"
    for name in ("spot", "nefertiti"):
        texts[f"{name}-nerf"] = f"posed pictures of {name}, rendered here from its mesh"
    texts["bwv1007"] = "Bach, BWV 1007, prelude, bars 1-2, 7.9 s, synthesised: no recording"
    texts["kenburns"] = "a camera moved over chelsea, 4 s, 16:9: no film"
    for name, entry in entries().items():
        texts[name] = f"{entry.credit} (hessian-lab data get {name})"
    return [f"{name:14s} {texts[name]}" for name in SIGNALS] + [
        f"{'PATH':14s} an image, sound, mesh or video, or a folder of frames or of posed pictures: "
        "whatever has a '/', '.' or '~' in it"
    ]


def _recipes() -> list[str]:
    lines = []
    for name, recipe in RECIPES.items():
        options = "".join(f" --set {key}={value}" for key, value in recipe.options.items())
        final = "" if recipe.lr_final is None else f" --lr-final {recipe.lr_final:g}"
        lines += [
            name,
            f"    --optimizer {recipe.optimizer} --lr {recipe.lr:g}{final}{options}",
            *textwrap.wrap(recipe.source, 92, initial_indent="    ", subsequent_indent="    "),
        ]
    return lines


def _optimizers() -> list[str]:
    return [f"{name:13s} lr {rate:<6g} {SUMMARIES[name]}" for name, rate in DEFAULT_RATES.items()]
