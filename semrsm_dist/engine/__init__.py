"""Where the work runs: threads of this process or a Ray cluster, behind one protocol."""

from __future__ import annotations

from semrsm_dist.engine.protocol import Engine, Finished, Pool, Progress, Receipt, Resources, Task, Worker
from semrsm_dist.engine.scheduler import Failure, run_tasks
from semrsm_dist.errors import ConfigError, did_you_mean

ENGINES = ("local", "ray")

__all__ = [
    "ENGINES",
    "Engine",
    "Failure",
    "Finished",
    "Pool",
    "Progress",
    "Receipt",
    "Resources",
    "Task",
    "Worker",
    "make_engine",
    "run_tasks",
]


def make_engine(name: str, *, address: str | None = None, workers: int | None = None) -> Engine:
    """Return a running engine; the caller closes it.

    Parameters
    ----------
    name : str
        ``"local"`` for threads of this process, ``"ray"`` for a Ray cluster.
    address : str, optional
        A running Ray cluster, ``host:port`` or ``"auto"``. Without it, ``"ray"`` joins the cluster that
        ``RAY_ADDRESS`` names (as in a submitted job) or starts one of its own on this machine.
    workers : int, optional
        At most this many CPU slots; default all there are.

    Raises
    ------
    ConfigError
        If the name is unknown, an address is given to the local engine, or the cluster cannot be reached.
    """
    if name == "local":
        if address is not None:
            raise ConfigError(
                f"address={address!r} needs engine 'ray': the local engine has no cluster to join"
            )
        from semrsm_dist.engine.local import LocalEngine  # noqa: PLC0415 - loads threadpoolctl and psutil

        return LocalEngine(workers)
    if name == "ray":
        from semrsm_dist.engine.ray_engine import RayEngine  # noqa: PLC0415 - loads Ray

        return RayEngine(address, workers)
    raise ConfigError(
        f"unknown engine {name!r}: choose one of {', '.join(ENGINES)}{did_you_mean(name, ENGINES)}"
    )
