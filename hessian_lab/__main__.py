"""``python -m hessian_lab``."""

from hessian_lab.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
