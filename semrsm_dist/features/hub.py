"""Downloads of weights: a host that cannot be reached is reported at once, with what to do without it."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from semrsm_dist.errors import InputError, reason_of

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@contextmanager
def downloading(name: str, cfg: Mapping[str, Any], files: Sequence[str] = ()) -> Iterator[None]:
    """Report a download that fails within the block, with the file to fetch elsewhere and how to use it.

    A host that has no address from here is reported at once, instead of after a minute of retries. Raises InputError if
    the file is not in the cache and cannot be downloaded.

    Parameters
    ----------
    name
        The model.
    cfg
        Its configuration in timm, with `hf_hub_id`, `hf_hub_filename` or `url`.
    files
        Any one of these files of its repository will do; without them, those that timm would take.
    """
    filename = cfg.get("hf_hub_filename")
    wanted = files or ((filename,) if filename else WEIGHTS)
    repository, _, revision = str(cfg.get("hf_hub_id") or "").partition("@")
    try:
        # Other hosts do not retry.
        if repository and not _in_cache(repository, revision, wanted) and not urllib.request.getproxies():
            from huggingface_hub import constants  # noqa: PLC0415 (only where a download is wanted)

            socket.getaddrinfo(urllib.parse.urlparse(constants.ENDPOINT).hostname, 443)
        yield
    except OSError as error:  # of the network, the cache or the disk
        url = cfg.get("url")
        if repository:
            url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{wanted[0]}"
        reason = reason_of(error)
        if files and not set(files) & set(WEIGHTS):
            raise InputError(
                f"{files[0]} of {name!r} cannot be downloaded from {url} ({reason}); load it once where there is a "
                "network, as it is then found in the cache of the hub, or give a model by the name of its architecture "
                "and its weights as a file (--set model.weights=PATH)"
            ) from error
        raise InputError(
            f"the weights of {name!r} cannot be downloaded ({reason}). Get {url} where there is a network and give the "
            "path of that file as weights (--set model.weights=PATH), or set weights: random to run without"
        ) from error


def _in_cache(repository: str, revision: str, files: Sequence[str]) -> bool:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    return any(
        isinstance(try_to_load_from_cache(repository, n, revision=revision or None), str) for n in files
    )
