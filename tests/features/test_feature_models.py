"""Models by name, and weights that are loaded whole or refused."""

from __future__ import annotations

import json
import logging
import os
import pickle
import socket
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.layers import resample_abs_pos_embed

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.features.checkpoints import hash_state
from semrsm_dist.features.models import ModelSpec, load_model
from semrsm_dist.features.registry import list_models
from semrsm_dist.features.spec import shipped_architectures


def random_model(name: str, seed: int = 5, size: int | tuple[int, int] | None = None):
    return load_model(ModelSpec(name, "random", size, seed))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


# names


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet_18", "random", r"unknown model 'resnet_18'; did you mean 'resnet18'"),
        ("resnet81.tv_in1k", "pretrained", r"unknown model.*did you mean 'resnet\d+\.tv_in1k'"),
        ("resnet18.tv_in1", "random", r"no pretrained weights tagged 'tv_in1'.*resnet18\.tv_in1k"),
        (
            "resnet18",
            "pretrained",
            r"does not say which pretrained weights.*resnet18\.a1_in1k.*resnet18\.tv_in1k",
        ),
        ("vit_tiny_patch16_224_in21k", "random", r"unknown model"),  # an alias that timm would map silently
        ("vit_base_patch16_xp_224.untrained", "pretrained", r"has no weights that timm could download"),
        ("", "random", "unknown model"),
        ("dinov2_vitb14", "pretrained", "did you mean 'vit_base_patch14_dinov2' or"),
        ("vit_b_16", "random", "did you mean 'vit_base_patch16_224'"),
        ("clip-ViT-B32", "random", "did you mean 'vit_base_patch32_clip_224'"),
        ("timm/resnet18.a1_in1k", "pretrained", "write hf-hub:timm/resnet18.a1_in1k"),
        ("hf-hub:resnet18", "pretrained", "expected hf-hub:owner/name"),
        ("hf-hub:", "random", "expected hf-hub:owner/name"),
    ],
)
def test_names_that_do_not_say_which_model_are_refused(name, weights, message):
    with pytest.raises(ConfigError, match=message):
        load_model(ModelSpec(name, weights))


def test_a_misspelt_kind_of_weights_is_not_taken_for_random_ones():
    with pytest.raises(InputError, match=r"no file /.*/pretraind; .*did you mean 'pretrained'"):
        load_model(ModelSpec("test_resnet", "pretraind"))


def test_no_network_is_reported_at_once_with_the_file_to_fetch(monkeypatch, tmp_path):
    def nowhere(*_args, **_kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    url = "https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    with pytest.raises(InputError, match=rf"cannot be downloaded.*{url}.*path of that file as weights"):
        load_model(ModelSpec("test_resnet.r160_in1k"))
    url = "https://huggingface.co/someone/some-model/resolve/v2/config.json"
    with pytest.raises(InputError, match=rf"config\.json of .* cannot be downloaded from {url}"):
        load_model(ModelSpec("hf-hub:someone/some-model@v2"))


FROM_HUB = """
import sys, torch, timm
from semrsm_dist.features.models import ModelSpec, load_model
from semrsm_dist.features.registry import split_name
model = load_model(ModelSpec("hf-hub:someone/some-model"))
assert split_name(model.spec.name) == ("test_vit", ""), split_name(model.spec.name)
assert (model.architecture, model.input_size, model.n_classes) == ("test_vit", (64, 64), 3)
torch.save([model.weights_sha256, list(model.data_config["mean"])], sys.argv[1])
wide = load_model(ModelSpec("hf-hub:someone/some-model", input_size=(32, 128)))
torch.save(wide.module.pos_embed, sys.argv[2])
"""


def test_a_model_of_the_hub_has_the_weights_and_preprocessing_of_its_repository(tmp_path):
    source = timm.create_model("test_vit", num_classes=3, img_size=64).eval()
    snapshot = tmp_path / "models--someone--some-model" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abc")
    safetensors.torch.save_file(source.state_dict(), snapshot / "model.safetensors")
    cfg = {"input_size": [3, 64, 64], "fixed_input_size": True, "mean": [0.1, 0.2, 0.3], "num_classes": 3}
    cfg |= {"classifier": "head", "first_conv": "patch_embed.proj"}
    config = {"architecture": "test_vit", "num_classes": 3, "pretrained_cfg": cfg}
    (snapshot / "config.json").write_text(json.dumps(config))
    files = [str(tmp_path / "facts.pt"), str(tmp_path / "wide.pt")]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", FROM_HUB, *files], check=True, env=environment)
    assert torch.load(files[0]) == [hash_state(source), [0.1, 0.2, 0.3]]
    # As many patches, but 2 x 8 of them instead of 4 x 4.
    torch.testing.assert_close(
        torch.load(files[1]), resample_abs_pos_embed(source.pos_embed, [2, 8], [4, 4]), check_dtype=True
    )


def test_a_failed_download_names_the_file(monkeypatch):
    def fail(*_args, **_kwargs):
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError, match=r"reset by peer.*model\.safetensors"):
        load_model(ModelSpec("test_resnet.r160_in1k"))


