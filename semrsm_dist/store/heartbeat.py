"""What the driver of a run says of itself every few seconds, in progress.json, for those who watch it.

Nothing depends on it: without it, what is finished is still counted, and only rates and the like are not known.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SetAside(_Part):
    """A unit of work that was set aside, and the last line of its error."""

    unit: str
    error: str


class WorkerSpeed(_Part):
    """A worker: its speed as a share of the median of all, and when it last finished something."""

    place: str
    speed: float
    last: float


class StageProgress(_Part):
    """A stage of the session. Times are in seconds since the epoch.

    Attributes
    ----------
    name, unit
        What it is called, and what it counts.
    started, heard
        When it began, and when something was last finished in it.
    done, before, total
        Units that are done, those of them that earlier sessions did, and all; 0 of 0 for a stage without units.
    rate, overall_rate
        Units per second in the last minutes, and since the stage began; None before anything was done.
    seconds_left
        Estimate for this stage, as of the heartbeat; None before anything was done.
    failures, retries
        Attempts that failed, and units that were put in line again.
    n_set_aside, set_aside
        How many units were set aside, and the last of them.
    n_workers, slowest
        How many workers have finished something, and the slowest of them, if there are several.
    """

    name: str
    unit: str = ""
    started: float
    heard: float | None = None
    done: int = 0
    before: int = 0
    total: int = 0
    rate: float | None = None
    overall_rate: float | None = None
    seconds_left: float | None = None
    failures: int = 0
    retries: int = 0
    n_set_aside: int = 0
    set_aside: tuple[SetAside, ...] = ()
    n_workers: int = 0
    slowest: tuple[WorkerSpeed, ...] = ()


class Heartbeat(_Part):
    """A session of a run. Times are in seconds since the epoch.

    Attributes
    ----------
    driver
        Where the driver works, and its process.
    started, time
        When the session began, and when this was written.
    state
        "working" until the session has ended in order: then "finished", "interrupted" or "failed".
    reason
        Why it failed.
    stage
        What it is, or was, at; None before the first stage.
    """

    format: Literal[1] = 1
    driver: str
    started: float
    time: float
    state: Literal["working", "finished", "interrupted", "failed"] = "working"
    reason: str = ""
    stage: StageProgress | None = Field(default=None)
