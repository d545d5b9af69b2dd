"""A run as a notebook shows it: what it has, and what is missing."""

from __future__ import annotations

from html import escape

from semrsm_dist.errors import StorageError, first_line, printable_name
from semrsm_dist.results.reader import RunReader
from semrsm_dist.store.results import result_store, tile_files

MOST_LAYERS = 24
"""Layers that are listed; of the others, it is said how many they are."""


def describe_run(run: RunReader) -> str:
    """Return a small table in HTML, in which whatever comes from the run is text."""
    record = run.record
    sides = " x ".join(
        f"{record.counts[side]:,} {side}" for side in dict.fromkeys((record.row_side, "images"))
    )
    kept = record.neighbours
    model = record.config.get("model") or {}
    facts = {
        "images": sides,
        "keeps": "matrices" if kept is None else kept.describe(record.counts),
        "model": model.get("name") or "ready-made features",
        "matcher": record.fingerprint["matching.matcher"],
        "kernels": ", ".join(run.kernels),
    }
    rows = [_row("th", "td", name, str(value)) for name, value in facts.items()]
    layers = run.requested_layers
    states = {layer: _state(run, layer) for layer in layers[:MOST_LAYERS]}
    for layer, state in states.items():
        sizes = record.layers[layer]
        shape = f"S = {sizes.n_tokens:,}, C = {sizes.n_channels:,}"
        rows.append(_row("td", "td", layer, ", ".join(filter(None, (shape, state)))))
    if len(layers) > MOST_LAYERS:
        rows.append(_row("td", "td", "", f"and {len(layers) - MOST_LAYERS} more layers"))
    missing = sum(map(bool, states.values()))
    ending = (
        f"<p>{missing} of {len(layers)} layers are not complete: start the run's command again to finish them.</p>"
        if missing
        else ""
    )
    title = escape(printable_name(str(run.directory.path)))
    return f"<div><strong>Run {title}</strong><table><tbody>{''.join(rows)}</tbody></table>{ending}</div>"


def _row(first: str, second: str, name: str, value: str) -> str:
    cells = (
        f"<{tag} style='text-align:left'>{escape(printable_name(text))}</{tag}>"
        for tag, text in ((first, name), (second, value))
    )
    return f"<tr>{''.join(cells)}</tr>"


def _state(run: RunReader, layer: str) -> str:
    """Return what is missing of a layer, from its descriptions and, if it is not finished, a listing of its tiles."""
    try:
        if result_store(run.directory, run.record, layer).is_finished():
            return ""
        files, layout = tile_files(run.directory, run.record, layer), run.layout(layer)
        n_tiles = int(files.present(layout).sum()) if files.exists() else 0
    except StorageError as error:
        return f"cannot be read: {first_line(error)}"
    return f"not complete: {n_tiles:,} of {layout.n_tiles:,} tiles are there"
