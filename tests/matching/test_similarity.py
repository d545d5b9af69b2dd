"""The functions for arrays in memory."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix

from semrsm_dist import machine
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.matching.matchers.identity import Identity
from semrsm_dist.matching.search.top_k import top_k
from semrsm_dist.matching.similarity import match, similarity_matrix


def images(n_images, seed=0):
    return np.cumsum(np.random.default_rng(seed).normal(size=(n_images, 20, 6)), axis=1)


def reference(z, y, kernel, sigma=None, semantic=True):
    """Follow the definitions of the paper, pair by pair."""
    aligned = np.empty((len(z), len(y), *z.shape[1:]))
    for i, z_i in enumerate(z):
        for j, z_j in enumerate(y):
            order = linear_sum_assignment(z_i @ z_j.T, maximize=True)[1] if semantic else np.arange(len(z_j))
            aligned[i, j] = z_j[order]
    if kernel == "linear":
        return np.einsum("isc,ijsc->ij", z, aligned)
    if kernel == "cosine":
        norms = np.outer(np.linalg.norm(z, axis=(1, 2)), np.linalg.norm(y, axis=(1, 2)))
        return np.einsum("isc,ijsc->ij", z, aligned) / norms
    distances = np.sum((z[:, None] - aligned) ** 2, axis=(2, 3))
    sigma = sigma or np.sqrt(np.median(distances[distances > 1e-9]))
    return np.exp(-distances / (2 * sigma**2))


@pytest.mark.parametrize("kernel", ("linear", "cosine", "rbf"))
@pytest.mark.parametrize("semantic", (True, False))
def test_similarities_follow_the_definitions(kernel, semantic):
    z, y = images(6), images(4, seed=1)
    kind = "semantic" if semantic else "spatio-semantic"
    options = {"kernel": kernel, "kind": kind, "tolerance": 0.0}
    for other in (None, y):
        expected = reference(z, z if other is None else other, kernel, semantic=semantic)
        found = similarity_matrix(z, other, **options)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_a_given_sigma_is_used():
    z = images(4)
    found = similarity_matrix(z, kernel="rbf", sigma=3.0, matcher="hungarian")
    np.testing.assert_allclose(found, reference(z, z, "rbf", 3.0), rtol=1e-9)


def test_workers_change_no_bit():
    z = images(23).astype(np.float32)
    one = similarity_matrix(z, workers=1)
    np.testing.assert_array_equal(one, similarity_matrix(z, workers=3))
    np.testing.assert_array_equal(one, one.T)
    np.testing.assert_allclose(np.diag(one), 1.0, rtol=1e-15)


def test_one_image_and_one_token_are_enough():
    np.testing.assert_allclose(similarity_matrix(np.ones((1, 1, 1))), [[1.0]])


def test_a_zero_representation_has_no_cosine():
    z = images(3)
    z[1] = 0.0
    found = similarity_matrix(z)
    assert np.isnan(found[1]).all()
    assert np.isnan(found[:, 1]).all()
    assert np.isfinite(found[np.ix_([0, 2], [0, 2])]).all()


def test_match_is_the_matcher_of_that_name():
    z = images(2)
    found = match(*z, matcher="batch-optimal", window=4)
    assert found.matcher == "batch-optimal"
    assert found.value <= match(*z, tolerance=0.0).value


def test_what_cannot_be_is_refused():
    z = images(3)
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        similarity_matrix(z, kernel="cosin")
    with pytest.raises(ConfigError, match="unknown kind"):
        similarity_matrix(z, kind="semantics")
    with pytest.raises(ConfigError, match="width of the kernel 'rbf'"):
        similarity_matrix(z, sigma=1.0)
    with pytest.raises(ConfigError, match="workers: 0: must be"):
        similarity_matrix(z, workers=0)
    with pytest.raises(InputError, match="channels cannot be matched"):
        similarity_matrix(z, z[:, :, :2])
    z[2, 0, 0] = np.nan
    with pytest.raises(InputError, match="y: image 2"):
        similarity_matrix(images(2), z)


def torch_tensor(z):
    return torch.from_numpy(z).requires_grad_()


FORMS = {
    "list": lambda z: z.tolist(),
    "images in a list": list,
    "lists of images": lambda z: [image.tolist() for image in z],
    "Fortran order": np.asfortranarray,
    "every second column": lambda z: np.repeat(z, 2, axis=2)[:, :, ::2],
    "big-endian": lambda z: z.astype(">f8"),
    "tensor": torch_tensor,
    "list of tensors": lambda z: list(torch_tensor(z)),
    "tensor of another order": lambda z: torch_tensor(z.transpose(2, 1, 0).copy()).permute(2, 1, 0),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow
def test_arrays_lists_and_tensors_are_taken_as_they_are(form):
    z = images(5)
    given = FORMS[form](z)
    np.testing.assert_array_equal(similarity_matrix(given), similarity_matrix(z))
    np.testing.assert_array_equal(top_k(given, k=2).similarities, top_k(z, k=2).similarities)
    assert match(given[0], given[1]).value == match(z[0], z[1]).value


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_tensors_keep_their_values(dtype):
    z = torch_tensor(images(4)).to(dtype)
    wide = z.detach().to(torch.float32).numpy()
    np.testing.assert_array_equal(similarity_matrix(z), similarity_matrix(wide))


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_foreign_byte_orders_are_the_same_numbers(dtype):
    z = images(4).astype(dtype)
    native = z.astype(z.dtype.newbyteorder("="))
    mixed = [z[0], native[1], *z[2:, :7]]
    assert np.array_equal(similarity_matrix(z), similarity_matrix(native))
    assert np.array_equal(similarity_matrix(mixed), similarity_matrix([*native[:2], *native[2:, :7]]))


def test_whole_numbers_in_lists_are_numbers():
    found = match([[1, 0], [0, 2]], [[0, 2], [1, 0]])
    assert (found.value, found.permutation.tolist()) == (5.0, [1, 0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.full((3, 2), np.nan), "holds 6 NaN or infinite values"),
        (np.full((3, 2), 1e200), "holds values up to 1e\\+200, whose squares overflow"),
        (np.ones((3, 2), int), ": expected representations of float16, float32 or float64, found int64"),
        (np.ones(3), "of shape \\(tokens, channels\\)"),
        (np.ones((0, 2)), "of shape \\(tokens, channels\\), none of them 0"),
    ],
)
def test_match_names_the_argument_that_is_wrong(wrong, message):
    right = np.ones((3, 2))
    with pytest.raises(InputError, match="z_i") as left:
        match(wrong, right)
    with pytest.raises(InputError, match="z_j"):
        match(right, wrong)
    assert re.search(message, str(left.value))
    assert "image 0" not in str(left.value)


UNREADABLE = {
    "mapping": (lambda z: {"layer4": z}, r"found a mapping: choose one of its layers \('layer4'\)"),
    "file": (lambda z: "z.npy", "found 'z.npy': load it first"),
    "nothing": (lambda z: [None, None], "found None"),
    "sparse tensor": (lambda z: torch.from_numpy(z).to_sparse(), r"torch.sparse_coo: give its .to_dense\(\)"),
    "sparse matrix": (lambda z: csr_matrix(z[0]), r"give its .toarray\(\)"),
    "meta tensor": (lambda z: torch.empty(z.shape, device="meta"), "'meta', which holds no numbers"),
    "nested tensor": (
        lambda z: torch.nested.nested_tensor(list(torch.from_numpy(z))),
        r"list\(z.unbind\(\)\)",
    ),
    "quantized tensor": (
        lambda z: torch.quantize_per_tensor(torch.from_numpy(z).float(), 0.1, 0, torch.qint8),
        r"torch.qint8, which NumPy lacks: give its .dequantize\(\)",
    ),
    "generator": (lambda z: (image for image in z), r"found a generator: make a list of it"),
    "complex": (lambda z: z + 0j, r"found complex128: give their real and imaginary parts as channels"),
    "objects": (
        lambda z: np.array([*z, z[0, :1]], object)[:3],
        r"found \(3,\), an array of objects.*list\(z\)",
    ),
    "whole numbers": (
        lambda z: z.astype(int),
        r"found int64: convert them with z.astype\('float32'\), or z.float\(\) where z is a tensor",
    ),
    "pictures": (lambda z: list((z > 0).astype(np.uint8)), r"image 0: .*found uint8: convert"),
    "one of truths": (lambda z: [z[0], z[1] > 0, z[2]], r"image 1: .*found bool: convert"),
    "8 bits": (lambda z: torch.from_numpy(z).to(torch.float8_e4m3fn), r"float8_e4m3fn.*give its .float\(\)"),
    "too small": (lambda z: z * 1e-160, "image 0 holds values up to .*, whose squares underflow"),
    "ragged": (lambda z: [[[1.0, 2.0], [3.0]]], "with equal channels"),
    "masked rows": (lambda z: [[np.ma.masked_array([1.0, 2.0], [True, False])]], "has 1 masked numbers"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("form", UNREADABLE)
def test_what_holds_no_numbers_is_refused_with_the_remedy(form):
    make, message = UNREADABLE[form]
    for compute in (similarity_matrix, top_k):
        with pytest.raises(InputError, match=message):
            compute(make(images(3)))


def test_lazily_negated_tensors_are_taken():
    z = images(3)
    lazy = torch.complex(torch.from_numpy(z), torch.from_numpy(-z)).conj().imag
    assert lazy.is_neg()
    np.testing.assert_array_equal(similarity_matrix(lazy), similarity_matrix(z))


def test_values_just_large_enough_have_the_same_cosine():
    z = images(3)
    np.testing.assert_allclose(similarity_matrix(z * 1e-130), similarity_matrix(z), atol=1e-3)
    assert similarity_matrix(np.zeros((1, 2, 3)), kernel="linear") == 0.0


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (similarity_matrix, {"kernel": None}, "unknown kernel None"),
        (similarity_matrix, {"kernel": []}, r"unknown kernel \[\]"),
        (similarity_matrix, {"kind": 3}, "unknown kind 3"),
        (similarity_matrix, {"kernel": "rbf", "sigma": "2"}, "sigma: '2': expected a number"),
        (similarity_matrix, {"kernel": "rbf", "sigma": True}, "sigma: True: expected a number"),
        (similarity_matrix, {"kernel": "rbf", "sigma": np.nan}, "sigma: nan: "),
        (similarity_matrix, {"tolerance": 5}, "tolerance: 5: must be less than or equal to 1"),
        (similarity_matrix, {"tolerance": "1e-3"}, "tolerance: '1e-3': expected a number"),
        (similarity_matrix, {"workers": 1.5}, "workers: 1.5: expected a whole number; leave it out"),
        (top_k, {"workers": 1.5}, "workers: 1.5: expected a whole number; leave it out"),
        (
            top_k,
            {"database": 5},
            "database: expected representations, found 5: give the number of hits as k=5",
        ),
        (top_k, {"k": "2"}, "k: '2': expected a number"),
        (top_k, {"tolerance": "1e-3"}, "tolerance: '1e-3': expected a number"),
        (top_k, {"groups": "abc"}, "groups: expected a group or None for each of 3 images, found 'abc'"),
        (top_k, {"groups": 3}, "groups: expected a group or None for each of 3 images, found 3"),
    ],
)
def test_arguments_of_another_type_are_refused_by_name(function, options, message):
    with pytest.raises((ConfigError, InputError), match=message):
        function(images(3), **options)


def test_scalars_of_numpy_are_numbers():
    z = images(3)
    found = similarity_matrix(z, kernel="rbf", sigma=np.float32(2), workers=np.int64(1))
    np.testing.assert_array_equal(found, similarity_matrix(z, kernel="rbf", sigma=2))
    np.testing.assert_array_equal(top_k(z, k=np.int32(2)).indices, top_k(z, k=2).indices)


def test_threads_respect_the_quota_of_the_container(tmp_path, monkeypatch):
    threads = set()
    solve_tile = Identity.solve_tile

    def solve(self, *arguments, **options):
        threads.add(threading.get_ident())
        return solve_tile(self, *arguments, **options)

    monkeypatch.setattr(Identity, "solve_tile", solve)
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setattr(machine, "CGROUP_OF_PROCESS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "CGROUP_ROOT", tmp_path)
    similarity_matrix(images(40), matcher="identity")
    assert len(threads) == 1


def test_masked_numbers_are_refused_and_an_empty_mask_is_none():
    z = np.random.default_rng(0).normal(size=(4, 3, 2))
    expected = similarity_matrix(z)
    np.testing.assert_array_equal(similarity_matrix(np.ma.masked_array(z)), expected)
    masked = np.ma.masked_array(z, mask=z > 1)
    with pytest.raises(
        InputError, match=rf"the array has {(z > 1).sum()} masked numbers, .*give a list of arrays"
    ):
        similarity_matrix(masked)
