"""The forms in which auctions run, and the table that says which is used: `forms.json`.

A form decides how fast auctions are, never a byte of their results. So the table may be measured anew on any GPU
(`jobs/gpu_check.py --renew-forms`), it is no part of a run's fingerprint, and GPUs with different tables agree. What
does change results, the product, is chosen in `semrsm_dist.matching.device.certificate`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final, NamedTuple

CAPACITIES: Final = (64, 128, 256, 512, 1024, 2048, 4096)
"""Tokens that an auction can be compiled for. Larger ones need more shared memory than some GPUs have for a block."""

TABLE: Final = "forms.json"
WARPS: Final = (1, 2, 4, 8)
_TILE_BYTES: Final = (0, 2**15, 2**16)  # of residuals in shared memory that are worth measuring
_LEAST_SHARE: Final = 16  # not less than one row in so many


class Form(NamedTuple):
    """How a block of threads matches a pair.

    Attributes
    ----------
    capacity
        The most tokens of an image: the size for which the program is compiled.
    warps
        That match a pair together.
    shared_rows
        Rows of the tile of residuals in shared memory; the others are in global memory.
    """

    capacity: int
    warps: int
    shared_rows: int

    @property
    def macros(self) -> str:
        """What the kernels know of the form."""
        return "".join(f"#define {name.upper()} {value}\n" for name, value in self._asdict().items())

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    def rows_shared_of(self, width: int) -> int:
        """Return how many of a tile's `width` rows are in shared memory."""
        return min(self.shared_rows, width)


@functools.cache
def known_forms() -> tuple[Form, ...]:
    """Return the table: the form of each capacity, in ascending order."""
    return read_forms(files(__package__) / TABLE)


def read_forms(path: Traversable) -> tuple[Form, ...]:
    """Return the forms of a table."""
    return tuple(Form(**row) for row in json.loads(path.read_text(encoding="utf-8"))["forms"])


def form_of(n_tokens: int) -> Form:
    """Return the form for images of so many tokens, which are at most ``CAPACITIES[-1]``."""
    return next(form for form in known_forms() if form.capacity >= n_tokens)


def candidates(capacity: int) -> Iterator[Form]:
    """Yield the forms that the table may have for a capacity."""
    for n_bytes in _TILE_BYTES:
        rows = min(n_bytes // (2 * capacity), capacity)
        if rows == 0 or rows * _LEAST_SHARE >= capacity:
            for warps in WARPS:
                if 64 * warps <= capacity:
                    yield Form(capacity, warps, rows)


def write_forms(forms: Sequence[Form], measured_on: str, path: Path) -> None:
    """Write a table: a form a line, so that differences are easy to read."""
    lines = ",\n".join(f"    {json.dumps(form._asdict())}" for form in forms)
    path.write_text(
        f'{{\n  "measured_on": {json.dumps(measured_on)},\n  "forms": [\n{lines}\n  ]\n}}\n', encoding="utf-8"
    )
