"""Preprocessing in two steps gives what the whole transform gives, to the last bit."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose, Grayscale, Normalize, PILToTensor, Resize, ToTensor

from semrsm_dist.features.preprocessing import Preprocessing

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
