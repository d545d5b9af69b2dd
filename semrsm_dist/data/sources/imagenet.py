"""The validation images of ImageNet (ILSVRC 2012), in class folders, or in one folder with the development kit."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

from semrsm_dist.data.annotations import draw_sample, list_below, read_annotation, read_lines
from semrsm_dist.data.entries import ImageEntry, check_unique_ids
from semrsm_dist.data.files import FileSource
from semrsm_dist.data.listing import is_image
from semrsm_dist.data.locations import below, is_folder, join
from semrsm_dist.errors import InputError, MissingInputError, counted, shorten
from semrsm_dist.fields import Count, Location, Seed

TRUTH, CLASSES = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_WNID = re.compile(r"n\d{8}")
_NAME = "ILSVRC2012_val_{:08d}.JPEG"


class ImageNetImages(FileSource):
    """Validation images of ImageNet, sorted by file name, labelled with the WordNet id of their class.

    Models number the classes by the rank of the sorted WordNet ids. Both layouts give the same image ids and labels. In
    the flat layout the ground truth lists the images: those that are missing are unreadable. `entries` raises
    InputError if a folder or file is missing, or something in it does not belong there.

    Parameters
    ----------
    path
        Folder with ``val/<wnid>/*.JPEG``, or with ``val/*.JPEG`` and the development kit; or ``val`` itself; or a URI.
    devkit
        Folder with ``ILSVRC2012_validation_ground_truth.txt`` and ``meta.mat``, which the flat layout needs;
        ``ILSVRC2012_devkit_t12/data`` below `path` if not given.
    sample, seed
        Size and seed of a random sample, see `draw_sample`; None takes all.
    """

    source: Literal["imagenet"] = "imagenet"
    devkit: Location | None = None
    sample: Count | None = None
    seed: Seed = 0

    def entries(self) -> list[ImageEntry]:
        """Return the validation images."""
        inner = join(self.path, "val")
        folder = inner if is_folder(inner) else join(self.path)
        paths = [PurePosixPath(file) for file in list_below(folder, self._remedy()) if is_image(file)]
        if not paths:
            raise MissingInputError(f"no images in {folder!r}: {self._remedy()}")
        flat = [path for path in paths if len(path.parts) == 1]
        if flat and len(flat) < len(paths):
            raise InputError(
                f"{folder}: images lie both in class folders ({len(paths) - len(flat)}) and beside these "
                f"({len(flat)}); keep one layout"
            )
        labels = self._flat_labels(flat, folder) if flat else _nested_labels(paths, folder)
        by_name = {path.name: path for path in labels}
        return [
            ImageEntry(name, below(folder, str(by_name[name])), (labels[by_name[name]],))
            for name in draw_sample(by_name, self.sample, self.seed)
        ]

    def _flat_labels(self, paths: Sequence[PurePosixPath], folder: str) -> dict[PurePosixPath, str]:
        """Return all images of the ground truth, whose line number is the image's number."""
        kit = join(self.devkit) if self.devkit else join(self.path, "ILSVRC2012_devkit_t12", "data")
        remedy = (
            f"without class folders the images need {TRUTH} and {CLASSES} of ILSVRC2012_devkit_t12.tar.gz "
            f"(image-net.org): put both into {kit}, or say where they are with --set data.devkit=FOLDER"
        )
        wnids = _read_classes(below(kit, CLASSES), remedy)
        labels: dict[PurePosixPath, str] = {}
        for number, line in enumerate(read_lines(below(kit, TRUTH), remedy), start=1):
            if not line.strip().isdecimal() or int(line) not in wnids:
                raise InputError(
                    f"{below(kit, TRUTH)}: line {number}: {line!r} is not a class of {CLASSES}; get both again"
                )
            labels[PurePosixPath(_NAME.format(number))] = wnids[int(line)]
        strange = [path for path in paths if path not in labels]
        if strange:
            raise InputError(
                f"{folder}: {counted(len(strange), 'image')} {'is' if len(strange) == 1 else 'are'} none of the "
                f"{len(labels)} of the ground truth, "
                f"{_NAME.format(1)} to {_NAME.format(len(labels))} ({shorten(strange)}); move them away"
            )
        return labels

    def _remedy(self) -> str:
        return (
            "put the validation images of ILSVRC 2012 (ILSVRC2012_img_val.tar from image-net.org) into "
            f"{join(self.path, 'val')}, in one folder or in one per class (<wnid>/*.JPEG), or say where they are with "
            "--set data.path=FOLDER"
        )


def _nested_labels(paths: Sequence[PurePosixPath], folder: str) -> dict[PurePosixPath, str]:
    strange = sorted({path.parts[0] for path in paths if not _WNID.fullmatch(path.parts[0])})
    if strange:
        raise InputError(
            f"{folder}: {len(strange)} folders are not named after a class such as n01440764 ({shorten(strange)}); "
            "move them away, or read other images with source: folder"
        )
    check_unique_ids((path.name for path in paths), folder)
    return {path: path.parts[0] for path in paths}


def _read_classes(location: str, remedy: str) -> dict[int, str]:
    """Return the class number of the development kit -> WordNet id."""
    from scipy.io import loadmat  # noqa: PLC0415 - only this layout needs it
    from scipy.io.matlab import MatReadError  # noqa: PLC0415

    content = read_annotation(location, remedy)
    try:
        read: Any = loadmat  # files in memory too, of which its stubs do not know
        synsets = read(io.BytesIO(content), squeeze_me=True)["synsets"]
        return {
            int(number): str(wnid)
            for number, wnid in zip(synsets["ILSVRC2012_ID"].flat, synsets["WNID"].flat, strict=True)
        }
    except (MatReadError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise InputError(
            f"{location}: is not the list of classes of ILSVRC 2012 ({error}); get it again"
        ) from error
