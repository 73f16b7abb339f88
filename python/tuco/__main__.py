"""The program `tuco`, also as `python -m tuco`."""

from __future__ import annotations

import sys

from . import _native


def main() -> int:
    """Runs the command line; its exit code."""
    return _native.main(["tuco", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
