"""TinyImageNet: 200 classes of ImageNet at 64 x 64 pixels, as the archive tiny-imagenet-200.zip unpacks."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Literal

from semrsm_dist.data.annotations import draw_sample, list_below, place_below, read_lines, warn_unlabelled
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.files import ListedSource
from semrsm_dist.data.listing import is_image
from semrsm_dist.data.locations import absolute, below, join
from semrsm_dist.errors import InputError, MissingInputError, shorten
from semrsm_dist.fields import Count, Seed


class TinyImageNetImages(ListedSource):
    """Images of TinyImageNet, sorted by name, labelled with the WordNet id of their class.

    Validation images that ``val_annotations.txt`` does not list are kept, without labels, and a warning names them;
    those that it lists and that are not there are unreadable. `entries` raises InputError if a file or folder is
    missing, or names a class that ``wnids.txt`` does not list.

    Parameters
    ----------
    path
        Folder with ``wnids.txt``, ``train/<wnid>/images/``, ``val/images/`` and ``val/val_annotations.txt``; or its
        URI.
    split
        "train" or "val"; the test images have no labels (read them with FolderImages).
    sample, seed
        Size and seed of a random sample, see `draw_sample`; None takes all.
    allow_outside
        Take images that are links out of the split's folder.
    """

    source: Literal["tiny-imagenet"] = "tiny-imagenet"
    split: Literal["train", "val"] = "val"
    sample: Count | None = None
    seed: Seed = 0

    @property
    def folder(self) -> str:
        """The folder with the images of the split."""
        return join(self.path, "train") if self.split == "train" else join(self.path, "val", "images")

    def entries(self) -> list[ImageEntry]:
        """Return the images of the split."""
        classes = {line.strip() for line in read_lines(join(self.path, "wnids.txt"), self._remedy())}
        images = self._train(classes) if self.split == "train" else self._val(classes)
        if not images:
            raise MissingInputError(f"no images in {join(self.path, self.split)!r}: {self._remedy()}")
        return [images[name] for name in draw_sample(images, self.sample, self.seed)]

    def _train(self, classes: Collection[str]) -> dict[str, ImageEntry]:
        folder = self.folder
        paths = [PurePosixPath(file) for file in list_below(folder, self._remedy()) if is_image(file)]
        self._require_classes({path.parts[0] for path in paths}, classes, folder)
        without = sorted(set(classes) - {path.parts[0] for path in paths})
        if without:
            raise InputError(
                f"{folder}: holds no images of {len(without)} of the {len(classes)} classes in wnids.txt "
                f"({shorten(without)}); {self._remedy()}"
            )
        return {
            path.name: ImageEntry(path.name, below(folder, str(path)), (path.parts[0],)) for path in paths
        }

    def _val(self, classes: Collection[str]) -> dict[str, ImageEntry]:
        where, folder = join(self.path, "val", "val_annotations.txt"), self.folder
        labels: dict[str, str] = {}
        for number, line in enumerate(read_lines(where, self._remedy()), start=1):
            name, *rest = line.split("\t")
            if not rest or name in labels:
                problem = "is listed twice" if rest else "has no class"
                raise InputError(f"{where}: entry {number}: {name!r} {problem}; get the file again")
            labels[name] = rest[0].strip()
        self._require_classes(labels.values(), classes, where)
        unlisted = [
            file for file in list_below(folder, self._remedy()) if is_image(file) and file not in labels
        ]
        warn_unlabelled("TinyImageNet val", unlisted)
        return {
            name: ImageEntry(
                name, place_below(folder, name, where), (labels[name],) if name in labels else ()
            )
            for name in (*labels, *unlisted)
        }

    def _require_classes(self, found: Collection[str], classes: Collection[str], where: str) -> None:
        unknown = sorted(set(found).difference(classes))
        if unknown:
            raise InputError(
                f"{where}: {len(unknown)} classes are not in {join(self.path, 'wnids.txt')} ({shorten(unknown)}); "
                "get both again, or add them there"
            )

    def _remedy(self) -> str:
        return (
            f"unpack tiny-imagenet-200.zip (cs231n.stanford.edu) so that wnids.txt lies in {absolute(self.path)}, or "
            "say where it is with --set data.path=FOLDER"
        )
