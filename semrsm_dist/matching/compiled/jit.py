"""How functions are compiled: without the interpreter lock, and cached."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

logger = logging.getLogger(__name__)
_warn_once = functools.cache(logger.warning)

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile `function` with numba on its first call; threads run it in parallel.

    The machine code is cached in `NUMBA_CACHE_DIR` if that is set; else next to the source in a checkout, and in the
    user's cache directory for an installed package; where neither can be written, not at all, which is reported. Of
    processes that start together, one compiles a function, and the others wait and read what it has cached.
    """
    try:
        dispatcher = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError as error:  # numba found no writable cache directory
        _warn_once(
            "neither the package's folder nor the user's cache can be written, so each process spends up to half a "
            "minute compiling: set the variable NUMBA_CACHE_DIR to a folder that can be written"
        )
        logger.debug("%s is compiled without a cache: %s", function.__name__, error)
        return cast(Function, numba.njit(nogil=True, error_model="numpy")(function))
    try:
        from semrsm_dist.matching.compiled.cache import share_cache  # noqa: PLC0415 - not every numba has what it needs

        share_cache(dispatcher, function.__code__.co_filename)
    except (ImportError, AttributeError) as error:
        _warn_once(
            "numba %s caches in a way that this package does not know (%s): processes that start together compile "
            "apart, and after a change of the package's files their __pycache__ must be removed",
            numba.__version__,
            str(error),
        )
    return cast(Function, dispatcher)


def inlined(function: Function) -> Function:
    """Copy `function` into the compiled functions that call it, before they are compiled.

    A call passes every field of every array in its arguments, hundreds for two images: for the steps of a pair, more
    work than many of them. Where the code is large and the arguments few, `compiled` takes less time to compile.
    """
    return cast(Function, numba.njit(nogil=True, error_model="numpy", inline="always")(function))
