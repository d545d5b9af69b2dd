"""Ready-made features in files of safetensors and PyTorch, read piece by piece and without executing code from them."""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from semrsm_dist.data.locations import file_of
from semrsm_dist.data.opening import require_input
from semrsm_dist.errors import InputError, did_you_mean, first_line, shorten
from semrsm_dist.features.arrays import READ_ERRORS, FeatureArray

if TYPE_CHECKING:
    from torch import Tensor


class TensorFeatures(FeatureArray):
    """Features in one tensor of a file; bfloat16 is returned as float32, which holds it exactly.

    Raises InputError if the file does not exist, cannot be read without executing code, or holds no such tensor of
    features.

    Parameters
    ----------
    path
        The file; or, if it holds several tensors, `file/name` for the tensor of that name.
    layout
        See `interpret`.
    layer
        The tensor to take if there are several and the path names none.
    """

    def __init__(self, path: Path, layout: str = "auto", layer: str | None = None) -> None:
        self._file = file_of(path)
        require_input(self._file)
        key = path.relative_to(self._file).as_posix() if path != self._file else None
        try:
            self._name = _choose(path, self._names(), key, layer)
            shape, dtype = self._measure()
        except InputError:
            raise
        except READ_ERRORS as error:
            raise InputError(
                f"{path}: cannot be read as tensors ({first_line(error)}), and nothing else is loaded, since pickled "
                "objects may execute code; write the features with torch.save(tensor, path) or "
                "safetensors.torch.save_file"
            ) from error
        super().__init__(path, shape, dtype, layout)

    @abstractmethod
    def _names(self) -> list[str]:
        """Return the names of the file's tensors."""

    @abstractmethod
    def _measure(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return shape and type of the tensor, as an array of NumPy."""


class SafetensorsFeatures(TensorFeatures):
    """Features in a `.safetensors` file, see `TensorFeatures`."""

    def _names(self) -> list[str]:
        with safetensors.safe_open(self._file, framework="np") as file:
            return list(file.keys())

    def _measure(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with safetensors.safe_open(self._file, framework="np") as file:
            tensor = file.get_slice(self._name)
            shape, name = tuple(tensor.get_shape()), tensor.get_dtype()
            self._is_bfloat16 = name == "BF16"
            if name.startswith("F8"):
                raise InputError(
                    f"{self._file}: tensor {self._name!r} is of type {name}, which is not taken for features; store "
                    "them as float16 or float32, for instance with tensor.half()"
                )
            # An empty one is refused by its shape.
            is_plain = 0 not in shape and shape and not self._is_bfloat16
            return shape, tensor[:0].dtype if is_plain else np.dtype(np.float32)

    def _read_images(self, start: int, stop: int) -> NDArray[Any]:
        # NumPy has no bfloat16.
        with safetensors.safe_open(self._file, framework="pt" if self._is_bfloat16 else "np") as file:
            part = file.get_slice(self._name)[start:stop]
        return _as_array(part) if self._is_bfloat16 else np.asarray(part)


class TorchFeatures(TensorFeatures):
    """Features in a `.pt` file of a tensor or of a dict of tensors, mapped into memory; see `TensorFeatures`."""

    def _names(self) -> list[str]:
        return list(self._load())

    def _measure(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        tensor = self._load()[self._name]
        return tuple(tensor.shape), _as_array(tensor.new_empty(0)).dtype

    def _read_images(self, start: int, stop: int) -> NDArray[Any]:
        return _as_array(self._load()[self._name][start:stop])

    def _load(self) -> dict[str, Tensor]:
        """Return the dense tensors by name; one that is alone has the name of the file."""
        import torch  # noqa: PLC0415 - only where such a file is read

        if not zipfile.is_zipfile(self._file):
            raise InputError(
                f"{self._file}: not complete, or not in the format of PyTorch since 1.6, which can be read piece by "
                "piece; write the features again with torch.save(tensor, path)"
            )
        found = torch.load(self._file, map_location="cpu", mmap=True, weights_only=True)
        tensors = found.items() if isinstance(found, dict) else [(self._file.name, found)]
        dense: dict[str, Tensor] = {}
        for name, tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                if str(name) in dense:
                    raise InputError(
                        f"{self._file}: two tensors are named {str(name)!r}, once as text and once as {name!r} or the "
                        "like, so which one is meant is not known; write the file again with different names"
                    )
                dense[str(name)] = tensor
        return dense


def _as_array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach().resolve_neg().resolve_conj()
    array: NDArray[Any] = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return array


def _choose(path: Path, names: list[str], key: str | None, layer: str | None) -> str:
    """Return the tensor that a path or else a layer names; one that is alone needs no name."""
    if key in names:
        return str(key)
    if key is None and len(names) == 1:
        return names[0]
    if key is None and layer in names:
        return str(layer)
    listed = shorten(sorted(names), 8)
    if not names:
        raise InputError(f"{path}: holds no dense tensor; write the features with torch.save(tensor, path)")
    if key is not None:
        raise InputError(
            f"{path}: there is no tensor {key!r} in this file, only {listed}{did_you_mean(key, names)}"
        )
    raise InputError(
        f"{path}: holds {len(names)} tensors ({listed}), and none is named like the layer {layer!r}; append the name "
        f"of one to the path, as in {path}/{sorted(names)[0]}"
    )
