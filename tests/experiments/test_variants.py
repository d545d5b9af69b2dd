"""Networks made from a network: what is changed, what stays, and that making them again gives the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from semrsm_dist.errors import ConfigError, StorageError
from semrsm_dist.experiments.layers.variants import Tuning, save_pruned, save_tuned
from semrsm_dist.features.models import ModelSpec, load_model
from semrsm_dist.features.registry import read_head
from semrsm_dist.features.spec import find_shipped
from semrsm_dist.features.variants import MADE_FROM

SHIPPED = ModelSpec("test_resnet", "digits")
SHORT = Tuning(steps=2, batch=4)


def test_convolutions_and_linear_layers_lose_their_share_and_nothing_else_changes(tmp_path: Path):
    path = tmp_path / "new" / "pruned.safetensors"
    save_pruned(SHIPPED, 0.75, path)
    before, after = load_file(find_shipped("test_resnet")), load_file(path)
    module = load_model(SHIPPED).module
    pruned = {f"{name}.weight" for name, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert len(pruned) > 5
    for name, values in after.items():
        if name in pruned:
            assert (values == 0).float().mean() == pytest.approx(0.75, abs=1 / values.numel())
        else:
            assert torch.equal(values, before[name])


def test_a_variant_is_loaded_with_the_preprocessing_and_meaning_of_its_source(tmp_path: Path):
    path = tmp_path / "pruned.safetensors"
    save_pruned(SHIPPED, 0.5, path)
    source, variant = load_model(SHIPPED), load_model(ModelSpec("test_resnet", str(path)))
    assert (variant.data_config, variant.outputs) == (source.data_config, "labels")
    assert json.loads(read_head(path)[MADE_FROM]) == {"weights_sha256": source.weights_sha256, "pruned": 0.5}
    assert "held_out" not in read_head(path)  # the accuracy was another network's


def test_other_networks_can_be_pruned_too(tmp_path: Path):
    spec, path = ModelSpec("test_resnet", "random", seed=3), tmp_path / "pruned.safetensors"
    save_pruned(spec, 0.5, path)
    variant = load_model(ModelSpec("test_resnet", str(path)))
    assert variant.n_classes == 1000
    assert variant.data_config == load_model(spec).data_config


def test_training_on_is_the_same_again_and_changes_the_network(tmp_path: Path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    threads = torch.get_num_threads()
    for path in (one, two):
        save_tuned(SHIPPED, path, SHORT)
    first, second, source = load_file(one), load_file(two), load_file(find_shipped("test_resnet"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    changed = [name for name in first if not torch.equal(first[name], source[name])]
    assert {"conv1.0.weight", "fc.weight"} <= set(changed) or len(changed) > 10
    assert torch.get_num_threads() == threads
    save_tuned(SHIPPED, two, Tuning(steps=2, batch=4, seed=1))
    assert any(not torch.equal(first[name], values) for name, values in load_file(two).items())


def test_what_is_there_is_not_made_again(tmp_path: Path):
    path = tmp_path / "tuned.safetensors"
    save_tuned(SHIPPED, path, SHORT)
    stamp = path.stat().st_mtime_ns
    save_tuned(SHIPPED, path, SHORT)
    assert path.stat().st_mtime_ns == stamp
    save_pruned(SHIPPED, 0.5, path)
    assert path.stat().st_mtime_ns != stamp
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_network_of_other_classes_is_not_fine_tuned(tmp_path):
    with pytest.raises(ConfigError, match="only networks that were trained on scenes of digits"):
        save_tuned(ModelSpec("test_resnet", "random"), tmp_path / "tuned.safetensors")


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        save_pruned(SHIPPED, 0.5, tmp_path / "file" / "pruned.safetensors")
