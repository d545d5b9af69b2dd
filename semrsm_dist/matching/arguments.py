"""Checking the arguments of public functions, which a type checker may not have seen."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from semrsm_dist.errors import ConfigError
from semrsm_dist.fields import explain_problem

_adapter = functools.cache(TypeAdapter)


def argument(name: str, value: Any, kind: Any, hint: str = "") -> Any:
    """Return a value of a type of `semrsm_dist.fields`; scalars of NumPy are numbers, text is none.

    Raises ConfigError if it is of another type, or out of range; the message ends with `hint`.
    """
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise ConfigError(explain_problem(error.errors()[0], name) + (hint and f"; {hint}")) from None
