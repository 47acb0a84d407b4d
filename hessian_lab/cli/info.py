"""``hessian-lab info``."""

import argparse

from hessian_lab.cli.parser import Parser

HELP = "versions and machine, to paste into an issue"


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print one line per fact."""
    import json

    import torch

    from hessian_lab.probe.memory import available_bytes, readable
    from hessian_lab.training.provenance import device_name, provenance

    cpu = torch.device("cpu")
    facts = provenance(cpu)
    del facts["command"]
    room = available_bytes(cpu)
    facts["memory_free"] = "unknown" if room is None else readable(room)
    facts["cuda"] = [
        device_name(torch.device("cuda", index)) for index in range(torch.cuda.device_count())
    ]
    if args.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            shown = ", ".join(value) if isinstance(value, list) else value
            print(f"{name:12s} {shown or 'none'}")
    return 0
