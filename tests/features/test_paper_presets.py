"""Presets of the paper's models and data sets: right sizes, weights from files, advice where something is missing."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from semrsm_dist.config.schema import RunConfig, load_config
from semrsm_dist.errors import InputError
from semrsm_dist.features import registry
from semrsm_dist.features.layers import LayerReader, resolve_layers
from semrsm_dist.features.models import ModelSpec, load_model
from semrsm_dist.pipeline.inputs import model_spec

FOLDER = Path(__file__).parents[2] / "jobs" / "paper"
BLOCKS = "vision.encoder.layers"
SIZES = {  # (S, C) of each layer, from the architectures as published, at the preset's input size
    "resnet18": {"layer2": (28 * 28, 128), "layer3": (14 * 14, 256), "layer4": (7 * 7, 512)},
    "resnet50": {"layer2": (28 * 28, 512), "layer3": (14 * 14, 1024), "layer4": (7 * 7, 2048)},
    "resnet101": {"layer2": (28 * 28, 512), "layer3": (14 * 14, 1024), "layer4": (7 * 7, 2048)},
    "convnextv2_base": {"stages.1": (28 * 28, 256), "stages.2": (14 * 14, 512), "stages.3": (7 * 7, 1024)},
    "vit_base_patch16": {f"blocks.{k}": (14 * 14, 768) for k in (2, 5, 8, 11)},
    "vit_large_patch32": {f"blocks.{k}": (12 * 12, 1024) for k in (5, 11, 17, 23)},
    "dinov2_giant": {f"blocks.{k}": (37 * 37, 1536) for k in (19, 39)},
    "clip_vit_base_patch16": {f"blocks.{k}": (14 * 14, 768) for k in (5, 8, 11)},
    "bit_resnet50": {"stages.2": (28 * 28, 1024), "stages.3": (14 * 14, 2048)},
    "sam_vit_base": {"neck": (64 * 64, 256)},
    "clipseg": {f"{BLOCKS}.{k}": (22 * 22, 768) for k in (3, 6, 9, 11)},
    "imagenet": {"layer3": (14 * 14, 256), "layer4": (7 * 7, 512)},
    "egoobjects": {"layer3": (14 * 14, 1024), "layer4": (7 * 7, 2048)},
    "cityscapes": {"layer3": (16 * 32, 1024), "layer4": (8 * 16, 2048)},
    "tiny-imagenet": {
        "maxpool": (16 * 16, 64),
        **{f"layer{k}.{block}": ((32 >> k) ** 2, 32 << k) for k in (1, 2, 3, 4) for block in (0, 1)},
    },
}
STRIDES = {  # pixels between neighbouring positions of each layer; smallest image of a few of these
    "resnet18": {"layer2": 8, "layer3": 16, "layer4": 32},
    "resnet50": {"layer2": 8, "layer3": 16, "layer4": 32},
    "resnet101": {"layer2": 8, "layer3": 16, "layer4": 32},
    "convnextv2_base": {"stages.1": 8, "stages.2": 16, "stages.3": 32},
    "vit_base_patch16": {f"blocks.{k}": 16 for k in (2, 5, 8, 11)},
    "clip_vit_base_patch16": {f"blocks.{k}": 16 for k in (5, 8, 11)},
    "bit_resnet50": {"stages.2": 16, "stages.3": 32},
    "sam_vit_base": {"neck": 16},
    "clipseg": {f"{BLOCKS}.{k}": 16 for k in (3, 6, 9, 11)},
}


def preset(name: str) -> RunConfig:
    return load_config(FOLDER / f"{name}.yaml")


def spec(config: RunConfig, **changes) -> ModelSpec:
    assert config.model is not None
    return model_spec(config.model.model_copy(update=changes))


def test_there_is_a_preset_for_each_model_and_data_set_of_the_paper():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(SIZES)
    configs = [preset(name) for name in SIZES]
    assert {config.data.source for config in configs} == {
        "imagenet",
        "egoobjects",
        "cityscapes",
        "tiny-imagenet",
    }
    assert len({config.run for config in configs}) == len(configs)


@pytest.mark.parametrize("name", SIZES)
def test_its_layers_have_the_sizes_of_the_paper(monkeypatch, name):
    """At the preset's own input size, on torch's device without numbers: that of the largest takes 4.5 GB otherwise."""
    monkeypatch.setattr("semrsm_dist.features.checkpoints.hash_state", lambda _module: "")
    config = preset(name)
    with torch.device("meta"):
        model = load_model(spec(config, weights="random"))
        layers = resolve_layers(model, config.model.layers)
    assert {layer.name: (layer.n_tokens, layer.n_channels) for layer in layers} == SIZES[name]


@pytest.mark.parametrize("name", STRIDES)
def test_random_weights_give_these_channels_for_a_small_image_too(name):
    """All but the two largest models."""
    config, side = preset(name), 32
    model = load_model(spec(config, weights="random", input_size=(side, side)))
    layers = resolve_layers(model, config.model.layers)
    found = LayerReader(model, layers)(torch.randn(2, 3, side, side))
    assert {layer: z.shape for layer, z in found.items()} == {
        layer: (2, (side // stride) ** 2, SIZES[name][layer][1]) for layer, stride in STRIDES[name].items()
    }
    assert all(torch.isfinite(z).all() for z in found.values())


@pytest.mark.parametrize("name", SIZES)
def test_a_worker_has_room_for_its_tiles(name):
    matching = preset(name).matching
    matcher = matching.make_matcher()
    for n_tokens, n_channels in SIZES[name].values():
        workspace = matcher.workspace_bytes(n_tokens, n_channels)
        panels = 2 * matcher.panel_bytes(8, n_tokens, n_channels)
        assert workspace + 2 * panels < matching.cpu_memory


# --- weights -------------------------------------------------------------------------------------------


@pytest.fixture
def _no_network(monkeypatch, tmp_path):
    def nowhere(*_args, **_kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # nothing was fetched before


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("name", SIZES)
def test_without_a_network_it_says_which_file_to_get_and_where_to_name_it(name):
    config = preset(name)
    repository = registry.pretrained_cfg(config.model.name)["hf_hub_id"]
    name, _, revision = repository.partition("@")
    url = f"https://huggingface.co/{name}/resolve/{revision or 'main'}/model.safetensors"
    with pytest.raises(
        InputError, match=rf"Get {url} .*path of that file as weights \(--set model\.weights=PATH\)"
    ):
        load_model(spec(config))


def test_weights_from_a_file_are_known_by_their_hash(tmp_path):
    config = preset("resnet18")
    source = load_model(spec(config, weights="random", seed=4, input_size=(32, 32)))
    state = {name: tensor.contiguous() for name, tensor in source.module.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    model = load_model(spec(config, weights=str(tmp_path / "model.safetensors")))
    assert model.weights_sha256 == source.weights_sha256
    assert model.input_size == (224, 224)


def bit_archive(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The tensors of a timm BiT under the names and axes of the original JAX archives."""

    def conv(weight: torch.Tensor) -> np.ndarray:
        return weight.numpy().transpose(2, 3, 1, 0)

    out = {"root_block/standardized_conv2d/kernel": conv(model.stem.conv.weight)}
    out |= {"head/conv2d/kernel": conv(model.head.fc.weight), "head/conv2d/bias": model.head.fc.bias.numpy()}
    norms = {"": model.norm}
    for i, stage in enumerate(model.stages, start=1):
        for j, block in enumerate(stage.blocks, start=1):
            unit = f"block{i}/unit{j:02d}"
            for letter, k in (("a", 1), ("b", 2), ("c", 3)):
                weight = block.get_submodule(f"conv{k}").weight
                out[f"{unit}/{letter}/standardized_conv2d/kernel"] = conv(weight)
                norms[f"{unit}/{letter}/"] = block.get_submodule(f"norm{k}")
            if block.downsample is not None:
                out[f"{unit}/a/proj/standardized_conv2d/kernel"] = conv(block.downsample.conv.weight)
    for place, norm in norms.items():
        out |= {
            f"{place}group_norm/gamma": norm.weight.numpy(),
            f"{place}group_norm/beta": norm.bias.numpy(),
        }
    return {f"resnet/{name}": array for name, array in out.items()}


