"""Layers of many architectures against an independent reading of the same network."""

from __future__ import annotations

import re

import pytest
import torch
from timm.models.hrnet import HighResolutionNet
from torch import Tensor, nn

from semrsm_dist.errors import ConfigError
from semrsm_dist.features.layers import LayerReader, class_token_layers, describe_layers, resolve_layers
from semrsm_dist.features.models import LoadedModel, ModelSpec, load_model
from semrsm_dist.features.probing import LayerInfo


def load(name: str, size: int | tuple[int, int] | None = None) -> LoadedModel:
    return load_model(ModelSpec(name, "random", size, seed=3))


def images(model: LoadedModel, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, *model.input_size, generator=generator)


def read(model: LoadedModel, *patterns: str, n: int = 2) -> dict[str, Tensor]:
    return LayerReader(model, resolve_layers(model, patterns))(images(model, n))


def hook_once(module: nn.Module, name: str, batch: Tensor) -> Tensor:
    """The plainest possible reading of one module: a pass of its own, the output copied."""
    kept: list[Tensor] = []
    handle = module.get_submodule(name).register_forward_hook(lambda _m, _i, out: kept.append(out.clone()))
    with torch.inference_mode():
        module.forward_features(batch)
    handle.remove()
    return kept[0]


with_hrnet_stages = pytest.mark.skipif(
    not hasattr(HighResolutionNet, "forward_intermediates"), reason="timm gives HRNet no stages before 1.0.31"
)

ARCHITECTURES = [  # name, input size, stage, (H, W, C) of the stage
    ("test_resnet", 96, "layer3", (6, 6, 192)),
    ("test_vit", 96, "blocks.2", (6, 6, 64)),
    ("test_vit2", None, "blocks.7", (10, 10, 64)),
    ("test_vit3", 96, "blocks.8", (6, 6, 96)),
    ("test_convnext", (64, 96), "stages.1", (8, 12, 32)),
    ("test_efficientnet", 96, "blocks.1", (24, 24, 24)),
    ("test_byobnet", 96, "stages.0", (24, 24, 32)),
    ("test_mambaout", 96, "stages.1", (12, 12, 32)),
    ("resnet18", 64, "layer2", (8, 8, 128)),
    ("mobilenetv4_conv_small_050", 64, "blocks.2", (4, 4, 48)),
    ("maxvit_pico_rw_256", 64, "stages.1", (8, 8, 64)),
    ("swin_tiny_patch4_window7_224", 56, "layers.1", (7, 7, 192)),
    ("cait_xxs24_224", 64, "blocks.3", (4, 4, 192)),
    ("deit_tiny_distilled_patch16_224", 64, "blocks.3", (4, 4, 192)),
    ("vit_small_patch14_reg4_dinov2", 56, "blocks.5", (4, 4, 384)),
    ("eva02_tiny_patch14_224", 56, "blocks.5", (4, 4, 192)),
    pytest.param("hrnet_w18_small", 64, "stage3", (4, 4, 512), marks=with_hrnet_stages),
]


@pytest.mark.parametrize(("name", "size", "stage", "shape"), ARCHITECTURES, ids=str)
def test_stage_equals_the_network_truncated_there(name, size, stage, shape):
    model = load(name, size)
    height, width, channels = shape
    (info,) = resolve_layers(model, [stage])
    assert info == LayerInfo(stage, height * width, channels, (height, width), "stage")
    z = read(model, stage)[stage]
    assert z.is_contiguous()
    index = [entry["module"] for entry in model.module.feature_info].index(stage)
    with torch.inference_mode():  # the same stage, as the end of a pass that stops there
        (expected,) = model.module.forward_intermediates(
            images(model), indices=[index], intermediates_only=True, stop_early=True
        )
    positions = [expected[:, :, row, column] for row in range(height) for column in range(width)]
    torch.testing.assert_close(z, torch.stack(positions, dim=1))


@pytest.mark.parametrize(
    ("name", "size", "norm", "n_prefix"),
    [
        ("test_vit", 96, "norm", 1),
        ("deit_tiny_distilled_patch16_224", 64, "norm", 2),
        ("vit_small_patch14_reg4_dinov2", 56, "norm", 5),
        ("cait_xxs24_224", 64, "norm", 1),
    ],
)
def test_prefix_tokens_are_dropped_by_the_models_own_count(name, size, norm, n_prefix):
    model = load(name, size)
    assert model.n_prefix_tokens == n_prefix
    with torch.inference_mode():
        tokens = model.module.forward_features(images(model))
    z = read(model, norm)[norm]
    assert z.shape[1] == tokens.shape[1] - n_prefix
    torch.testing.assert_close(z, tokens[:, n_prefix:])


def test_a_block_without_class_token_keeps_all_its_tokens():
    model = load("cait_xxs24_224", 64)  # its class token joins only after the last of these blocks
    name = "blocks.3.mlp"
    expected = hook_once(model.module, name, images(model))
    assert expected.shape[1] == 16
    torch.testing.assert_close(read(model, name)[name], expected)


