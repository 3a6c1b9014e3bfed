"""python -m openbr: the same as the command openbr."""

from openbr.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
