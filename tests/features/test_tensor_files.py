"""Features in files of tensors: what is taken is exact, and what is not is refused by name."""

import numpy as np
import pytest
import safetensors.torch
import torch

from semrsm_dist.errors import InputError
from semrsm_dist.store.feature_source import open_array

Z = torch.arange(24.0).reshape(2, 3, 4)


def test_names_that_are_equal_as_text_are_refused(tmp_path):
    torch.save({1: Z, "1": 2 * Z}, tmp_path / "z.pt")
    with pytest.raises(InputError, match="two tensors are named '1'"):
        open_array(tmp_path / "z.pt" / "1")


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4)])
def test_an_empty_tensor_is_called_empty(tmp_path, shape):
    safetensors.torch.save_file({"a": torch.zeros(shape)}, tmp_path / "z.safetensors")
    with pytest.raises(InputError, match="it is empty"):
        open_array(tmp_path / "z.safetensors")


def test_a_type_of_eight_bits_is_refused_by_name(tmp_path):
    safetensors.torch.save_file({"a": Z.to(torch.float8_e4m3fn)}, tmp_path / "z.safetensors")
    with pytest.raises(InputError, match=r"type F8_E4M3, which is not taken .*float16"):
        open_array(tmp_path / "z.safetensors")


def test_a_tensor_that_is_stored_as_its_negative_is_read(tmp_path):
    negative = torch.complex(torch.zeros_like(Z), Z).conj().imag
    assert negative.is_neg()
    torch.save(negative, tmp_path / "z.pt")
    np.testing.assert_array_equal(open_array(tmp_path / "z.pt").read(0, 2), -Z.numpy())
