"""The files of the page itself: its text, style and script, and the colours of the maps."""

from __future__ import annotations

import re
from importlib import resources

MODULES = (
    "dom",
    "pyramid",
    "source",
    "site",
    "colours",
    "images",
    "heatmap",
    "maps",
    "pair",
    "queries",
    "main",
)
"""The modules of the script; each imports from those before it."""

_IMPORT = re.compile(r"^import .*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


def read_asset(name: str) -> str:
    """Return the text of one of the page's files."""
    return resources.files("semrsm_dist.report").joinpath("assets", name).read_text(encoding="utf-8")


def bundle() -> str:
    """Return the modules of the script as one, without their imports and exports."""
    texts: list[str] = []
    for name in MODULES:
        text = read_asset(f"{name}.js")
        texts.append(_EXPORT.sub("", _IMPORT.sub("", text)).strip())
    return "\n\n".join(texts)


def colour_scale() -> str:
    """Return viridis, which the colour-blind can read and which is even in print: 256 colours as hexadecimal text."""
    return "".join(read_asset("viridis.txt").split())
