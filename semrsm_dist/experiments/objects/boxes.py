"""What is known of the objects of an image from the boxes around them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.data.objects import ObjectBox
from semrsm_dist.data.opening import require_input
from semrsm_dist.data.source import ImageSource, list_boxes
from semrsm_dist.errors import ConfigError, InputError, reason_of
from semrsm_dist.store.record import Side

CORNERS = ["x0", "y0", "x1", "y1"]

PREDICTORS = {
    "size": "side of the largest object, as a share of the image's",
    "number": "objects, as a logarithm to base 2",
    "off-centre": "distance of the largest object's centre from the image's, 1 in a corner",
    "clutter": "share of all boxes' area that is not the largest object's",
}
"""What is computed of each image, and what it means."""


def read_boxes(path: Path) -> pd.DataFrame:
    """Return the table of boxes, one row an object.

    Raises InputError if it cannot be read, lacks a column, or a box is empty or outside its image.
    """
    require_input(path)
    try:
        read = pd.read_parquet if path.suffix in (".parquet", ".pq") else pd.read_csv
        table = read(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as a table of boxes ({reason_of(error)}); give a .csv or .parquet file"
        ) from error
    missing = [name for name in ("image_id", *CORNERS) if name not in table]
    if missing:
        raise InputError(
            f"{path}: has no column {', '.join(missing)}: boxes need image_id, and x0, y0, x1, y1 as shares of the "
            "image's width and height"
        )
    corners = table[CORNERS].apply(pd.to_numeric, errors="coerce")
    is_box = corners.ge(0).all(axis=1) & corners.le(1).all(axis=1)
    is_box &= (corners["x0"] < corners["x1"]) & (corners["y0"] < corners["y1"])
    if not is_box.all():
        row = int(np.flatnonzero(~is_box)[0])
        raise InputError(
            f"{path}: {np.count_nonzero(~is_box)} of {len(table)} boxes are empty or not within 0 and 1, the first in "
            f"row {row + 1}: {table.loc[row, ['image_id', *CORNERS]].to_dict()}; give shares of the image's width and "
            "height, with x0 < x1 and y0 < y1"
        )
    return pd.DataFrame({"image_id": table["image_id"].astype(str), **corners})


def find_boxes(config: RunConfig, side: Side, path: Path | None) -> pd.DataFrame:
    """Return the boxes of a table or, without one, those that the source of the run's images knows.

    Raises
    ------
    ConfigError
        If there is neither.
    InputError
        As `read_boxes`, or as the source.
    """
    if path is not None:
        return read_boxes(path)
    source = config.queries if side == "queries" else config.data
    found = list_boxes(source) if isinstance(source, ImageSource) else None
    if found is None:
        raise ConfigError(
            "the experiment objects needs the boxes around the objects of the run's images, which its source does not "
            "know: --with boxes=TABLE.csv, with the columns image_id, x0, y0, x1 and y1, or a source of annotated "
            "images (docs/own-data.md)"
        )
    return pd.DataFrame(found, columns=list(ObjectBox._fields))


def describe_objects(boxes: pd.DataFrame) -> pd.DataFrame:
    """Return the `PREDICTORS` of each image all of whose boxes are known, by image id."""
    unknown = boxes.loc[boxes[CORNERS].isna().any(axis=1), "image_id"]
    boxes = boxes[~boxes["image_id"].isin(unknown)]
    width, height = boxes["x1"] - boxes["x0"], boxes["y1"] - boxes["y0"]
    middle_x, middle_y = (boxes["x0"] + boxes["x1"]) / 2, (boxes["y0"] + boxes["y1"]) / 2
    facts = pd.DataFrame(
        {
            "image_id": boxes["image_id"],
            "area": width * height,
            "distance": np.hypot(middle_x - 0.5, middle_y - 0.5) / np.hypot(0.5, 0.5),
        }
    )
    images = facts.groupby("image_id", sort=False)
    largest = facts.loc[images["area"].idxmax()].set_index("image_id")
    found = pd.DataFrame(
        {
            "size": np.sqrt(largest["area"]),
            "number": np.log2(images.size()),
            "off-centre": largest["distance"],
            "clutter": 1.0 - largest["area"] / images["area"].sum(),
        }
    )
    return found[list(PREDICTORS)]
