"""Pictures in tar files and in Parquet, as their usual writers leave them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from semrsm_dist.data.source import list_entries


def picture(value: int, kind: str = "PNG", size: int = 12) -> bytes:
    pixels = np.random.default_rng(value).integers(0, 256, (size, size, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def about(source) -> dict[str, tuple]:
    return {entry.image_id: (entry.labels, entry.label_counts) for entry in list_entries(source)}


MEMBERS = [
    ("0000.jpg", picture(0, "JPEG")),
    ("0000.cls", b"7\n"),
    ("0000.json", b'{"label": "tench", "objects": [{"name": "fish"}, {"name": "fish"}, {"name": "hand"}]}'),
    ("sub/0001.PNG", picture(1)),
    ("sub/0001.cls", b"3"),
    ("sub/0001.json", b'{"label": ["a", "b"], "objects": []}'),
]


def write_tar(path: Path, members=MEMBERS, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_parquet(
    path: Path, n: int = 10, *, rows: int = 4, features: dict | None = None, **columns
) -> list[bytes]:
    """Write a file as `datasets` does; return the contents of its images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = [picture(value) for value in range(n)]
    images = [{"bytes": content, "path": f"{value}.png"} for value, content in enumerate(contents)]
    table = pa.table({"image": images, **columns})
    if features is not None:
        info = {"info": {"features": {"image": {"_type": "Image"}, **features}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=rows, write_page_checksum=True)
    return contents
