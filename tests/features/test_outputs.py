"""Outputs of a head: read like a layer, with a meaning that is declared and never guessed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.features.extractor import Extractor
from semrsm_dist.features.models import ModelSpec, _meaning_of_outputs, load_model
from semrsm_dist.features.outputs import OUTPUTS, OutputExtractor, describe_outputs, find_meaning
from semrsm_dist.features.spec import find_shipped

SHIPPED = ModelSpec("test_resnet", "digits")


def pictures(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)) for _ in range(n)]


def test_outputs_are_those_of_the_whole_network_on_the_preprocessed_image():
    extract = OutputExtractor(SHIPPED, (OUTPUTS,), device="cpu", batch_size=2)
    images = pictures(5)
    found = extract(images)[OUTPUTS]
    assert found.shape == (5, 1, 10)
    with torch.inference_mode():
        expected = extract.model.module(torch.stack([extract.model.transform(image) for image in images]))
    np.testing.assert_allclose(found[:, 0], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_the_shipped_networks_say_yes_or_no_to_labels():
    assert find_meaning(load_model(SHIPPED)) == "labels"


def test_a_head_of_a_known_label_set_names_classes():
    assert find_meaning(load_model(ModelSpec("test_resnet", "random"))) == "classes"


class Head(torch.nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes


@pytest.mark.parametrize(
    ("n_outputs", "meaning"), [(1000, "classes"), (21843, "classes"), (512, None), (0, None)]
)
def test_the_outputs_of_an_embedding_are_no_classes(n_outputs, meaning):
    """CLIP's image tower has 512 outputs."""
    assert _meaning_of_outputs(Head(n_outputs), has_names=False) == meaning


def test_outputs_without_a_meaning_are_refused_unless_it_is_given():
    model = dataclasses.replace(load_model(SHIPPED), outputs=None)
    with pytest.raises(ConfigError, match="nothing says that the 10 outputs"):
        find_meaning(model)
    assert find_meaning(model, "classes") == "classes"
    with pytest.raises(ConfigError, match="one of classes, labels"):
        find_meaning(model, "class")


def test_a_model_without_a_head_is_refused():
    model = load_model(ModelSpec("test_resnet", "random"))
    model.module.reset_classifier(0)
    for ask in (describe_outputs, find_meaning):
        with pytest.raises(ConfigError, match="no class head"):
            ask(model)


def test_a_file_that_describes_its_network_is_loaded_as_the_shipped_one(tmp_path: Path):
    """Not as timm would build and feed it: patches, input size, mean and deviation are the file's."""
    for arch in ("test_resnet", "test_vit"):
        path = tmp_path / f"{arch}.safetensors"
        shutil.copy(find_shipped(arch), path)
        shipped, own = load_model(ModelSpec(arch, "digits")), load_model(ModelSpec(arch, str(path)))
        assert (own.data_config, own.outputs, own.classes) == (shipped.data_config, "labels", shipped.classes)
        assert own.weights_sha256 == shipped.weights_sha256
        image = pictures(1)
        layers = (Extractor(spec, ("*",), device="cpu")(image) for spec in (own.spec, shipped.spec))
        for one, other in zip(*(z.values() for z in layers), strict=True):
            assert (one == other).all()


def test_a_file_that_describes_another_network_is_refused(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    shutil.copy(find_shipped("test_vit"), path)
    with pytest.raises(InputError, match="weights of 'test_vit', not of 'test_resnet'"):
        load_model(ModelSpec("test_resnet", str(path)))


def test_a_file_without_a_description_is_loaded_as_timm_would(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_file(load_file(find_shipped("test_resnet")), path, {"architecture": "anything"})
    model = load_model(ModelSpec("test_resnet", str(path)))
    assert model.outputs is None and model.n_classes == 10
    assert model.data_config["mean"] != load_model(SHIPPED).data_config["mean"]
