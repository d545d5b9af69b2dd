"""Add the number and the area of the objects of each label to a table of images, from the boxes around the objects.

    python jobs/add_areas.py photos/voc/images.csv photos/voc/boxes.csv --out runs/real/voc-areas.csv

Boxes have the columns image_id, label, and x0, y0, x1, y1, shares of the image's width and height. The area of a label
is the sum over its boxes, at most 1. With it, `semrsm evaluate retrieval` can weigh labels: `--with weights=area`.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pandas as pd

from semrsm_dist.data.entries import format_labels
from semrsm_dist.data.objects import ObjectTally
from semrsm_dist.data.source import list_entries
from semrsm_dist.data.sources.table import TableImages


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="the table of the images")
    parser.add_argument("boxes", type=Path, help="the table of the boxes")
    parser.add_argument("--out", type=Path, required=True, help="the table that is written")
    options = parser.parse_args()
    tally = ObjectTally()
    for box in pd.read_csv(options.boxes, dtype={"image_id": str, "label": str}).itertuples():
        tally.add(box.image_id, box.label, (box.x1 - box.x0) * (box.y1 - box.y0))
    rows = []
    for entry in list_entries(TableImages(path=str(options.images))):
        found = tally.describe(entry)
        if set(found.labels) != set(entry.labels):
            raise SystemExit(
                f"{entry.image_id}: labels {entry.labels}, but boxes of {found.labels}; correct one of both"
            )
        row = dataclasses.asdict(found) | {"labels": format_labels(found.labels)}
        row |= {name: "|".join(map(str, row[name])) for name in ("label_counts", "label_areas")}
        rows.append(row)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
