"""What the page of a report reads, apart from its text: typed, and written as JSON.

A static page holds all of it. Arrays are little-endian bytes in base64; `bfloat16` is the upper half of a float32.
"""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

VERSION: Literal[1] = 1
"""Of the format: a page and its data are of one version."""

Order = Literal["given", "label", "cluster"]


class Part(BaseModel):
    """Base of all parts: strict, and not to be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Array(Part):
    """An array, row by row."""

    dtype: Literal["float32", "uint32", "uint16", "uint8", "bfloat16"]
    shape: tuple[int, ...]
    data: str

    @classmethod
    def floats(cls, values: ArrayLike) -> Array:
        """Return numbers as float32."""
        return cls._of("float32", np.asarray(values, "<f4"))

    @classmethod
    def indices(cls, values: NDArray[np.integer[Any]], size: int) -> Array:
        """Return indices below `size` in the smallest type; -1 becomes the largest number of that type."""
        dtype, missing = next(
            (dtype, 2**bits - 1)
            for dtype, bits in (("uint8", 8), ("uint16", 16), ("uint32", 32))
            if size < 2**bits
        )
        found = np.where(values < 0, missing, values).astype(np.dtype(dtype).newbyteorder("<"))
        return cls._of(dtype, found)

    @classmethod
    def coarse(cls, values: ArrayLike, *, upward: bool = False) -> Array:
        """Return numbers with eight significant bits: the nearest, or upward, as a bound needs, that above."""
        exact = np.asarray(values, np.float64)
        narrow = round_up(exact) if upward else exact.astype("<f4")
        bits = narrow.astype("<f4").view("<u4")
        # For positive numbers, adding to the bits goes up; NaN keeps its upper half, in which its mark is.
        step = np.uint32(0xFFFF) if upward else np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
        moved = np.where(np.isfinite(narrow), bits + step, bits) >> 16
        return cls._of("bfloat16", moved.astype("<u2"))

    @classmethod
    def _of(cls, dtype: Any, values: NDArray[Any]) -> Array:
        text = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
        return cls(dtype=dtype, shape=values.shape, data=text)

    @property
    def n_bytes(self) -> int:
        """Size before base64."""
        return 3 * len(self.data) // 4

    @property
    def missing(self) -> int:
        """The number that stands for no index: the largest of its type."""
        return int(np.iinfo(self.dtype).max)

    def read(self) -> NDArray[Any]:
        """Return the array as the page reads it."""
        stored = "uint16" if self.dtype == "bfloat16" else self.dtype
        values = np.frombuffer(base64.b64decode(self.data), np.dtype(stored).newbyteorder("<")).reshape(
            self.shape
        )
        return (values.astype("<u4") << 16).view("<f4") if self.dtype == "bfloat16" else values


class Pictures(Part):
    """Small pictures in larger ones."""

    sheets: list[str]
    """Addresses of the sheets: JPEG files, as `data:` in a static page."""
    cell: int
    """Pixels along an edge of a cell."""
    across: int
    down: int
    """A sheet has `across` x `down` cells; pictures follow each other row by row."""
    sizes: Array
    """(P, 2) width and height of each picture within its cell, in its upper left corner; 0 where there is none."""

    @property
    def n_bytes(self) -> int:
        """Size of the sheets before base64."""
        return sum(3 * len(sheet) // 4 for sheet in self.sheets)


class Images(Part):
    """The images of a side that the page shows."""

    count: int
    """Images of the run on this side."""
    rows: Array | None
    """Their places in the matrix, ascending; None if all are shown."""
    ids: list[str]
    labels: list[list[int]]
    """For each image, places in `Data.labels`."""
    pictured: Array | None
    """The places in the matrix of those that have a thumbnail; None if all shown ones have."""
    problems: dict[int, str]
    """What is wrong with the picture of an image, by its place in the matrix."""
    thumbnails: Pictures | None
    """Their pictures, if there are any."""
    served: bool = False
    """Whether a server has their pictures, and they are not here."""


class Sequence(Part):
    """An order of the images that the maps show: their places in the matrix, for rows and columns."""

    rows: Array
    columns: Array


class Map(Part):
    """Cells of the matrices; of a symmetric run, those on and above the diagonal, row by row."""

    row_edges: Array
    column_edges: Array
    """Both edges: where cells begin in the order of the images, and where the last ends."""
    spatial: Array
    """Similarities position by position: means over the cell where it has several pairs, of those that are defined."""
    semantic: Array
    """Similarities after matching, likewise."""
    difference: Array | None
    """How much larger these are; None where each cell is one pair."""
    gap: Array
    """The largest certified gap of the cell."""


class Widths(Part):
    """The widths of a kernel for both similarities; None of one that has none."""

    spatial: float | None
    semantic: float | None


class Derived(Part):
    """What other kernels are computed by from cosines, where each cell is a pair."""

    row_norms: Array
    """Squared norms of the images of the rows in the order `given`."""
    column_norms: Array
    """Those of the columns."""
    unit: float
    """What the norms are given in, so that single precision holds them."""
    widths: dict[str, Widths]
    """The kernels, with their widths."""


class Maps(Part):
    """The heat maps of a layer."""

    orders: dict[Order, Sequence]
    """What they can be sorted by."""
    cells: dict[str, dict[Order, Map]]
    """By kernel, cosine first, and order; of maps whose cells are pairs there is one order, `given`, and cosine
    alone."""
    derived: Derived | None
    """Of maps whose cells are pairs."""
    note: str
    """What is left out, for people."""


class Tiles(Part):
    """Maps of a layer whose cells come as tiles, each a file of `semrsm_dist.report.view.pyramid.PLANES`."""

    size: int
    """Cells along an edge of a tile."""
    finest: int
    """The finest level; a cell of level 0 is a pair."""
    top: int
    """The level that is a single tile."""
    kernels: list[str]
    orders: list[Order]
    """`kernels` and `orders` are what they can be shown in."""
    note: str
    """What is left out, for people."""


class Ranking(Part):
    """The most similar images of some queries, (Q, K) each: places in the matrix, and similarities of both kinds.

    `score` is what they are ranked by.
    """

    method: str
    indices: Array
    score: Array
    semantic: Array
    spatial: Array
    gap: Array


class Queries(Part):
    """Queries and what is most similar to them."""

    rows: Array
    """(Q,) their places in the matrix."""
    rankings: list[Ranking]
    """One for each way to rank images."""
    judged: bool
    """Whether labels say what is a hit."""
    ks: list[int]
    """The numbers of hits that the run's own scores are of."""
    note: str
    """What is left out, for people."""