def test_list_of_models_says_where_weights_come_from():
    rows = {row.name: row for row in list_models("resnet18*")}
    assert rows["resnet18.tv_in1k"].weights == "pretrained"
    assert rows["resnet18.tv_in1k"].input_size == (224, 224)
    assert list_models("no_such_*") == []
    shipped = list_models("test_*", weights="digits")
    assert [row.name for row in shipped] == list(shipped_architectures())


# random weights


def test_random_weights_follow_the_seed_and_leave_torchs_generator_alone():
    before = torch.random.get_rng_state()
    a, b, c = (random_model("test_resnet", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same_weights(a.module, b.module)
    assert a.weights_sha256 == b.weights_sha256 != c.weights_sha256


def test_a_loaded_model_is_frozen_and_in_evaluation_mode():
    model = random_model("test_resnet")
    assert not any(module.training for module in model.module.modules())
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_the_description_is_json_and_records_what_was_resolved():
    model = load_model(ModelSpec("test_resnet.r160_in1k", "random", seed=4))
    record = json.loads(json.dumps(model.describe()))
    assert record["architecture"] == "test_resnet"
    assert record["pretrained_cfg"]["tag"] == "r160_in1k"
    assert record["data_config"]["input_size"] == [3, 160, 160]
    assert (record["weights_sha256"], record["seed"]) == (model.weights_sha256, 4)
    assert record["timm"] == timm.__version__
    assert pickle.loads(pickle.dumps(model.spec)) == model.spec


# input size and preprocessing


@pytest.mark.parametrize("size", [96, (64, 96)])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_input_size_is_selectable_for_flexible_and_fixed_architectures(name, size):
    model = random_model(name, size=size)
    expected = (size, size) if isinstance(size, int) else size
    assert model.input_size == expected
    pixels = model.transform(Image.new("RGB", (50, 70)))
    assert pixels.shape == (3, *expected)
    assert torch.isfinite(model.module(pixels[None])).all()


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("test_vit", 100, r"no multiple of the 16 x 16 patches.*nearest is 96 x 96"),
        ("vgg11", 8, r"cannot work at input_size 8 x 8"),
        ("test_resnet", 0, "positive whole numbers"),
        ("test_resnet", (96, -1), "positive whole numbers"),
        ("test_resnet", (3, 96, 96), "positive whole numbers"),
    ],
)
def test_impossible_input_sizes_are_refused_before_any_image(name, size, message):
    with pytest.raises(ConfigError, match=message):
        random_model(name, size=size)


def test_overlapping_patches_take_any_multiple_of_their_stride():
    assert random_model("pvt_v2_b0", size=64).input_size == (64, 64)


def test_preprocessing_is_the_models_own():
    model = load_model(ModelSpec("test_vit.r160_in1k", "random"))
    cfg = timm.get_pretrained_cfg("test_vit.r160_in1k")
    assert tuple(model.data_config["mean"]) == tuple(cfg.mean)
    assert model.data_config["crop_pct"] == cfg.crop_pct
    pixels = model.transform(Image.new("RGB", (160, 160), (255, 255, 255)))
    expected = (1 - torch.tensor(cfg.mean)) / torch.tensor(cfg.std)
    torch.testing.assert_close(pixels.amax(dim=(1, 2)), expected)


# local files


def write(tmp_path, state, kind: str):
    path = tmp_path / f"weights{kind}"
    if kind == ".safetensors":
        safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == ".pth" else state, path)
    return path