def test_an_output_overwritten_in_place_is_read_before_that():
    class Overwriting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.zero_()

    model = load("test_resnet", 64)
    model.module.act1 = Overwriting()  # in place on the output of bn1
    z = read(model, "bn1")["bn1"]
    assert float(z.abs().max()) > 0.1


@pytest.mark.parametrize("name", ["layer1.0.bn1", "conv1", "layer4.0.conv2", "layer3"])
def test_modules_in_place_activations_and_all(name):
    model = load("test_resnet", (64, 96))
    expected = hook_once(model.module, name, images(model))
    got = read(model, name)[name]
    torch.testing.assert_close(got, expected.permute(0, 2, 3, 1).reshape(got.shape))


def test_channels_last_modules_inside_a_channels_first_network():
    model = load("test_convnext", (64, 96))
    name = "stages.0.blocks.0.norm"
    expected = hook_once(model.module, name, images(model))
    assert expected.shape == (2, 16, 24, 24)  # (B, H, W, C): a square, so that sizes alone mislead
    (info,) = resolve_layers(model, [name])
    assert (info.grid, info.n_channels, info.layout) == ((16, 24), 24, "nhwc")
    torch.testing.assert_close(read(model, name)[name], expected.reshape(2, 16 * 24, 24))


def test_as_many_channels_as_rows_and_columns_is_no_riddle():
    model = load("test_resnet", 128)
    name = "layer1.0.conv1"
    expected = hook_once(model.module, name, images(model))
    assert expected.shape == (2, 32, 32, 32)
    torch.testing.assert_close(read(model, name)[name], expected.flatten(2).transpose(1, 2))


def test_swin_blocks_are_channels_last_and_its_windows_are_refused():
    model = load("swin_tiny_patch4_window7_224", 112)
    name = "layers.0.blocks.1"
    expected = hook_once(model.module, name, images(model))
    torch.testing.assert_close(read(model, name)[name], expected.flatten(1, 2))
    with pytest.raises(ConfigError, match=r"layers\.0\.blocks\.1\.attn.*windows"):
        resolve_layers(model, ["layers.0.blocks.1.attn"])


@pytest.mark.parametrize(
    ("name", "size", "refused", "readable"),
    [
        # Its last stage is one window: heads and a table of 64 x 64 pairs look like the first stage's map.
        ("swinv2_tiny_window8_256", None, "layers.3.blocks.0.attn.softmax", "layers.3.blocks.0.mlp"),
        # As many positions as channels: what mixes positions hands out channels first.
        ("mixer_s16_224", (256, 512), "blocks.0.mlp_tokens", "blocks.0.mlp_channels"),
        ("resmlp_12_224", (256, 384), "blocks.0.linear_tokens", "blocks.0.mlp_channels"),
    ],
)
def test_what_looks_like_positions_at_one_size_only_is_refused(name, size, refused, readable):
    model = load_model(ModelSpec(name, "random", size))
    assert resolve_layers(model, [readable])[0].name == readable
    with pytest.raises(ConfigError, match=re.escape(refused)):
        resolve_layers(model, [refused])


def test_a_network_that_fails_at_another_size_can_be_read_at_its_own():
    model = load_model(ModelSpec("mvitv2_tiny", "random"))
    (layer,) = resolve_layers(model, ["stages.0.blocks.0.norm1"])
    assert (layer.n_tokens, layer.n_channels) == (56 * 56, 96)
    with pytest.raises(ConfigError, match="did you mean"):
        resolve_layers(model, ["stages.0.blocks.0.norm3"])


def test_sam_blocks_stay_on_their_grid():
    model = load("samvit_base_patch16", 64)
    torch.testing.assert_close(
        read(model, "blocks.1.norm1")["blocks.1.norm1"],
        hook_once(model.module, "blocks.1.norm1", images(model)).flatten(1, 2),
    )
    neck = read(model, "neck")["neck"]
    with torch.inference_mode():
        expected = model.module.forward_features(images(model))
    torch.testing.assert_close(neck, expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("test_vit", "blocks.0.attn.q_norm", "not channels, rows and columns"),  # (B, heads, T, d)
        ("test_vit", "head", "does not run before the classifier"),
        ("test_efficientnet", "blocks.3.0.se.conv_reduce", "not channels, rows and columns"),  # pooled
        pytest.param(
            "hrnet_w18_small", "stage2", None, marks=with_hrnet_stages
        ),  # a stage, though its module returns a list
    ],
)
def test_what_has_no_vector_per_position_is_refused_by_name(name, layer, reason):
    model = load(name, 64)
    if reason is None:
        assert resolve_layers(model, [layer])[0].kind == "stage"
        return
    if layer not in dict(model.module.named_modules()):
        pytest.fail(f"{layer} is no longer in {name}")
    with pytest.raises(ConfigError, match=re.escape(layer)) as caught:
        resolve_layers(model, [layer])
    assert reason in str(caught.value)