class Matches(Part):
    """Matched tokens of some pairs."""

    pairs: Array
    """(P, 2) row and column."""
    grid: tuple[int, int]
    """Rows and columns of the tokens; (1, S) if they lie on no known grid."""
    semantic: Array
    spatial: Array
    gap: Array
    """`semantic`, `spatial` and `gap` (P,) are the similarities."""
    partners: Array
    """(P, S) the token of the second image that goes with each token of the first."""
    matched: Array
    """(P, S) what each token adds to the cosine similarity, with its partner."""
    identity: Array
    """(P, S) the same position by position."""


class PairFacts(Part):
    """What is known of a pair: similarities as in `Matches`, null where undefined, its matched tokens, or why none."""

    semantic: float
    spatial: float
    gap: float
    matches: Matches | None
    note: str


class Layer(Part):
    """What is shown of a layer: it has `maps` or `tiles`, or neither if there are no matrices.

    `problem` says why no pair has `matches`, where they could not be made.
    """

    name: str
    maps: Maps | None
    tiles: Tiles | None = None
    queries: Queries | None
    matches: Matches | None
    problem: str = ""


class Seen(Part):
    """Images as the model sees them: `indices` are their places in the matrix."""

    indices: Array
    pictures: Pictures


class Data(Part):
    """Everything that the page reads."""

    version: Literal[1] = VERSION
    symmetric: bool
    """Whether rows and columns are the same images."""
    certified: bool
    """Whether gaps are small by a guarantee; those of other matchers are to a bound that may be loose."""
    labels: list[str]
    """All labels, sorted."""
    images: dict[str, Images]
    """By side."""
    seen: dict[str, Seen]
    """By side, the images of which matched tokens are shown."""
    layers: list[Layer]
    """In the network's order."""
    first: str
    """The layer to show first: the one with the best retrieval, or the last; empty if there is none."""
    colours: str
    """The colour scale: 256 colours of six hexadecimal digits."""
    served: bool = False
    """Whether a server has the queries, pairs and pictures, and they are not here."""


def round_up(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return numbers in single precision, never smaller than they are: gaps are bounds."""
    narrow = values.astype(np.float32)
    return np.where(narrow < values, np.nextafter(narrow, np.float32(np.inf)), narrow)
