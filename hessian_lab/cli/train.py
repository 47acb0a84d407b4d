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

    done = trained(args, given_setup(args))
    first, last = (done.metrics["loss"].iloc[place] for place in (0, -1))
    if last > first:
        logger.warning("the loss rose from %.4g to %.4g: try a lower --lr", first, last)
    if args.json:
        print(json.dumps(train_json(done)))
    else:
        print(train_table(done))
    return 0
