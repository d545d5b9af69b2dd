"""The table of a run's images: their entries, content hashes and sizes, and whether they can be read."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property
from operator import itemgetter
from typing import Literal

import pyarrow as pa
import pyarrow.parquet

from semrsm_dist.data.entries import ImageEntry, UnreadableImageError, check_unique_ids, smallest
from semrsm_dist.data.source import ImageSource, calling, load_image
from semrsm_dist.errors import StorageError, reason_of

OK, UNREADABLE = "ok", "unreadable"

LOOKS_AT_ONCE = 16
"""Threads that read sizes and times: on a network file system each call takes a while."""

LOOK_BATCH = 64
"""Images per batch of such calls."""

ENTRY_FIELDS = tuple(field.name for field in fields(ImageEntry))
ADDED = ("label_counts", "label_areas")
"""Columns that the manifests of earlier runs lack."""

SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("group", pa.string()),
        pa.field("label_counts", pa.list_(pa.int64())),
        pa.field("label_areas", pa.list_(pa.float64())),
        pa.field("sha256", pa.string()),
        pa.field("n_bytes", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("mode", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("remark", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One image of a run: its entry, as in `ImageEntry`, and what was found when reading it."""

    image_id: str
    uri: str = ""
    labels: tuple[str, ...] = ()
    group: str | None = None
    label_counts: tuple[int, ...] | None = None
    label_areas: tuple[float, ...] | None = None
    sha256: str | None = None
    """Hash of the content; None for unreadable images and for features without images."""
    n_bytes: int | None = None
    mtime_ns: int | None = None
    """Size and modification time of the file that the image is, or is a part of; without one, the content's size."""
    width: int | None = None
    height: int | None = None
    """Width and height in pixels."""
    mode: str | None = None
    """Pillow's mode before the conversion to RGB."""
    status: str = OK
    """``"ok"`` or ``"unreadable"``."""
    error: str | None = None
    """What is wrong with an unreadable image."""
    remark: str | None = None
    """What the user should know about a readable one."""

    @property
    def entry(self) -> ImageEntry:
        """The image as its source knows it."""
        return ImageEntry(*(getattr(self, name) for name in ENTRY_FIELDS))

    def listed_as(self, entry: ImageEntry) -> ManifestRow:
        """Return the row with what the entry now says of its image: labels, their counts and areas, and group."""
        return replace(self, **{name: getattr(entry, name) for name in ENTRY_FIELDS})


