"""What a session no longer needs may be gone.

Images, the tables and annotations that list them, a model's weights, ready-made features and their token counts are
needed to make the features of a run, and by no session that finds these features there. The record and the manifest
keep what was found in them. So if there is nothing left where an input was, and the configuration still names that
place, the run continues with what it keeps and warns; where features are missing, it refuses. What was never an input
of the run is an error as in a new run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.errors import InputError, StorageError, UnreadableFileError
from semrsm_dist.pipeline.session import Session
from semrsm_dist.store import paths
from semrsm_dist.store.features import FeatureStore
from semrsm_dist.store.record import Side


def continue_without(session: Session, gone: str, features: Iterable[tuple[Side, str]]) -> None:
    """Warn that an input of the run is gone, if all features that are made from it are there.

    `gone` says what is gone and where it was, `features` the side and layer of what is made from it. Raises InputError
    if some of them are missing.
    """
    missing = lacking(session, features)
    if missing:
        raise InputError(
            f"no longer there: {gone}; features that are made from it are missing ({', '.join(missing)}), so nothing "
            "was computed: put it back as it was and start the run's command, or begin a new run directory"
        )
    session.warn(f"no longer there, and no longer needed: {gone}; the run continues with its own copy")


def lacking(session: Session, features: Iterable[tuple[Side, str]]) -> list[str]:
    """Return the names of the features that are missing, in part or as a whole, or whose copy was not verified."""
    is_copied = isinstance(session.config.data, FeaturesData)
    stores = (FeatureStore(session.directory.features, side, layer) for side, layer in features)
    return [
        f"{store.side}/{store.layer}"
        for store in stores
        if (store.side, store.layer) in session.discarded_features
        or not store.is_complete()
        or (is_copied and not store.is_verified())
    ]


def read_copy(session: Session, side: Side) -> Manifest | None:
    """Return the run's own manifest of a side, or None if that is gone, too, or damaged.

    Raises UnreadableFileError if the file system cannot read it.
    """
    if side in session.discarded_manifests or not paths.exists(session.directory.manifest(side)):
        return None
    try:
        return session.directory.read_manifest(side)
    except UnreadableFileError:
        raise
    except StorageError as error:
        session.warn(f"{error}; it is made anew from its source")
        return None


def with_absolute_paths(value: Any) -> Any:
    """Return a section of the configuration for the record: its paths mean the same in any working directory."""
    if isinstance(value, BaseModel):
        return {name: with_absolute_paths(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {name: with_absolute_paths(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [with_absolute_paths(each) for each in value]
    return str(value.absolute()) if isinstance(value, Path) else value
