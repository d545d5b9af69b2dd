"""Matching many pairs of images on a device: what is sent there, launched and fetched."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from semrsm_dist.errors import WorkError
from semrsm_dist.matching.compiled.product import padded
from semrsm_dist.matching.device import source
from semrsm_dist.matching.device.certificate import Product, choose_product, conclude, frame_pairs
from semrsm_dist.matching.device.forms import Form, form_of
from semrsm_dist.matching.panel import PackedPanel
from semrsm_dist.matching.result import TileResult

logger = logging.getLogger(__name__)

_MOST_BYTES = 2**31  # of affinities at once: enough pairs for every GPU of today
_KEPT_SHARE = 32  # a panel that takes less of the free memory than one part in so many is kept
_MOST_TOKENS = 2**21  # of a panel: a GPU takes at most 65 535 blocks along an axis of a product


class DeviceMemoryError(WorkError):
    """A device has too little free memory for what was requested."""


class Device(Protocol):
    """A GPU as its owner, one thread, sees it. Its memory is freed when the last reference to it is gone.

    Attributes
    ----------
    panels
        What is on the device of panels that its owner still has.
    """

    panels: MutableMapping[PackedPanel, Sent]

    def auctions(self, form: Form, width: int) -> int:
        """Return how many blocks of `match_pairs` run at once, for images of `width` tokens.

        More would wait, and take scratch memory.
        """
        ...

    def free_bytes(self) -> int:
        """Return the memory that is free."""
        ...

    def send(self, array: NDArray[Any]) -> Any:
        """Return memory with a copy of a contiguous array, which must not change before something is fetched."""
        ...

    def reserve(self, n_bytes: int) -> Any:
        """Return memory, with anything in it, or raise `DeviceMemoryError`."""
        ...

    def part(self, memory: Any, offset: int) -> Any:
        """Return what lies in memory from an offset in bytes on."""
        ...

    def release_unused(self) -> None:
        """Give memory back that is not in use."""
        ...

    def fetch(self, memory: Any, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return what memory holds, once all that was launched has ended."""
        ...

    def launch(self, kernel: str, form: Form | None, launch: Launch, *arguments: Any) -> None:
        """Start a kernel of a program (see `source.kernel_source`), after all that was started before.

        Arguments are memory or NumPy scalars of the types that the kernel declares.
        """
        ...


class Launch(NamedTuple):
    """How many blocks of how many threads, and the bytes that the threads of a block share."""

    blocks: tuple[int, int]
    threads: int
    shared_bytes: int


class Block(NamedTuple):
    """Images of two panels that are matched at once."""

    rows: slice
    columns: slice


class Layout(NamedTuple):
    """How images lie on a device: for which product, and whether values are summed from float64."""

    product: Product
    double: bool

    def packed_bytes(self, panel: PackedPanel) -> int:
        """Return the bytes of the tokens that are multiplied, of one image."""
        in_halves = self.product == "halves"
        token_bytes = source.split_token_bytes(panel.n_channels) if in_halves else 4 * panel.n_channels
        return padded(panel.n_tokens) * token_bytes

    def raw_bytes(self, panel: PackedPanel) -> int:
        """Return the bytes of one image as given."""
        return (8 if self.double else 4) * panel.n_tokens * panel.n_channels


class Sent(NamedTuple):
    """The images of a panel on a device: memory, bytes of an image there, and how they lie."""

    packed: Any
    raw: Any
    packed_bytes: int
    raw_bytes: int
    n_images: int
    layout: Layout

    def part(self, device: Device, images: slice) -> Sent:
        """Return some of the images."""
        start, stop, _ = images.indices(self.n_images)
        return self._replace(
            packed=device.part(self.packed, start * self.packed_bytes),
            raw=device.part(self.raw, start * self.raw_bytes),
            n_images=stop - start,
        )


class Panels(NamedTuple):
    """Two panels on a device, with room for the same number of tokens."""

    left: Sent
    right: Sent
    n_tokens: int
    n_channels: int


class Found(NamedTuple):
    """What a device found for pairs of images.

    Attributes
    ----------
    outcomes : ndarray of OUTCOME, (n,)
        Of the auctions.
    values : ndarray of float64, (n, 2)
        Of the identity and of the permutation.
    permutations : ndarray of uint16, (n, width)
        The partner of each token, if requested.
    """

    outcomes: NDArray[Any]
    values: NDArray[np.float64]
    permutations: NDArray[np.uint16]


