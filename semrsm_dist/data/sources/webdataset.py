"""WebDataset: images and what goes with them as members of tar files, which are read where they are."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from semrsm_dist.data.annotations import annotation_errors
from semrsm_dist.data.columns import labels_in
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.listing import extensions
from semrsm_dist.data.locations import open_file, read_range
from semrsm_dist.data.packed import PackedSource, parse_numbers, part_uri
from semrsm_dist.errors import InputError, counted, first_line, printable_name, shorten

_logger = logging.getLogger(__name__)

BLOCK = tarfile.BLOCKSIZE
MOST_LABEL_BYTES = 2**20
"""Of a member with labels."""

_LISTED_AT_ONCE = 8  # tar files, perhaps far away
_INT64 = 8  # bytes


@dataclass
class _Sample:
    """Consecutive members of the same key: the place and size of their contents by ending, in lower case."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


class WebDatasetImages(PackedSource):
    """The images of samples in tar files, in the order of the files' names and of their members.

    A sample is what comes one after the other and is named alike up to the first dot: ``0001.jpg``, ``0001.cls``,
    ``0001.json``. The id of its image is ``FILE/0001``, with the tar file's path below the folder without ``.tar``.
    Nothing is unpacked: a worker reads an image from its place in the file. Listing reads the header of each member, on
    an object store with one request for each. Compressed tar files cannot be read like that and are refused. Samples
    without an image are skipped, and a warning counts them. `entries` raises InputError if there is no tar file, one
    is damaged, not complete or not of samples, or labels are missing.

    Parameters
    ----------
    path, files
        See `PackedSource`; the files end in ``.tar``.
    image
        Ending of the members that hold the images, such as "jpg"; if not given, the one that is an image's.
    labels
        Where labels are: in members of an ending ("cls": text, such as the number of a class, or several with ``|``
        between them; or a number as the eight bytes of an int64), or at a key of JSON in them ("json.label",
        "json.objects.name": text, a number, or a list). If not given, in "cls", if there is one.
    """

    endings: ClassVar[tuple[str, ...]] = (".tar",)

    source: Literal["webdataset"] = "webdataset"
    image: str | None = None
    labels: str | None = None

    def entries(self) -> list[ImageEntry]:
        """Return the images of all tar files."""
        packs = self.list_packs()
        with ThreadPoolExecutor(_LISTED_AT_ONCE) as threads:
            listed = threads.map(lambda pack: self._entries_of(*pack), packs.items())
            entries = [entry for part in listed for entry in part]
        if not entries:
            raise InputError(
                f"{self.path}: {len(packs)} tar files hold no image; name the ending of the images with data.image, "
                "such as jpg, or choose another source"
            )
        return entries

    def read_part(self, location: str, part: str, most: int) -> bytes:
        """Return the content of a member."""
        offset, n_bytes = parse_numbers(part)
        data = read_range(location, offset, min(n_bytes, most + 1))
        if len(data) < min(n_bytes, most + 1):
            raise ValueError(f"{location} ends within it")
        return data

    def _entries_of(self, name: str, location: str) -> list[ImageEntry]:
        entries, without = [], []
        with annotation_errors(location, "check the path"):
            for sample in _read_samples(location):
                image = self._image_of(sample, location)
                if image is None:
                    without.append(sample.key)
                    continue
                offset, n_bytes = sample.members[image]
                labels, counts = self._labels_of(sample, location)
                uri = part_uri(location, f"{offset}+{n_bytes}")
                entries.append(ImageEntry(f"{name}/{sample.key}", uri, labels, label_counts=counts))
        if without:
            _logger.warning(
                "%s: skipped %s without an image: %s",
                location,
                counted(len(without), "sample"),
                shorten(without),
            )
        return entries

    def _image_of(self, sample: _Sample, location: str) -> str | None:
        """Return the ending of the member that is the image of a sample; None for a sample without one."""
        if self.image is not None:
            ending = self.image.lower().lstrip(".")
            return ending if ending in sample.members else None
        found = [ending for ending in sample.members if f".{ending.rpartition('.')[2]}" in extensions()]
        if len(found) > 1:
            raise InputError(
                f"{location}: sample {sample.key!r} holds {len(found)} images ({shorten(found)}), and which one is "
                "meant is not known; name its ending with data.image, such as jpg"
            )
        return found[0] if found else None

    def _labels_of(self, sample: _Sample, location: str) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
        wanted = self.labels or "cls"
        ending = max(
            (each for each in sample.members if f"{wanted}.".startswith(f"{each}.")), key=len, default=""
        )
        if not ending and self.labels is None:
            return (), None
        if not ending:
            raise InputError(
                f"{location}: sample {sample.key!r} has no member {wanted!r} for its labels, only "
                f"{shorten(sample.members)}; correct data.labels, or the file"
            )
        path = wanted[len(ending) + 1 :]
        offset, n_bytes = sample.members[ending]
        where = f"{location}: labels of sample {sample.key!r}"
        if n_bytes > MOST_LABEL_BYTES:
            raise InputError(f"{where}: {n_bytes} bytes are no labels; name others with data.labels")
        try:
            text = _as_text(read_range(location, offset, n_bytes))
            return labels_in(json.loads(text) if ending.endswith("json") and not path else text, path)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}: {first_line(error)}; correct the file, or name other labels with data.labels"
            ) from error


