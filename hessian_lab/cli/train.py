"""``hessian-lab train``."""

import argparse
import json
import logging

from hessian_lab.cli.flags import add_output, add_setup, given_setup
from hessian_lab.cli.parser import Parser

HELP = "train a field and keep its trajectory"
EPILOG = """\
A killed run continues when the same command is typed again.

  hessian-lab train --act sine --signal astronaut --steps 200 --out runs/face
  hessian-lab train --signal song.wav --start 12 --seconds 2 --rate 16000 --act sine --omega 300

The papers' sounds, 4×256 by L-BFGS: some 8 GiB, and a day on two cores (half with --dtype float32):

  hessian-lab train --signal bwv1007 --seconds 7 --rate 44100 --width 256 --steps 500 \\
      --act sine --omega 3000,3000,30,30
  … --act gaussian --sigma 0.01, or --act relu_pe --octaves 8
"""

logger = logging.getLogger(__name__)


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    add_setup(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Train, and print what came out."""
    from hessian_lab.cli.output import train_json, train_table
    from hessian_lab.cli.progress import trained
    from hessian_lab.measures.sound import is_sound, write_sounds

    done = trained(args, given_setup(args))
    first, last = (done.metrics["loss"].iloc[place] for place in (0, -1))
    if last > first:
        logger.warning("the loss rose from %.4g to %.4g: try a lower --lr", first, last)
    sounds = [str(path) for path in write_sounds(done)] if is_sound(done) else []
    if args.json:
        print(json.dumps(train_json(done) | ({"sounds": sounds} if sounds else {})))
    else:
        told = [f"the field and its error to listen to: {', '.join(sounds)}"] if sounds else []
        print(train_table(done, files=told))
    return 0
