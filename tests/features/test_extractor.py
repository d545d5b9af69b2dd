"""The extractor: batches, precision, memory of the GPU, and numbers that are refused."""

from __future__ import annotations

import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from semrsm_dist.errors import ConfigError, InputError, WorkerLostError, WorkError
from semrsm_dist.features.extractor import Extractor, NonFiniteFeaturesError
from semrsm_dist.features.models import ModelSpec
from semrsm_dist.features.spec import resolve_precision

SPEC = ModelSpec("test_resnet", "random", 64, seed=2)


def pictures(n: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)) for _ in range(n)]


def extractor(batch_size: int = 4, layers: tuple[str, ...] = ("layer2", "layer3"), **options) -> Extractor:
    return Extractor(SPEC, layers, device="cpu", batch_size=batch_size, **options)


def test_features_are_those_of_the_network_on_the_preprocessed_image():
    extract = extractor()
    images = pictures(6)
    features = extract(images)
    assert list(features) == ["layer2", "layer3"]
    network = extract.model.module
    for i, image in enumerate(images):
        with torch.inference_mode():
            x = network.maxpool(
                network.act1(network.bn1(network.conv1(extract.model.transform(image)[None])))
            )
            layer2 = network.layer2(network.layer1(x))
            layer3 = network.layer3(layer2)
        for name, expected in (("layer2", layer2), ("layer3", layer3)):
            z = features[name]
            assert z.dtype == np.float32
            assert z.flags.c_contiguous
            np.testing.assert_allclose(z[i], expected[0].flatten(1).T.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_an_image_does_not_depend_on_batch_size_or_neighbours(batch_size):
    images = pictures(7)
    expected = extractor(batch_size=4)(images)
    features = extractor(batch_size=batch_size)(images[::-1])
    for name, z in features.items():
        np.testing.assert_allclose(z[::-1], expected[name], rtol=1e-4, atol=1e-5)


def test_the_same_call_gives_the_same_bits_in_any_thread():
    images = pictures(8)
    expected = extractor()(images)
    with ThreadPoolExecutor(2) as pool:
        for features in pool.map(lambda _: extractor()(images), range(2)):
            for name, z in features.items():
                np.testing.assert_array_equal(z, expected[name])


def test_no_images_give_empty_arrays_of_the_right_shape():
    assert {name: z.shape for name, z in extractor()([]).items()} == {
        "layer2": (0, 64, 48),
        "layer3": (0, 16, 192),
    }


def test_greyscale_images_are_taken_as_rgb():
    grey = pictures(1)[0].convert("L")
    np.testing.assert_array_equal(extractor()([grey])["layer3"], extractor()([grey.convert("RGB")])["layer3"])


FULL = torch.OutOfMemoryError("CUDA out of memory")


def limit_memory(extract: Extractor, at_most: int, error: Exception = FULL) -> list[int]:
    """Let batches of more than `at_most` images fail as a full GPU does; return the sizes tried."""
    tried: list[int] = []

    def limited(_module, inputs):
        tried.append(len(inputs[0]))
        if len(inputs[0]) > at_most:
            raise error

    extract.model.module.conv1.register_forward_pre_hook(limited)
    return tried


def test_a_full_gpu_halves_the_batch_for_good_and_loses_no_image(caplog):
    images = pictures(11)
    expected = extractor()(images)
    extract = extractor(batch_size=8)
    tried = limit_memory(extract, 2)
    with caplog.at_level(logging.WARNING):
        features = extract(images)
    assert tried == [8, 4, 2, 2, 2, 2, 2, 1]
    assert extract.batch_size == 2
    assert "batches of 4" in caplog.text
    for name, z in features.items():
        np.testing.assert_allclose(z, expected[name], rtol=1e-4, atol=1e-5)
    tried.clear()
    extract(images[:4])
    assert tried == [2, 2]


def test_a_gpu_too_small_for_one_image_says_what_to_change():
    extract = extractor(batch_size=4)
    tried = limit_memory(extract, 0)
    with pytest.raises(
        WorkError, match=r"one image of 64 x 64 through 'test_resnet' in float32; .*input_size"
    ):
        extract(pictures(4))
    assert tried == [4, 2, 1]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_what_libraries_say_of_a_full_gpu_halves_the_batch_too(error):
    extract = extractor(batch_size=4)
    assert limit_memory(extract, 2, error) == []
    extract(pictures(4))
    assert extract.batch_size == 2


MORE = "\nCUDA kernel errors might be asynchronously reported at some other API call"


def accelerator_error(text):
    """Return the error that torch raises; versions before it had one of its own raise RuntimeError."""
    return getattr(torch, "AcceleratorError", RuntimeError)(text + MORE)


@pytest.mark.parametrize(
    "error",
    [
        accelerator_error("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered" + MORE),
        RuntimeError("CUDA driver error: device has been lost"),
    ],
)
def test_a_gpu_that_fails_is_a_lost_worker(error):
    extract = extractor()
    limit_memory(extract, 0, error)
    with pytest.raises(
        WorkerLostError,
        match=rf"failed \({str(error).splitlines()[0]}\); no features .* extracts them elsewhere.*dmesg",
    ):
        extract(pictures(2))


@pytest.mark.parametrize("is_broken", [True, False])
def test_an_error_of_another_name_is_one_of_the_gpu_if_that_no_longer_answers(monkeypatch, is_broken):
    def synchronize(_device):
        if is_broken:
            raise accelerator_error("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    extract, error = extractor(), RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")
    limit_memory(extract, 0, error)
    extract.device = torch.device("cuda:0")
    with pytest.raises(WorkerLostError if is_broken else RuntimeError, match="CUDNN_STATUS_EXECUTION_FAILED"):
        extract(pictures(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_images_that_give_nan_or_infinity_are_named(value):
    extract = extractor(batch_size=2)
    transform = extract.model.transform
    broken = pictures(1, seed=9)[0]

    def spoil(image):
        return transform(image) + (value if np.array_equal(np.asarray(image), np.asarray(broken)) else 0)

    object.__setattr__(extract.model, "transform", spoil)
    images = pictures(5)
    images[1] = images[4] = broken
    with pytest.raises(
        NonFiniteFeaturesError, match=r"'layer2' .* 2 of the given images.*positions 1, 4"
    ) as caught:
        extract(images)
    assert isinstance(caught.value, InputError)
    assert (caught.value.layer, caught.value.indices) == ("layer2", (1, 4))
    copy = pickle.loads(pickle.dumps(caught.value))  # it crosses process borders
    assert (copy.indices, str(copy)) == (caught.value.indices, str(caught.value))


def test_an_overflow_of_float16_names_the_remedy():
    extract = extractor(precision="bfloat16")
    with torch.no_grad():
        for parameter in extract.model.module.layer2.parameters():
            parameter.mul_(1e30)
    with pytest.raises(NonFiniteFeaturesError, match="set precision: float32"):
        extract(pictures(1))


def test_half_precision_is_near_and_handed_out_as_float32():
    images = pictures(3)
    full, half = extractor()(images), extractor(precision="bfloat16")(images)
    for name in full:
        assert half[name].dtype == np.float32
        difference = np.linalg.norm(half[name] - full[name]) / np.linalg.norm(full[name])
        assert 1e-5 < difference < 0.05


def test_precision_auto_follows_the_gpu():
    assert [resolve_precision("auto", gpu=gpu) for gpu in (False, True)] == ["float32", "float16"]
    assert resolve_precision("bfloat16", gpu=False) == "bfloat16"
    with pytest.raises(ConfigError, match=r"'flaot16'; did you mean .*'float16'"):
        resolve_precision("flaot16", gpu=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"device": "gpu"}, "auto, cpu or cuda"),
        ({"device": "cuda:"}, "auto, cpu or cuda"),
        ({"device": "cuda:99"}, "torch sees"),
        ({"precision": "int8"}, "int8"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Extractor(SPEC, ["layer1"], **{"device": "cpu", **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        Extractor(SPEC, ["layer1"], device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-4), ("float16", 1e-2), ("bfloat16", 0.05)])
def test_the_gpu_agrees_with_the_cpu(precision, bound):
    images = pictures(5)
    expected = extractor()(images)
    extract = Extractor(SPEC, ["layer2", "layer3"], precision=precision, device="cuda", batch_size=2)
    features = extract(images)
    for name, z in features.items():
        assert np.linalg.norm(z - expected[name]) < bound * np.linalg.norm(expected[name])
    again = extract(images)
    assert all(np.array_equal(features[name], again[name]) for name in features)
