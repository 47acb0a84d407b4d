"""The command line: one file per command; they parse, call and print."""

# name -> its module, with HELP, add_flags(parser) and run(args); only run imports torch.
COMMANDS = {
    "train": "hessian_lab.cli.train",
    "eigs": "hessian_lab.cli.eigs",
    "trace": "hessian_lab.cli.trace",
    "cond": "hessian_lab.cli.cond",
    "sparsity": "hessian_lab.cli.sparsity",
    "derivatives": "hessian_lab.cli.derivatives",
    "sweep": "hessian_lab.cli.sweep",
    "compare": "hessian_lab.cli.compare",
    "kilo": "hessian_lab.cli.kilo",
    "distil": "hessian_lab.cli.distil",
    "cost": "hessian_lab.cli.cost",
    "report": "hessian_lab.cli.report",
    "data": "hessian_lab.cli.data",
    "list": "hessian_lab.cli.list",
    "doctor": "hessian_lab.cli.doctor",
    "info": "hessian_lab.cli.info",
}
