"""The page of a report: text that needs no script, the data, and the script that explores them, in one file."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from string import Template

from semrsm_dist.errors import ConfigError, StorageError
from semrsm_dist.progress import Reporter, require_reporter
from semrsm_dist.report import facts
from semrsm_dist.report.bundle import bundle, read_asset
from semrsm_dist.report.evaluations import read_evaluations
from semrsm_dist.report.gathering import Gathered, as_json, gather
from semrsm_dist.report.page_data import Data
from semrsm_dist.report.still import still_maps
from semrsm_dist.results.run import Run
from semrsm_dist.results.status import read_status
from semrsm_dist.results.status_text import format_status
from semrsm_dist.store.npy import replacing

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What the page may load: nothing."""

SITE_POLICY = (
    "default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
"""The same of one that requests its parts from where it came from."""


def write_report(run: Run, path: Path | None = None, *, reporter: Reporter | None = None) -> Path:
    """Write the report of a run, one HTML file that needs nothing else, and return its path.

    Parameters
    ----------
    run
        The run; of an unfinished one, what there is.
    path
        The file, whose folder is created if missing; `report.html` in the run directory by default.
    reporter
        Where progress is reported; None shows a bar in a notebook, and nothing elsewhere.

    Raises
    ------
    ConfigError
        If the path is a folder, or leads through a file; or it is needed, as the run is in an object store.
    StorageError
        If the run is damaged, or the file cannot be written.
    """
    target = _default_target(run) if path is None else path
    _require_place(target)
    gathered = gather(run, require_reporter(reporter))
    _replace(target, render(run, gathered))
    return target


def _default_target(run: Run) -> Path:
    folder = run.directory.path
    if not isinstance(folder, Path):
        raise ConfigError(f"{folder}: the page is not written into an object store: name a file with -o")
    return folder / "report.html"


def render(run: Run, gathered: Gathered, *, shown: Data | None = None) -> str:
    """Return the page, or that of a site, with the data `shown`: it requests what else there is from where it lies."""
    summary = run.directory.read_summary() or {}
    notes, status = list(gathered.notes), read_status(run.directory.path)
    if not status["complete"] or status["working"]:
        notes.insert(0, format_status(status))
    if not summary:
        notes.append("No session has finished yet: times, scores and the mean of the gaps are missing.")
    data, tolerance = gathered.data, run.record.fingerprint.get("matching.tolerance")
    stills = "".join(still_maps(layer, data.colours, symmetric=data.symmetric) for layer in data.layers)
    folder = run.directory.path / "evaluation"
    experiments = facts.evaluations(read_evaluations(folder) if isinstance(folder, Path) else ())
    parts = {
        "title": escape(run.directory.path.resolve().name),
        "about": escape(summary.get("about", "")),
        "headline": facts.headline(run, summary),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in notes),
        "stills": stills,
        "still_note": "These pictures stand for them."
        if stills
        else "semrsm report writes a page with pictures of them.",
        "scores": facts.scores_table(summary),
        "experiments": experiments
        or "<p class='muted'>None yet. <code>semrsm evaluate --help</code> lists what can be measured.</p>",
        "gap_title": "Certified gaps" if data.certified else "Gaps to the upper bound (not certified)",
        "gaps": "".join(
            facts.gap_histogram(layer, gaps, tolerance if isinstance(tolerance, float) else None)
            for layer, gaps in gathered.gaps.items()
        )
        or "<p class='muted'>They are not counted here.</p>",
        "policy": POLICY if shown is None else SITE_POLICY,
        "facts": facts.run_facts(run, summary),
        "style": read_asset("page.css"),
        "data": as_json(shown or data),
        "script": bundle(),
    }
    return Template(read_asset("page.html")).substitute(parts)


def _require_place(target: Path) -> None:
    """Refuse a place that no file can be written to, before anything is read."""
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; name a file with -o, such as {target / 'report.html'}")
    folder = next(folder for folder in target.absolute().parents if folder.exists())
    if not folder.is_dir():
        raise ConfigError(f"{target}: {folder} is a file, not a folder; name another file with -o")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(
            f"{target}: the report cannot be written, because {folder} is read-only; the run is unchanged: write the "
            "report elsewhere with -o"
        )


def _replace(target: Path, text: str) -> None:
    """Write the file whole or not at all."""
    try:
        with replacing(target) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{target}: the report cannot be written ({error.strerror or error}); the run is unchanged: make room, or "
            "write it elsewhere with -o"
        ) from error