def _as_text(content: bytes) -> str:
    """Return text as it is, and an int64 of NumPy or PyTorch, of which some writers keep the bytes, in decimals."""
    # No text ends with one of these bytes, and no class has so large a number that it ends with another.
    if len(content) == _INT64 and content[-1] in (0, 0xFF):
        return str(int.from_bytes(content, "little", signed=True))
    if b"\0" in content:
        raise ValueError("neither text nor an int64")
    return content.decode()


def _read_samples(location: str) -> Iterator[_Sample]:
    """Yield the samples of a tar file."""
    sample: _Sample | None = None
    keys: set[str] = set()
    for member in _read_members(location):
        folder, slash, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        if not member.isreg() or not stem or not ending:
            continue  # folders, hidden files and files without an ending belong to no sample
        key, ending = f"{folder}{slash}{stem}".removeprefix("./"), ending.lower()
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            if key in keys:
                raise _damaged(location, f"the members of sample {key!r} do not follow each other")
            sample = _Sample(key)
            keys.add(key)
        if ending in sample.members:
            raise _damaged(location, f"sample {key!r} has two members {ending!r}")
        sample.members[ending] = member.offset_data, member.size
    if sample is not None:
        yield sample


def _read_members(location: str) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file that has its end."""
    try:
        with (
            open_file(location) as file,
            io.BufferedReader(file) as buffered,
            tarfile.open(fileobj=buffered, mode="r:") as tar,
        ):
            end, n_bytes = 0, file.size()
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                if tar.offset <= end or member.offset_data + member.size > n_bytes:
                    raise _damaged(location, f"member {member.name!r} does not end in the file")
                end = tar.offset
                _check_member(member, location)
                yield member
            # Python takes a damaged or missing header for the end.
            buffered.seek(tar.offset)
            if buffered.read(BLOCK) != bytes(BLOCK):
                raise _damaged(location, f"at byte {tar.offset} there is neither a member nor the end")
    except InputError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        raise _damaged(location, first_line(error)) from error


def _check_member(member: tarfile.TarInfo, location: str) -> None:
    try:
        member.name.encode()
    except UnicodeEncodeError:
        raise _damaged(
            location,
            f"the name {printable_name(member.name)!r} is not valid Unicode, so no table can hold it",
        ) from None
    if member.issparse():
        raise _damaged(location, f"member {member.name!r} is stored with its gaps left out")


def _damaged(location: str, problem: str) -> InputError:
    return InputError(
        f"{location}: not a complete tar file of samples ({problem}), so images could be missing or be others; get it "
        "again, decompress it if it is compressed, or make it again (tar --sort=name -cf FILE.tar FOLDER)"
    )