def test_what_is_the_same_for_all_images_is_refused():
    model = load("xcit_nano_12_p16_224", 64)
    with pytest.raises(ConfigError, match="the first axis is not the image"):
        resolve_layers(model, ["pos_embed.token_projection"])


def test_a_module_that_runs_twice_is_refused():
    model = load("test_resnet", 64)
    model.module.layer2[0].act1 = model.module.layer1[0].act1
    with pytest.raises(ConfigError, match="runs 2 times"):
        resolve_layers(model, ["layer1.0.act1"])


def test_several_layers_take_one_pass_and_containers_a_second():
    model = load("test_efficientnet", 64)
    passes: list[int] = []
    model.module.conv_stem.register_forward_hook(lambda *_: passes.append(1))
    for patterns, expected in [
        (["blocks.*"], 1),
        (["blocks.1", "blocks.2.0"], 1),
        (["blocks.1", "conv_head"], 1),
        (["blocks.1", "blocks"], 2),
    ]:
        reader = LayerReader(model, resolve_layers(model, patterns))
        passes.clear()
        reader(images(model))
        assert len(passes) == expected, patterns


@pytest.mark.parametrize("patterns", [["layer2", "bn1"], ["missing_shape"]])
def test_hooks_are_gone_afterwards_even_after_an_error(patterns):
    model = load("test_resnet", 64)
    layers = describe_layers(model, modules=True)
    if patterns == ["missing_shape"]:
        with pytest.raises(RuntimeError):
            LayerReader(model, layers)(torch.zeros(1, 4, 64, 64))
    else:
        read(model, *patterns)
    assert all(not module._forward_hooks for module in model.module.modules())


def test_patterns_follow_network_order_without_duplicates():
    model = load("test_resnet", 64)

    def names(*patterns: str) -> list[str]:
        return [layer.name for layer in resolve_layers(model, patterns)]

    assert names("layer3", "layer*", "layer1") == ["layer1", "layer2", "layer3", "layer4"]
    assert names("layer2", "bn1", "layer1.0.conv2", "layer1") == ["bn1", "layer1.0.conv2", "layer1", "layer2"]
    assert names("*") == ["act1", "layer1", "layer2", "layer3", "layer4"]  # globs prefer stages
    assert names("layer1.*.conv?") == ["layer1.0.conv1", "layer1.0.conv2"]


def test_unknown_layers_name_their_neighbours_and_the_command():
    model = load("test_resnet", 64)
    with pytest.raises(
        ConfigError, match=r"'layre3'; did you mean 'layer3'.*layer1, layer2.*semrsm layers test_resnet"
    ):
        resolve_layers(model, ["layer1", "layre3"])
    with pytest.raises(ConfigError, match="no layers were requested"):
        resolve_layers(model, [])


def test_described_modules_are_what_the_reader_returns():
    model = load("test_convnext", 64)
    layers = describe_layers(model, modules=True)
    assert {layer.kind for layer in layers} == {"stage", "module"}
    features = LayerReader(model, layers)(images(model, 3))
    assert len(features) == len(layers) > 20
    for layer in layers:
        assert features[layer.name].shape == (3, layer.n_tokens, layer.n_channels)
        assert layer.grid is not None
        assert layer.grid[0] * layer.grid[1] == layer.n_tokens


def test_images_of_another_size_than_described_are_refused():
    model = load("test_resnet", 64)
    reader = LayerReader(model, resolve_layers(model, ["layer2"]))
    with pytest.raises(ConfigError, match=r"layer2.*\(2, 144, 48\) instead of \(2, 64, 48\)"):
        reader(torch.zeros(2, 3, 96, 96))


def test_a_class_token_is_a_layer_of_one_token():
    model = load("test_vit", 64)
    patterns = ("blocks.*", "blocks.*@class", "norm@class")
    layers = resolve_layers(model, patterns)
    names = [layer.name for layer in layers]
    stages = names[: len(names) // 2]
    assert names == [
        *stages,
        *(f"{name}@class" for name in stages),
        "norm@class",
    ]  # globs prefer stages here too
    features = read(model, *patterns)
    for layer in layers[len(stages) :]:
        whole = hook_once(model.module, layer.module, images(model))
        torch.testing.assert_close(features[layer.name], whole[:, :1])
        assert (layer.n_tokens, layer.grid) == (1, None)
    whole = hook_once(model.module, stages[0], images(model))
    torch.testing.assert_close(features[stages[0]], whole[:, 1:])


def test_where_there_is_no_class_token_it_is_refused():
    vit = load("test_vit", 64)
    with pytest.raises(ConfigError, match=r"'block.1' of 'test_vit' has a class token; did you mean 'blocks"):
        resolve_layers(vit, ["block.1@class"])
    resnet = load("test_resnet", 64)
    assert class_token_layers(resnet) == []
    with pytest.raises(ConfigError, match="the model has none"):
        resolve_layers(resnet, ["layer1@class"])