def solve(
    device: Device,
    rows: PackedPanel,
    columns: PackedPanel,
    tolerance: float,
    wanted: NDArray[np.bool_] | None = None,
    results: TileResult | None = None,
) -> tuple[TileResult, NDArray[np.bool_]]:
    """Match each image of `rows` (R) with each of `columns` (K) on a device.

    Parameters
    ----------
    device
        Where.
    rows, columns
        Panels with room for the same number of tokens, at most ``forms.CAPACITIES[-1]``.
    tolerance
        Of the gap, on the cosine scale; see `semrsm_dist.matching.matchers.auction`.
    wanted
        (R, K), the pairs to match; by default, all. Results are only meaningful there.
    results
        Contiguous arrays (R, K) to write to; by default, new ones.

    Returns
    -------
    TileResult
        The results, (R, K).
    ndarray of bool, (R, K)
        The wanted pairs that are open: their results hold, but prove less than the tolerance requests.
    """
    shape = (rows.n_images, columns.n_images)
    wanted = np.ones(shape, np.bool_) if wanted is None else wanted
    results = TileResult(*np.full((3, *shape), np.nan)) if results is None else results
    layout, free_bytes = choose_layout(rows, columns, tolerance), device.free_bytes()
    while True:
        blocks = list(blocks_of(free_bytes, rows, columns, layout))
        try:
            return results, _solve_blocks(device, (rows, columns), tolerance, wanted, blocks, results)
        except DeviceMemoryError:
            if len(blocks) == wanted.size:  # smaller ones there are not
                raise
            logger.info("the GPU has less memory than it said: matching in smaller blocks")
        device.panels.clear()
        device.release_unused()
        free_bytes = min(free_bytes, device.free_bytes()) // 2


def _solve_blocks(
    device: Device,
    panels: tuple[PackedPanel, PackedPanel],
    tolerance: float,
    wanted: NDArray[np.bool_],
    blocks: Sequence[Block],
    results: TileResult,
) -> NDArray[np.bool_]:
    """Match the wanted pairs, block by block; return which are open."""
    rows, columns = panels
    layout, is_open = choose_layout(rows, columns, tolerance), np.zeros(wanted.shape, np.bool_)
    held: tuple[slice, Sent] | None = None
    for block in blocks:
        if not wanted[block].any():
            continue
        if held is None or held[0] != block.columns:
            held = None  # frees the last columns before the next are sent
            held = block.columns, place_images(device, columns, block.columns, layout)
        sent = place_images(device, rows, block.rows, layout), held[1]
        framed = frame_pairs(rows.part(block.rows), columns.part(block.columns), tolerance, wanted[block])
        found = match_pairs(device, Panels(*sent, rows.n_tokens, rows.n_channels), framed.tasks)
        origin = block.rows.start, block.columns.start
        conclude(framed, found.outcomes, found.values, origin, results, is_open)
        del framed, found  # so that the next block has the same memory
    return is_open


def choose_layout(rows: PackedPanel, columns: PackedPanel, tolerance: float) -> Layout:
    """Return how the images of two panels must lie to be matched."""
    double = np.float64 in (rows.raw.dtype, columns.raw.dtype)
    return Layout(choose_product(rows.n_channels, tolerance), double)


