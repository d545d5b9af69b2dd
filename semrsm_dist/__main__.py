"""The entry point of `semrsm` and `python -m semrsm_dist`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from semrsm_dist.cli.interrupts import end_while_loading


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; an interrupt while it loads ends it at once."""
    end_while_loading()
    from semrsm_dist.cli.commands import main as command  # noqa: PLC0415 - it is what takes time to load

    return command(arguments)


if __name__ == "__main__":
    sys.exit(main())
