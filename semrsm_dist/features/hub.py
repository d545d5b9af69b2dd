"""Downloads of weights: a host that cannot be reached is reported at once, with what to do without it."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from semrsm_dist.errors import InputError, first_line

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def check_download(name: str, cfg: Mapping[str, Any], files: Sequence[str] = ()) -> None:
    """Refuse at once, instead of after a minute of retries, if a file is neither in the cache nor reachable.

    Parameters
    ----------
    name
        The model.
    cfg
        Its configuration in timm, with `hf_hub_id`, `hf_hub_filename` or `url`.
    files
        Any one of these files of its repository will do; without them, those that timm would take.

    Raises
    ------
    InputError
        The file is not in the cache and its host has no address from here.
    """
    repository = cfg.get("hf_hub_id")
    if not repository or _in_cache(repository, files or _files(cfg)) or urllib.request.getproxies():
        return  # other hosts do not retry
    from huggingface_hub import constants  # noqa: PLC0415 (only where a download is wanted)

    host = urllib.parse.urlparse(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise download_error(name, cfg, error, files) from error


def _files(cfg: Mapping[str, Any]) -> Sequence[str]:
    filename = cfg.get("hf_hub_filename")
    return (filename,) if filename else WEIGHTS


def _in_cache(repository: str, files: Sequence[str]) -> bool:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    name, _, revision = repository.partition("@")
    return any(isinstance(try_to_load_from_cache(name, n, revision=revision or None), str) for n in files)


def download_error(
    name: str, cfg: Mapping[str, Any], error: Exception, files: Sequence[str] = ()
) -> InputError:
    """Return an error that says which file to fetch elsewhere, and how to use it."""
    repository, _, revision = str(cfg.get("hf_hub_id") or "").partition("@")
    url = cfg.get("url")
    if repository:
        file = (files or _files(cfg))[0]
        url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{file}"
    reason = first_line(error)
    if files and not set(files) & set(WEIGHTS):
        return InputError(
            f"{files[0]} of {name!r} cannot be downloaded from {url} ({reason}); load it once where there is a "
            "network, as it is then found in the cache of the hub, or give a model by the name of its architecture and "
            "its weights as a file (--set model.weights=PATH)"
        )
    return InputError(
        f"the weights of {name!r} cannot be downloaded ({reason}). Get {url} where there is a network and give the "
        "path of that file as weights (--set model.weights=PATH), or set weights: random to run without"
    )