def blocks_of(free_bytes: int, rows: PackedPanel, columns: PackedPanel, layout: Layout) -> Iterator[Block]:
    """Yield blocks, column by column, that fit into the memory of a device: half for affinities, half for images."""
    width = padded(rows.n_tokens)
    room = min(free_bytes // 4, _MOST_BYTES)  # as much again for scratch memory, and for others on the card
    image_bytes = _bytes_while_sent(rows, layout)
    most_images = max(1, min(room // 2 // image_bytes, _MOST_TOKENS // width))
    most_pairs = max(1, room // (4 * width**2))
    n_columns = min(columns.n_images, most_images, most_pairs)
    n_rows = min(most_images, max(1, most_pairs // n_columns))
    for c in range(0, columns.n_images, n_columns):
        for r in range(0, rows.n_images, n_rows):
            yield Block(slice(r, r + n_rows), slice(c, c + n_columns))


def _bytes_while_sent(panel: PackedPanel, layout: Layout) -> int:
    """Return the bytes that an image takes on a device at most: before tokens are split, they lie there whole."""
    whole = Layout("float32", layout.double).packed_bytes(panel) if layout.product == "halves" else 0
    return whole + layout.packed_bytes(panel) + layout.raw_bytes(panel)


def place_images(device: Device, panel: PackedPanel, images: slice, layout: Layout) -> Sent:
    """Return images of a panel on a device, where the whole panel stays for later tiles if it takes little memory."""
    kept = device.panels.get(panel)
    if kept is None or kept.layout != layout:
        if panel.n_images * _bytes_while_sent(panel, layout) > device.free_bytes() // _KEPT_SHARE:
            return send_panel(device, panel.part(images), layout)
        kept = device.panels[panel] = send_panel(device, panel, layout)
    return kept.part(device, images)


def send_panel(device: Device, panel: PackedPanel, layout: Layout) -> Sent:
    """Send the images of a panel to a device, as they are multiplied and as given."""
    packed = device.send(panel.packed)
    if layout.product == "halves":
        packed = _split(device, packed, panel)
    raw = np.ascontiguousarray(panel.raw.astype(np.float64 if layout.double else np.float32, copy=False))
    sizes = layout.packed_bytes(panel), layout.raw_bytes(panel)
    return Sent(packed, device.send(raw), *sizes, panel.n_images, layout)


def _split(device: Device, packed: Any, panel: PackedPanel) -> Any:
    """Return memory with the packed tokens of a panel split into halves."""
    n_tokens = panel.n_images * padded(panel.n_tokens)
    n_groups = n_tokens // source.GROUP
    halves = device.reserve(n_tokens * source.split_token_bytes(panel.n_channels))
    launch = Launch((-(-n_groups * source.LANES // source.SPLIT_THREADS), 1), source.SPLIT_THREADS, 0)
    device.launch("split_panel", None, launch, packed, np.int32(n_groups), np.int32(panel.n_channels), halves)
    return halves


def solve_pair(
    device: Device, row: PackedPanel, column: PackedPanel, tolerance: float
) -> tuple[TileResult, bool, NDArray[np.intp]]:
    """Match two images, panels of one each; return arrays (1, 1), whether the pair is open, and the partners (n,)."""
    framed, layout = frame_pairs(row, column, tolerance), choose_layout(row, column, tolerance)
    sent = send_panel(device, row, layout), send_panel(device, column, layout)
    panels = Panels(*sent, row.n_tokens, row.n_channels)
    found = match_pairs(device, panels, framed.tasks, with_permutations=True)
    result, is_open = TileResult(*np.empty((3, 1, 1))), np.empty((1, 1), np.bool_)
    conclude(framed, found.outcomes, found.values, (0, 0), result, is_open)
    partners = found.permutations[0, : framed.tasks["n_tokens"][0]].astype(np.intp)
    identity, matched = found.values[0]
    if framed.frames["equal"][0] and identity >= matched:
        partners = np.arange(partners.size)
    return result, bool(is_open[0, 0]), partners


def multiply(device: Device, left: Sent, right: Sent, width: int, n_channels: int) -> Any:
    """Return memory with the affinities of all pairs of tokens of two panels of `width` tokens an image."""
    n_left, n_right = left.n_images * width, right.n_images * width
    affinity = device.reserve(4 * n_left * n_right)
    if left.layout.product == "halves":
        kernel, n_bytes = "multiply_halves", source.halves_bytes()
        blocks = -(-n_right // source.HALVES_TILE), -(-n_left // source.HALVES_TILE)
    else:
        kernel, n_bytes = "multiply_panels", source.product_bytes()
        blocks = -(-n_right // source.TILE_COLUMNS), -(-n_left // source.TILE_ROWS)
    device.launch(
        kernel,
        None,
        Launch(blocks, source.PRODUCT_THREADS, n_bytes),
        *(left.packed, right.packed),
        *(np.int32(n_left), np.int32(n_right), np.int32(n_channels)),
        affinity,
    )
    return affinity


def match_pairs(
    device: Device,
    panels: Panels,
    tasks: NDArray[Any],
    *,
    form: Form | None = None,
    with_permutations: bool = False,
) -> Found:
    """Run the product of two panels, and the auctions and values of tasks (`source.TASK`).

    The form of the auctions is by default that of the table; it changes no byte of what is found.
    """
    n_channels, width = np.int32(panels.n_channels), padded(panels.n_tokens)
    form, n_tasks = form or form_of(panels.n_tokens), np.int32(tasks.size)
    sent_tasks, next_task = device.send(tasks), device.send(np.zeros(1, np.int32))
    affinity = multiply(device, panels.left, panels.right, width, panels.n_channels)
    tile_bytes = 2 * width * (width - form.rows_shared_of(width))
    fitting = device.free_bytes() // 2 // max(1, tile_bytes)
    blocks = max(1, min(device.auctions(form, width), tasks.size, fitting))
    scratch = device.reserve(max(16, blocks * tile_bytes))
    permutations = device.reserve(2 * tasks.size * width)
    outcomes, values = device.reserve(source.OUTCOME.itemsize * tasks.size), device.reserve(16 * tasks.size)
    device.launch(
        "match_pairs",
        form,
        Launch((blocks, 1), form.threads, source.auction_bytes(form, width)),
        *(affinity, np.int64(panels.right.n_images * width), np.int32(width)),
        *(sent_tasks, n_tasks, scratch, next_task),
        *(permutations, outcomes),
    )
    device.launch(
        "sum_values_of_float64" if panels.left.layout.double else "sum_values_of_float32",
        None,
        Launch((-(-tasks.size * source.LANES // source.VALUE_THREADS), 1), source.VALUE_THREADS, 0),
        *(panels.left.raw, panels.right.raw, np.int32(panels.n_tokens), n_channels),
        *(sent_tasks, n_tasks, permutations, np.int32(width), values),
    )
    outcome = device.fetch(outcomes, (tasks.size,), source.OUTCOME)
    value = device.fetch(values, (tasks.size, 2), np.float64)
    partners = np.empty((0, width), np.uint16)
    if with_permutations:
        partners = device.fetch(permutations, (tasks.size, width), np.uint16)
    return Found(outcome, value, partners)