def test_the_original_archive_of_bit_gives_the_same_weights(tmp_path):
    config = preset("bit_resnet50")
    source = load_model(spec(config, weights="random", seed=4, input_size=(32, 32)))
    archive = bit_archive(source.module)
    np.savez(tmp_path / "BiT-M-R50x1-ILSVRC2012.npz", **archive)
    model = load_model(
        spec(config, weights=str(tmp_path / "BiT-M-R50x1-ILSVRC2012.npz"), input_size=(32, 32))
    )
    assert model.weights_sha256 == source.weights_sha256
    del archive["resnet/block3/unit02/b/standardized_conv2d/kernel"]
    np.savez(tmp_path / "damaged.npz", **archive)
    with pytest.raises(InputError, match=r"damaged\.npz: not an archive of resnetv2_50x1_bit"):
        load_model(spec(config, weights=str(tmp_path / "damaged.npz"), input_size=(32, 32)))


# --- data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_where_its_data_are_not_there_it_says_what_to_put_where(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    config = preset(name)
    with pytest.raises(InputError, match=rf"{tmp_path / config.data.path}.*--set data\.path=FOLDER"):
        config.data.entries()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("source", ["imagenet", "egoobjects", "cityscapes", "tiny-imagenet"])
def test_any_model_takes_any_data_set(name, source):
    data = f"data={{source: {source}, path: x, sample: 10}}"
    config = load_config(FOLDER / f"{name}.yaml", [data, "run=runs/other"])
    assert (config.data.source, config.data.sample) == (source, 10)