@dataclass(frozen=True)
class Manifest:
    """The images of a run in their order; ids are unique."""

    rows: tuple[ManifestRow, ...]
    """In the order of the images; joined from the slices that `scan` returned."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        check_unique_ids((row.image_id for row in self.rows), "the manifest")

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def from_entries(cls, entries: Iterable[ImageEntry]) -> Manifest:
        """Return the manifest of ready-made features, which have ids, and images only where the entries say so.

        Raises InputError if ids repeat.
        """
        return cls(tuple(ManifestRow(entry.image_id).listed_as(entry) for entry in entries))

    @classmethod
    def from_ids(cls, image_ids: Iterable[str]) -> Manifest:
        """Return the manifest of ready-made features of which only the ids are known; errors as in `from_entries`."""
        return cls.from_entries(ImageEntry(image_id, "") for image_id in image_ids)

    # --- read by the stages -----------------------------------------------------------------------------

    @cached_property
    def readable(self) -> list[ManifestRow]:
        """The rows of readable images, in order: the rows and columns of the matrices."""
        return [row for row in self.rows if row.status == OK]

    @property
    def n_readable(self) -> int:
        """How many images are readable."""
        return len(self.readable)

    @property
    def unreadable(self) -> list[ManifestRow]:
        """The rows of images that cannot be read, with the reason in `error`."""
        return [row for row in self.rows if row.status != OK]

    def image_ids(self) -> list[str]:
        """Return the ids of the readable images, in order."""
        return [row.image_id for row in self.readable]

    def labels(self, min_area: float = 0.0) -> list[tuple[str, ...]]:
        """Return the labels of each readable image, in order.

        Those whose objects cover less than `min_area` of the image are left out, where areas are known.
        """
        return [
            tuple(
                label
                for label, keep in zip(row.labels, self._large_enough(row, min_area), strict=True)
                if keep
            )
            for row in self.readable
        ]

    @staticmethod
    def _large_enough(row: ManifestRow, min_area: float) -> list[bool]:
        """Return whether the objects of each label of an image cover `min_area` of it, or as much as is unknown."""
        if min_area <= 0 or row.label_areas is None:
            return [True] * len(row.labels)
        return [area >= min_area for area in row.label_areas]

    def label_weights(self, by: Literal["count", "area"], min_area: float = 0.0) -> list[tuple[float, ...]]:
        """Return the number or the area of the objects of each label that `labels` returns; 0 where it is unknown."""
        found = []
        for row in self.readable:
            known = row.label_counts if by == "count" else row.label_areas
            weights = known or (0.0,) * len(row.labels)
            kept = self._large_enough(row, min_area)
            found.append(tuple(float(weight) for weight, keep in zip(weights, kept, strict=True) if keep))
        return found

    def count_without_areas(self) -> int:
        """Return how many readable images have labels whose areas are unknown."""
        return sum(bool(row.labels) and row.label_areas is None for row in self.readable)

    def groups(self) -> list[str | None]:
        """Return the group of each readable image, in order."""
        return [row.group for row in self.readable]

    def contents(self) -> list[str | None]:
        """Return the hash of the content of each readable image, in order."""
        return [row.sha256 for row in self.readable]

    def digest(self) -> str:
        """Return one SHA-256 over the ids and content hashes of the readable images, in order.

        It changes with every change of pixels, order or names, and with nothing else: labels, paths and
        times do not enter.
        """
        digest = hashlib.sha256()
        for row in self.readable:
            digest.update(json.dumps([row.image_id, row.sha256]).encode() + b"\n")
        return digest.hexdigest()

    def get(self, image_id: str) -> ManifestRow | None:
        """Return the row of an image, or None."""
        return self._by_id.get(image_id)

    @cached_property
    def _by_id(self) -> dict[str, ManifestRow]:
        return {row.image_id: row for row in self.rows}

    # --- Parquet ---------------------------------------------------------------------------------------

    def to_parquet(self) -> bytes:
        """Return the table as the content of a Parquet file."""
        columns = {name: [getattr(row, name) for row in self.rows] for name in SCHEMA.names[1:]}
        table = pa.table({"index": range(len(self.rows)), **columns}, SCHEMA)
        file = io.BytesIO()
        pyarrow.parquet.write_table(table, file, compression="zstd", write_page_checksum=True)
        return file.getvalue()

    @classmethod
    def from_parquet(cls, content: bytes, path: object) -> Manifest:
        """Read what `to_parquet` returned; `path` is where it was kept, for messages.

        Raises StorageError if it is damaged, or no manifest.
        """
        try:
            # `read_table` would load pandas, which takes longer than all else here.
            table = pyarrow.parquet.ParquetFile(io.BytesIO(content), page_checksum_verification=True).read()
        except (pa.ArrowException, OSError) as error:
            raise StorageError(
                f"{path}: the manifest cannot be read ({reason_of(error)}); start the run's command, which makes it "
                "anew"
            ) from error
        missing = [name for name in SCHEMA.names if name not in (*table.column_names, *ADDED)]
        if missing:
            raise StorageError(
                f"{str(path)!r} is no manifest: it lacks the column{'s' * (len(missing) > 1)} "
                f"{', '.join(missing)}; start the run's command, which makes it anew"
            )
        known = {name: table.column(name).to_pylist() for name in SCHEMA.names if name in table.column_names}
        order = known.pop("index")
        for name in known.keys() & {"labels", *ADDED}:
            known[name] = [None if values is None else tuple(values) for values in known[name]]
        rows = (
            ManifestRow(**dict(zip(known, values, strict=True)))
            for values in zip(*known.values(), strict=True)
        )
        # Not by Arrow, whose functions take longer to load than all of this.
        return cls(tuple(row for _, row in sorted(zip(order, rows, strict=True), key=itemgetter(0))))


# --- scanning --------------------------------------------------------------------------------------------


def scan(source: ImageSource, entries: Iterable[ImageEntry]) -> list[ManifestRow]:
    """Open, decode and hash images, each in one read; unreadable ones become rows that say why.

    A function of its arguments and the files alone: slices of the entries can be scanned by many workers and the rows
    joined in order. Raises StorageError if the storage fails, which says nothing about the images.
    """
    return [_scan_one(source, entry) for entry in entries]


def _stamp(source: ImageSource, entry: ImageEntry) -> tuple[int | None, int | None]:
    with calling(source, "stamp", entry):
        n_bytes, mtime_ns = source.stamp(entry) or (None, None)
    return n_bytes, mtime_ns


def find_known(
    source: ImageSource, entries: Sequence[ImageEntry], previous: Manifest
) -> Iterator[list[ManifestRow | None]]:
    """Yield, slice by slice, the rows of images that have not changed since an earlier scan; None for the others.

    A readable image whose location, size and modification time are the same as then is not read again; labels
    and groups are taken from the entry all the same. An image that could not be read gets another chance here.
    """
    parts = [entries[start : start + LOOK_BATCH] for start in range(0, len(entries), LOOK_BATCH)]
    with ThreadPoolExecutor(LOOKS_AT_ONCE) as threads:
        yield from threads.map(
            lambda part: [_find_known(source, entry, previous.get(entry.image_id)) for entry in part],
            parts,
        )


def _find_known(source: ImageSource, entry: ImageEntry, known: ManifestRow | None) -> ManifestRow | None:
    if known is None or known.uri != entry.uri:
        return None
    try:
        if (known.n_bytes, known.mtime_ns) != _stamp(source, entry):
            return None
        if known.status != OK:  # a permission given since then leaves no trace in size and time
            return _scan_one(source, entry)
    except StorageError:
        return None  # the scan tries more than once
    return known.listed_as(entry)


def _scan_one(source: ImageSource, entry: ImageEntry) -> ManifestRow:
    n_bytes, mtime_ns = _stamp(source, entry)
    row = ManifestRow(entry.image_id, n_bytes=n_bytes, mtime_ns=mtime_ns).listed_as(entry)
    try:
        loaded = load_image(source, entry, smallest)
    except UnreadableImageError as error:
        return replace(row, status=UNREADABLE, error=error.cause)
    width, height = loaded.full_size or loaded.image.size
    return replace(
        row,
        sha256=loaded.sha256,
        n_bytes=loaded.n_bytes if n_bytes is None else n_bytes,
        width=width,
        height=height,
        mode=loaded.mode,
        remark=loaded.remark,
    )
