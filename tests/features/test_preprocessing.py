"""Preprocessing in two steps gives what the whole transform gives, to the last bit."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose, Grayscale, Normalize, PILToTensor, Resize, ToTensor

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.features import preprocessing
from semrsm_dist.features.preprocessing import DRAFT_FACTOR, Preprocessing

OWN = {
    "of tensors": Compose([Resize((32, 32)), ToTensor(), torch.nn.Identity()]),
    "of a function": lambda image: torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1) / 9,
    "of grey": Compose([Resize((32, 32)), Grayscale(), ToTensor(), Normalize([0.5], [0.2])]),
    "of whole numbers": Compose([Resize((32, 32)), PILToTensor()]),
}


def pictures(modes=("RGB", "L", "RGB")):
    rng = np.random.default_rng(0)
    sizes = [(40, 50), (64, 64), (31, 97)]
    return [
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
        for size, mode in zip(sizes, modes, strict=True)
    ]


def batch_of(transform, images):
    preprocessing = pickle.loads(
        pickle.dumps(Preprocessing(transform))
    )  # as a process that reads images has it
    return preprocessing.finish(torch.stack([preprocessing.prepare(image) for image in images]))


@pytest.mark.parametrize("size", [32, (48, 32)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_numbers_and_their_order_in_memory_are_those_of_timms_transform(mode, size):
    transform = create_transform((3, *np.broadcast_to(size, 2).tolist()), is_training=False, crop_mode=mode)
    images = pictures()
    expected = torch.stack([transform(image.convert("RGB")) for image in images])
    found = batch_of(transform, images)
    assert Preprocessing(transform).prepare(images[0]).dtype == torch.uint8
    assert (found.dtype, found.stride()) == (torch.float32, expected.stride())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", OWN)
def test_any_other_transform_is_used_as_it_is(name):
    images, preprocessing = pictures(["RGB"] * 3), Preprocessing(OWN[name])
    expected = torch.stack([OWN[name](image) for image in images])
    found = preprocessing.finish(torch.stack([preprocessing.prepare(image) for image in images]))
    assert torch.equal(found, expected)


LENGTHS = st.integers(1, 4000)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(LENGTHS, LENGTHS).filter(lambda size: max(size) <= 20 * min(size)),
    st.sampled_from([32, (48, 32), (32, 48)]),
    st.sampled_from(["center", "squash", "border"]),
    st.sampled_from([1.0, 0.875, 0.95]),
)
def test_a_draft_is_larger_by_a_factor_than_what_timm_resizes_it_to(size, wanted, mode, share):
    shape = (3, *np.broadcast_to(wanted, 2).tolist())
    transform = create_transform(shape, is_training=False, crop_mode=mode, crop_pct=share)
    resized = transform.transforms[0](Image.new("1", size)).size
    least = Preprocessing(transform).least_size(size)
    rounding = (
        DRAFT_FACTOR if mode == "border" or wanted != 32 else 0
    )  # of a half, which timm rounds in float64
    assert all(abs(few - DRAFT_FACTOR * n) <= rounding for few, n in zip(least, resized, strict=True))


def test_the_least_size_of_an_image_that_nearly_vanishes_is_a_pixel():
    transform = create_transform((3, 32, 32), is_training=False, crop_mode="border")
    assert Preprocessing(transform).least_size((9000, 1)) == (72, 1)


@pytest.mark.parametrize("transform", [ToTensor(), Compose([ToTensor(), Resize(32)]), OWN["of a function"]])
def test_without_a_resize_at_its_beginning_the_least_size_is_unknown(transform):
    with pytest.raises(ConfigError, match=r"begins with .* not with a resize.*model\.jpeg_draft: false"):
        Preprocessing(transform).least_size((100, 100))


@pytest.mark.parametrize(
    ("mode", "size", "message"),
    [
        ("border", (300, 1), "'thin.png' has 300 x 1 pixels, which .* would make 36 x 0: .*squash"),
        ("center", (1, 40_000), "1 x 40000 pixels, which .* would make 36 x 1440000: "),
        ("center", (0, 3), "0 x 3 pixels"),
    ],
)
def test_images_that_are_too_thin_are_refused_by_name(mode, size, message, monkeypatch):
    monkeypatch.setattr(preprocessing, "PILLOW_MAX_BYTES", 3 * 36 * 1_000_000)
    found = Preprocessing(create_transform((3, 32, 32), is_training=False, crop_mode=mode))
    with pytest.raises(InputError, match=message):
        found.prepare(Image.new("RGB", size), "thin.png")
    squashing = Preprocessing(create_transform((3, 32, 32), is_training=False, crop_mode="squash"))
    if all(size):
        assert squashing.prepare(Image.new("RGB", size), "thin.png").shape == (32, 32, 3)
