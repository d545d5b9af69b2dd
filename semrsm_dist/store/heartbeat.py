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
    """A stage of the session. Times are in seconds since the epoch."""

    name: str
    """What it is called."""
    unit: str = ""
    """What it counts."""
    started: float
    """When it began."""
    heard: float | None = None
    """When something was last finished in it."""
    done: int = 0
    """Units that are done."""
    before: int = 0
    """Those of them that earlier sessions did."""
    total: int = 0
    """All units; 0 for a stage without any."""
    rate: float | None = None
    """Units per second in the last minutes; None before anything was done."""
    overall_rate: float | None = None
    """The same since the stage began."""
    seconds_left: float | None = None
    """Estimate for this stage, as of the heartbeat; None before anything was done."""
    failures: int = 0
    """Attempts that failed."""
    retries: int = 0
    """Units that were put in line again."""
    n_set_aside: int = 0
    """How many units were set aside."""
    set_aside: tuple[SetAside, ...] = ()
    """The last of them."""
    n_workers: int = 0
    """How many workers have a task or were heard of in the last minute, and are not known to be lost."""
    slowest: tuple[WorkerSpeed, ...] = ()
    """The slowest of them, if there are several."""


class Heartbeat(_Part):
    """A session of a run. Times are in seconds since the epoch."""

    format: Literal[1] = 1
    driver: str
    """Where the driver works, and its process."""
    started: float
    """When the session began."""
    time: float
    """When this was written."""
    state: Literal["working", "finished", "interrupted", "failed"] = "working"
    """Until the session has ended in order, "working"; then "finished", "interrupted" or "failed"."""
    reason: str = ""
    """Why it failed."""
    stage: StageProgress | None = Field(default=None)
    """What it is, or was, at; None before the first stage."""