@pytest.mark.parametrize("kind", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_a_local_file_gives_exactly_its_weights_in_any_format(tmp_path, name, kind):
    source = random_model(name)
    model = load_model(ModelSpec(name, str(write(tmp_path, source.module.state_dict(), kind))))
    assert same_weights(model.module, source.module)
    assert model.weights_sha256 == source.weights_sha256


def test_one_changed_weight_changes_the_hash(tmp_path):
    source = random_model("test_resnet")
    state = {name: tensor.clone() for name, tensor in source.module.state_dict().items()}
    state["layer3.0.conv1.weight"][0, 0, 0, 0] += 1e-6
    model = load_model(ModelSpec("test_resnet", str(write(tmp_path, state, ".safetensors"))))
    assert model.weights_sha256 != source.weights_sha256


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_a_file_with_another_number_of_classes_keeps_its_classifier(tmp_path, name):
    source = timm.create_model(name, num_classes=7)
    model = load_model(ModelSpec(name, str(write(tmp_path, source.state_dict(), ".pth"))))
    assert model.n_classes == 7
    assert same_weights(model.module, source)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_a_file_without_classifier_gives_features_and_a_warning(tmp_path, name, caplog):
    source = timm.create_model(name, num_classes=0).eval()
    path = write(tmp_path, source.state_dict(), ".safetensors")
    with caplog.at_level(logging.WARNING):
        model = load_model(ModelSpec(name, str(path)))
    assert "no classifier" in caplog.text
    assert model.n_classes == 0
    x = torch.randn(1, 3, *model.input_size)
    torch.testing.assert_close(model.module.forward_features(x), source.forward_features(x))


def test_names_of_the_original_project_are_converted_by_timms_rules(tmp_path):
    source = random_model("test_convnext")
    original = {}  # how facebookresearch/ConvNeXt names the same tensors
    for name, tensor in source.module.state_dict().items():
        renamed = (
            name.replace("stem.", "downsample_layers.0.")
            .replace("head.norm.", "norm.")
            .replace("head.fc.", "head.")
        )
        renamed = renamed.replace("conv_dw.", "dwconv.").replace("mlp.fc", "pwconv").replace(".blocks.", ".")
        parts = renamed.split(".")
        if parts[0] == "stages" and parts[2] == "downsample":
            renamed = f"downsample_layers.{parts[1]}.{parts[3]}.{parts[4]}"
        original[renamed] = tensor
    path = tmp_path / "original.pth"
    torch.save({"model": original}, path)
    assert same_weights(load_model(ModelSpec("test_convnext", str(path))).module, source.module)


def test_position_embeddings_are_resampled_to_another_input_size(tmp_path):
    source = random_model("test_vit")
    path = write(tmp_path, source.module.state_dict(), ".safetensors")
    model = load_model(ModelSpec("test_vit", str(path), 96))
    state, original = model.module.state_dict(), source.module.state_dict()
    assert {name for name in state if not torch.equal(state[name], original[name])} == {"pos_embed"}
    torch.testing.assert_close(state["pos_embed"], resample_abs_pos_embed(original["pos_embed"], [6, 6]))


def save_vit(folder, size, n_classes, **described):
    """Return a file with the weights of a ViT for images of this size, and their position embeddings."""
    source = timm.create_model("test_vit", img_size=size, num_classes=n_classes)
    path = folder / "vit.safetensors"
    safetensors.torch.save_file(source.state_dict(), path, described or None)
    return path, source.pos_embed.detach()


@pytest.mark.parametrize("n_classes", [1000, 7])
@pytest.mark.parametrize(
    ("trained", "wanted"),
    [
        ((160, 160), (80, 320)),  # the file may be for either: both grids have 100 patches
        ((80, 320), (80, 320)),
        ((128, 128), (32, 512)),  # 8 x 8 or 2 x 32
        ((64, 96), (160, 160)),  # 24 patches lie on no square
    ],
)
def test_position_embeddings_on_an_unknown_grid_are_refused(tmp_path, trained, wanted, n_classes):
    path, _ = save_vit(tmp_path, trained, n_classes)
    with pytest.raises(InputError, match=r"does not say on which grid.*scrambled"):
        load_model(ModelSpec("test_vit", str(path), wanted))


@pytest.mark.parametrize("n_classes", [1000, 7])
@pytest.mark.parametrize(
    ("trained", "wanted"),
    [((160, 160), (96, 160)), ((96, 160), (96, 160)), ((128, 128), (96, 160)), ((128, 128), (160, 160))],
)
def test_position_embeddings_on_a_known_grid_are_resampled_from_it(tmp_path, trained, wanted, n_classes):
    path, positions = save_vit(tmp_path, trained, n_classes)
    model = load_model(ModelSpec("test_vit", str(path), wanted))
    grids = [[side // 16 for side in size] for size in (wanted, trained)]
    expected = resample_abs_pos_embed(positions, *grids) if wanted != trained else positions
    torch.testing.assert_close(model.module.pos_embed, expected)


@pytest.mark.parametrize("wanted", [(80, 320), (160, 160), (96, 160)])
def test_a_file_that_states_its_size_is_resampled_from_it(tmp_path, wanted):
    described = {"architecture": "test_vit", "input_size": "[80, 320]", "num_classes": "7"}
    path, positions = save_vit(tmp_path, (80, 320), 7, **described)
    model = load_model(ModelSpec("test_vit", str(path), wanted))
    expected = resample_abs_pos_embed(positions, [side // 16 for side in wanted], [5, 20])
    torch.testing.assert_close(model.module.pos_embed, expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("layer2.0.bn1.running_var"), r"1 missing \(layer2\.0\.bn1\.running_var\)"),
        (lambda s: s.update(extra=torch.zeros(2)), r"1 unexpected \(extra\)"),
        (
            lambda s: s.update({"conv1.0.weight": torch.zeros(3, 3)}),
            r"1 other shape \(conv1\.0\.weight \(3, 3\) instead",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_naming_the_tensors(tmp_path, damage, message):
    state = dict(random_model("test_resnet").module.state_dict())
    damage(state)
    with pytest.raises(InputError, match=message):
        load_model(ModelSpec("test_resnet", str(write(tmp_path, state, ".safetensors"))))


@pytest.mark.parametrize("other", ["test_vit", "test_convnext", "resnet10t"])
def test_weights_of_another_architecture_are_refused(tmp_path, other):
    path = write(tmp_path, timm.create_model(other).state_dict(), ".pth")
    with pytest.raises(InputError, match=r"not weights of test_resnet: \d+ missing \("):
        load_model(ModelSpec("test_resnet", str(path)))


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemError('code from a weight file ran')",)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda p: torch.save(Malicious(), p), id="code"),
        pytest.param(lambda p: torch.save(torch.nn.Linear(2, 2), p), id="whole module"),
        pytest.param(lambda p: torch.save([torch.zeros(1)], p), id="a list"),
        pytest.param(lambda p: torch.save({"lr": 0.1}, p), id="no tensors"),
        pytest.param(lambda p: p.write_bytes(b"not weights"), id="noise"),
        pytest.param(lambda p: p.write_bytes(b""), id="empty"),
    ],
)
def test_files_that_are_no_state_dict_are_refused_and_not_executed(tmp_path, content):
    path = tmp_path / "weights.pth"
    content(path)
    with pytest.raises(InputError, match=r"weights\.pth"):
        load_model(ModelSpec("test_resnet", str(path)))


def test_pickled_objects_in_the_hub_are_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--someone--some-model" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abc")
    cfg = {"input_size": [3, 64, 64], "num_classes": 3, "classifier": "fc", "first_conv": "conv1.0"}
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": cfg}
    (snapshot / "config.json").write_text(json.dumps(config))
    torch.save({"conv1.0.weight": Malicious()}, snapshot / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"in the hub cannot be read .* since pickled objects may execute code"
    ):
        load_model(ModelSpec("hf-hub:someone/some-model"))


def test_a_truncated_safetensors_file_and_a_folder_are_refused(tmp_path):
    path = write(tmp_path, random_model("test_resnet").module.state_dict(), ".safetensors")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_model(ModelSpec("test_resnet", str(path)))
    with pytest.raises(InputError, match="is a folder"):
        load_model(ModelSpec("test_resnet", str(tmp_path)))


def jax_archive(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The tensors of a timm ViT under the names and shapes of the original JAX checkpoints."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    n_heads, width = model.blocks[0].attn.num_heads, model.embed_dim
    out = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(model.blocks)):
        ours, theirs = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        for j, name in enumerate(("query", "key", "value")):
            rows = slice(j * width, (j + 1) * width)
            kernel = state[f"{ours}.attn.qkv.weight"][rows].T
            out[f"{attention}/{name}/kernel"] = kernel.reshape(width, n_heads, -1)
            out[f"{attention}/{name}/bias"] = state[f"{ours}.attn.qkv.bias"][rows].reshape(n_heads, -1)
        out[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(n_heads, -1, width)
        out[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for j, (norm, fc) in enumerate((("norm1", "mlp.fc1"), ("norm2", "mlp.fc2"))):
            out[f"{theirs}/LayerNorm_{2 * j}/scale"] = state[f"{ours}.{norm}.weight"]
            out[f"{theirs}/LayerNorm_{2 * j}/bias"] = state[f"{ours}.{norm}.bias"]
            out[f"{theirs}/MlpBlock_3/Dense_{j}/kernel"] = state[f"{ours}.{fc}.weight"].T
            out[f"{theirs}/MlpBlock_3/Dense_{j}/bias"] = state[f"{ours}.{fc}.bias"]
    return out


def test_the_original_archives_of_vit_are_read_and_checked(tmp_path):
    name = "vit_tiny_patch16_224"
    source = random_model(name)
    archive = jax_archive(source.module)
    np.savez(tmp_path / "vit.npz", **archive)
    model = load_model(ModelSpec(name, str(tmp_path / "vit.npz")))
    assert same_weights(model.module, source.module)
    np.savez(tmp_path / "headless.npz", **{k: v for k, v in archive.items() if not k.startswith("head/")})
    headless = load_model(ModelSpec(name, str(tmp_path / "headless.npz")))
    assert headless.n_classes == 0
    del archive["Transformer/encoderblock_3/LayerNorm_0/scale"]
    np.savez(tmp_path / "partial.npz", **archive)
    with pytest.raises(InputError, match=r"partial\.npz"):
        load_model(ModelSpec(name, str(tmp_path / "partial.npz")))
    with pytest.raises(InputError, match=r"reads no \.npz for test_resnet"):
        load_model(ModelSpec("test_resnet", str(tmp_path / "vit.npz")))


# shipped weights


def write_described(path, **changes):
    """Write weights with a description of their network, as the shipped ones have it, and return the network."""
    model = timm.create_model("test_resnet", num_classes=10)
    meta = {
        "architecture": "test_resnet",
        "model_kwargs": "{}",
        "num_classes": "10",
        "input_size": "96",
        "mean": "[0.1, 0.1, 0.1]",
        "std": "[0.3, 0.3, 0.3]",
        "interpolation": "bilinear",
        "classes": json.dumps([str(digit) for digit in range(10)]),
        **changes,
    }
    safetensors.torch.save_file(model.state_dict(), path, metadata=meta)
    return model


@pytest.mark.parametrize("input_size", ["96", "[96, 96]", "[3, 96, 96]"])
def test_described_weights_bring_their_own_preprocessing_and_classes(tmp_path, input_size):
    path = tmp_path / "described.safetensors"
    source = write_described(path, input_size=input_size)
    model = load_model(ModelSpec("test_resnet", str(path)))
    assert same_weights(model.module, source)
    assert model.classes == tuple("0123456789")
    config = model.data_config
    assert (config["input_size"], config["crop_pct"], config["interpolation"]) == (
        (3, 96, 96),
        1.0,
        "bilinear",
    )
    assert tuple(config["mean"]) == (0.1, 0.1, 0.1)
    image = Image.fromarray(np.arange(96 * 96 * 3, dtype=np.uint8).reshape(96, 96, 3))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255  # nothing is cut off or resized
    torch.testing.assert_close(model.transform(image), (pixels - 0.1) / 0.3)
    assert load_model(ModelSpec("test_resnet", str(path), 64)).input_size == (64, 64)


def test_digits_weights_that_are_not_shipped_list_those_that_are():
    with pytest.raises(
        ConfigError, match=rf"for model 'resnet18', only for {', '.join(shipped_architectures())}"
    ):
        load_model(ModelSpec("resnet18", "digits"))
    with pytest.raises(ConfigError, match="means others; write 'test_resnet'"):
        load_model(ModelSpec("test_resnet.r160_in1k", "digits"))
    with pytest.raises(ConfigError, match=r"for model 'resnet18', only for"):  # not: write 'resnet18'
        load_model(ModelSpec("resnet18.tv_in1k", "digits"))


@pytest.mark.parametrize("arch", sorted(shipped_architectures()))
def test_the_weights_in_the_package_load(arch):
    model = load_model(ModelSpec(arch, "digits"))
    assert same_weights(model.module, load_model(ModelSpec(arch, str(shipped_architectures()[arch]))).module)
    assert model.n_classes == len(model.classes or ()) > 1
