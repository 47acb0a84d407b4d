"""Draw every figure whose record is there: ``python -m figures [NAME …] [--records DIR]``."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from figures.records import RESULTS, read
from hessian_lab.errors import InputError
from hessian_lab.plots.style import save
from hessian_lab.training.files import write_atomically

NAMES = (
    "activation_spectra",
    "wide_spectra",
    "zero_anatomy",
    "hessian_terms",
    "preconditioned_conditioning",
    "hvp_sparsity",
    "optimizer_convergence",
    "stochastic_convergence",
    "adam_ablation",
    "optimizer_cost",
    "convergence_rates",
    "field_frequencies",
    "kilo_fields",
    "kilo_radiance",
    "patches",
    "video_fields",
    "sound_fields",
    "occupancy_convergence",
    "radiance_fields",
    "benchmarks",
)
ENDINGS = (".png", ".pdf", ".svg")
OUT = Path(__file__).parent / "drawn"

# What a caption says of a record's kind; of others the kind itself.
KINDS = {"full": "", "quick": " (A quick configuration.)"}


def main() -> None:
    """Draw, and say which records are missing."""
    parser = argparse.ArgumentParser(description="draw the figures of the records")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ({', '.join(NAMES)})")
    parser.add_argument("--records", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(NAMES))
    if unknown:
        parser.error(f"NAME must be one of {', '.join(NAMES)}, got {unknown[0]!r}")
    missing = False
    for name in args.names or NAMES:
        try:
            record = read(name, args.records)
        except InputError as error:
            print(error, file=sys.stderr)
            missing = True
            continue
        for path in draw(name, record, args.out):
            print(path)
    sys.exit(4 if missing and args.names else 0)


def draw(name: str, record: dict[str, object], out: Path) -> list[Path]:
    """Draw one record as PNG, PDF and SVG, and write its caption beside them."""
    module = import_module(f"figures.{name}")
    figure = module.draw(record)
    paths = save(figure, out / name, endings=ENDINGS, dpi=200)
    kind = record["kind"]
    caption = module.CAPTION + KINDS.get(str(kind), f" (Of a run that is {kind}.)")
    write_atomically(out / f"{name}.txt", lambda stream: stream.write(f"{caption}\n".encode()))
    return paths


if __name__ == "__main__":
    main()
