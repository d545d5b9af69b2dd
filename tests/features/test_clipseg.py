"""CLIPSeg behind the face of timm's models: its vision tower, and its decoder for a prompt."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.features import clipseg
from semrsm_dist.features.extractor import Extractor
from semrsm_dist.features.layers import LayerReader, class_token_layers, resolve_layers
from semrsm_dist.features.models import ModelSpec, load_model
from semrsm_dist.features.registry import list_models
from semrsm_dist.pipeline.inputs import describe_model

pytest.importorskip("transformers", reason="an extra")

NAME = "test_clipseg"
TOKENS = [0, 3, 9, 1]  # what the vocabulary below makes of "a cat"
VOCABULARY = ["<|startoftext|>", "<|endoftext|>", "a", "a</w>", "c", "c</w>", "t", "t</w>", "ca", "cat</w>"]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """The whole network as transformers builds it, and a folder with its files as the hub has them."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    torch.manual_seed(3)
    network = CLIPSegForImageSegmentation(CLIPSegConfig(**clipseg.CONFIGS[NAME])).eval()
    folder = tmp_path_factory.mktemp("snapshot")
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    # Files of earlier versions hold these numbers too.
    state["clip.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    safetensors.torch.save_file(state, folder / "model.safetensors")
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    return network, folder


def spec(published, **more) -> ModelSpec:
    return ModelSpec(NAME, str(published[1] / "model.safetensors"), **more)


def positions(tokens: torch.Tensor) -> torch.Tensor:
    return tokens[:, 1:]


@pytest.mark.parametrize("size", [64, 96, (64, 96)])
def test_the_vision_tower_gives_what_transformers_gives_without_the_class_token(published, size):
    model = load_model(spec(published, input_size=size))
    layers = resolve_layers(model, ["*"])
    batch = torch.randn(2, 3, *model.input_size)
    found = LayerReader(model, layers)(batch)
    with torch.inference_mode():
        states = published[0].clip.vision_model(batch, output_hidden_states=True).hidden_states[1:]
    assert list(found) == [f"vision.encoder.layers.{k}" for k in range(4)]
    assert [layer.grid for layer in layers] == [(model.input_size[0] // 16, model.input_size[1] // 16)] * 4
    for z, expected in zip(found.values(), states, strict=True):
        torch.testing.assert_close(z, positions(expected))


def test_the_decoder_gives_what_transformers_gives_for_the_prompt(published):
    model = load_model(spec(published, prompt="a cat"))
    assert model.prompt_tokens == tuple(TOKENS)
    seen = []
    handles = [
        layer.register_forward_hook(lambda _m, _i, output: seen.append(output))
        for layer in published[0].decoder.layers
    ]
    batch = torch.randn(3, 3, *model.input_size)
    with torch.inference_mode():
        published[0](input_ids=torch.tensor([TOKENS] * 3), pixel_values=batch)
    for handle in handles:
        handle.remove()
    found = LayerReader(model, resolve_layers(model, ["decoder.layers.*"]))(batch)
    for z, expected in zip(found.values(), seen, strict=True):
        assert z.shape == (3, 16, 16)
        torch.testing.assert_close(z, positions(expected))


def test_a_prompt_leaves_the_tower_as_it_is_and_changes_the_decoder(published):
    batch = torch.randn(2, 3, 64, 64)
    names = ["vision.encoder.layers.3", "decoder.layers.2"]
    cat, act = (
        LayerReader(model, resolve_layers(model, names))(batch)
        for model in (load_model(spec(published, prompt=prompt)) for prompt in ("a cat", "a act"))
    )
    tower = load_model(spec(published))
    alone = LayerReader(tower, resolve_layers(tower, names[:1]))(batch)[names[0]]
    assert torch.equal(cat[names[0]], act[names[0]])
    torch.testing.assert_close(cat[names[0]], alone)
    assert not torch.allclose(cat[names[1]], act[names[1]])


def test_the_prompt_belongs_to_what_a_run_remembers(published):
    def facts(**more):
        model = load_model(spec(published, **more))
        return describe_model(model, resolve_layers(model, ["vision.encoder.layers.0"]))[0]

    assert facts(prompt="a cat")["prompt"] == {"text": "a cat", "tokens": TOKENS}
    assert facts(prompt="a act")["prompt"]["tokens"] != TOKENS
    assert "prompt" not in facts()
    assert facts()["weights_sha256"] != facts(prompt="a cat")["weights_sha256"]  # more of the file is used


def test_it_is_extracted_as_any_other_model(published):
    extractor = Extractor(spec(published), ["vision.encoder.layers.1"], device="cpu")
    z = extractor([Image.new("RGB", (100, 50), (200, 30, 30))])["vision.encoder.layers.1"]
    assert z.shape == (1, 16, 32)
    record = json.loads(json.dumps(extractor.model.describe()))
    assert (record["architecture"], record["n_classes"], record["outputs"]) == (NAME, 0, None)
    assert record["pretrained_cfg"]["transformers"]
    white = extractor.model.transform(Image.new("RGB", (100, 50), (255, 255, 255)))
    expected = (1 - torch.tensor(record["data_config"]["mean"])) / torch.tensor(record["data_config"]["std"])
    torch.testing.assert_close(white.amax(dim=(1, 2)), expected)


def test_its_class_token_and_its_modules_can_be_read(published):
    model = load_model(spec(published))
    batch = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        states = published[0].clip.vision_model(batch, output_hidden_states=True).hidden_states
    layers = resolve_layers(model, ["vision.encoder.layers.2@class", "vision.pre_layrnorm"])
    found = LayerReader(model, layers)(batch)
    torch.testing.assert_close(found["vision.encoder.layers.2@class"], states[3][:, :1])
    torch.testing.assert_close(found["vision.pre_layrnorm"], positions(states[0]))
    assert "vision.encoder.layers.2@class" in [layer.name for layer in class_token_layers(model)]


def test_random_weights_follow_the_seed():
    a, b, c = (load_model(ModelSpec(NAME, "random", seed=seed)) for seed in (1, 1, 2))
    assert a.weights_sha256 == b.weights_sha256 != c.weights_sha256


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("clip.vision_model.pre_layrnorm.bias"), r"1 missing \(vision\.pre_layrnorm\.bias\)"),
        (lambda s: s.pop("decoder.film_add.bias"), r"1 missing \(decoder\.film_add\.bias\)"),
        (lambda s: s.update({"vae.weight": torch.zeros(2)}), r"1 unexpected \(vae\.weight\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_naming_the_tensors(published, tmp_path, damage, message):
    state = safetensors.torch.load_file(published[1] / "model.safetensors")
    damage(state)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((published[1] / file).read_bytes())
    with pytest.raises(InputError, match=f"not weights of test_clipseg: {message}"):
        load_model(ModelSpec(NAME, str(tmp_path / "model.safetensors"), prompt="a cat"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"prompt": "a cat", "input_size": (64, 96)},
            "the decoder of 'test_clipseg' takes square images only",
        ),
        ({"input_size": 70}, r"no multiple of the 16 x 16 patches.*nearest is 64 x 64"),
        ({"prompt": "a cat " * 20}, "42 tokens, but 'test_clipseg' takes 16 at most"),
    ],
)
def test_what_the_network_cannot_take_is_refused(published, more, message):
    with pytest.raises(ConfigError, match=message):
        load_model(spec(published, **more))


def test_a_prompt_needs_a_decoder_and_a_decoder_a_prompt(published):
    with pytest.raises(ConfigError, match="'test_resnet' takes no prompt, only CLIPSeg does"):
        load_model(ModelSpec("test_resnet", "random", prompt="a cat"))
    with pytest.raises(
        ConfigError, match=r"'decoder\.layers\.1' of 'test_clipseg' needs a prompt.*model\.prompt"
    ):
        resolve_layers(load_model(spec(published)), ["decoder.layers.1"])


def test_the_tokenizer_is_looked_for_beside_the_weights(published, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((published[1] / "model.safetensors").read_bytes())
    (tmp_path / "vocab.json").write_bytes((published[1] / "vocab.json").read_bytes())
    with pytest.raises(InputError, match=rf"no merges\.txt of the tokenizer in {tmp_path}"):
        load_model(ModelSpec(NAME, str(path), prompt="a cat"))


@pytest.mark.parametrize("weights", ["pretrained", "digits"])
def test_weights_that_do_not_exist_are_refused(weights):
    with pytest.raises(ConfigError, match=r"no files to download|no digits weights ship"):
        load_model(ModelSpec(NAME, weights))


def test_a_download_is_of_one_revision_and_takes_the_file_that_the_hub_has(published, monkeypatch):
    requested = []

    def download(repository, file, revision):
        requested.append((repository, file, len(revision)))
        if file == "model.safetensors":
            raise EntryNotFoundError("404")
        return str(published[1] / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    name = "CIDAS/clipseg-rd64-refined"
    with pytest.raises(InputError, match="cannot be read as weights"):  # there is no file
        load_model(ModelSpec(name))
    assert requested == [(name, "model.safetensors", 40), (name, "pytorch_model.bin", 40)]


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("CIDAS/clipseg-rd64", "main (not pinned)"),
        ("CIDAS/clipseg-rd64-refined", "999e0328d9e10b484360c477313983f9afdd7050"),
    ],
)
def test_the_record_says_which_revision_was_taken_and_the_hash_of_its_weights(published, name, revision):
    loaded = load_model(spec(published))
    model = replace(loaded, spec=ModelSpec(name))  # as downloaded
    facts = describe_model(model, [])[0]
    assert facts["revision"] == revision
    assert len(facts["weights_sha256"]) == 64
    assert "revision" not in describe_model(loaded, [])[0]  # of a local file


def test_without_a_network_the_tokenizers_files_are_named(monkeypatch):
    def nowhere(*_args, **_kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(
        InputError, match=r"get vocab\.json and merges\.txt from https://huggingface\.co/CIDAS/"
    ):
        load_model(ModelSpec("CIDAS/clipseg-rd64", "random", prompt="a cat"))


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs the package transformers.*pip install '\.\[clipseg\]'"):
        load_model(ModelSpec(NAME, "random"))


def test_the_list_of_models_has_the_family():
    assert [(row.name, row.weights, row.input_size) for row in list_models("CIDAS/*refined")] == [
        ("CIDAS/clipseg-rd64-refined", "pretrained", (352, 352))
    ]
    with pytest.raises(ConfigError, match="did you mean 'CIDAS/clipseg-rd64-refined'"):
        load_model(ModelSpec("CIDAS/clipseg-rd64-refine", "random"))
