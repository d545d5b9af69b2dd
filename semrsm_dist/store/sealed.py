"""Small files of JSON that notice every flipped bit: a digest of all else is their last entry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

DIGEST = "digest"


def seal(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object as the bytes of a file, with its digest."""
    plain = json.loads(json.dumps(content))  # as it is read back
    return (json.dumps({**plain, DIGEST: digest(plain)}, indent=1) + "\n").encode()


def unseal(file: bytes) -> dict[str, Any]:
    """Return the JSON object of a file that `seal` made; raises ValueError or RecursionError if it is damaged."""
    content = json.loads(file)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - damaged like any other
    if content.pop(DIGEST, None) != digest(content):
        raise ValueError("its digest does not fit its content")
    return content


def digest(content: Mapping[str, Any]) -> str:
    """Return a hash of a JSON object, whatever the order of its entries."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
