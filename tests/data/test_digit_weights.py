"""The shipped digit networks and the job that trains them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import semrsm_dist
from semrsm_dist.data.sources.digits import DigitScenes

WEIGHTS = Path(semrsm_dist.__file__).parent / "features" / "weights"
JOB = Path(__file__).parents[2] / "jobs" / "train_digits.py"
ARCHITECTURES = ["test_resnet", "test_vit"]


@pytest.fixture(scope="module")
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_digits", JOB)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def check_metadata(metadata: dict[str, str], architecture: str) -> None:
    assert metadata["architecture"] == architecture
    assert isinstance(json.loads(metadata["model_kwargs"]), dict)
    assert metadata["num_classes"] == "10"
    assert json.loads(metadata["classes"]) == list("0123456789")
    assert metadata["outputs"] == "labels"
    assert json.loads(metadata["input_size"]) == [3, 96, 96]
    assert len(json.loads(metadata["mean"])) == len(json.loads(metadata["std"])) == 3
    assert metadata["interpolation"] in ("bilinear", "bicubic")
    assert int(metadata["steps"]) > 0
    assert int(metadata["seed"]) >= 0
    assert set(json.loads(metadata["held_out"])["accuracy_per_label"]) == set("0123456789")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_shipped_small_and_described(architecture):
    path = WEIGHTS / f"{architecture}.digits.safetensors"
    assert path.stat().st_size < 2_000_000
    metadata = metadata_of(path)
    check_metadata(metadata, architecture)
    assert min(json.loads(metadata["held_out"])["accuracy_per_label"].values()) > 0.95


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shipped_weights_reach_the_accuracy_they_claim(architecture, job):
    """Measured anew on 300 scenes of held-out digits, through nothing but the file."""
    path = WEIGHTS / f"{architecture}.digits.safetensors"
    claimed = json.loads(metadata_of(path)["held_out"])
    model = timm.create_model(architecture, num_classes=10, **json.loads(metadata_of(path)["model_kwargs"]))
    model.load_state_dict(load_file(path))
    measured = job.evaluate(model, 300)
    assert measured["accuracy"] == pytest.approx(claimed["accuracy"], abs=0.01)
    assert measured["exact_set_accuracy"] == pytest.approx(claimed["exact_set_accuracy"], abs=0.06)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_writes_the_same_weights_for_the_same_seed(architecture, job, tmp_path):
    arguments = [
        "--model",
        architecture,
        "--steps",
        "3",
        "--batch",
        "4",
        "--evaluate-on",
        "8",
        "--threads",
        "1",
    ]
    for folder in ("one", "two"):
        job.main([*arguments, "--out", str(tmp_path / folder)])
    name = f"{architecture}.digits.safetensors"
    one, two = tmp_path / "one" / name, tmp_path / "two" / name
    check_metadata(metadata_of(one), architecture)
    assert metadata_of(one) == metadata_of(two)
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert [entry.name for entry in (tmp_path / "one").iterdir()] == [name]


def test_training_sees_training_digits_only(job, monkeypatch):
    splits = []
    draw = job.draw_batch
    monkeypatch.setattr(
        job, "draw_batch", lambda scenes, *rest: (splits.append(scenes.split), draw(scenes, *rest))[1]
    )
    recipe = job.Recipe(**{**job.asdict(job.RECIPES["test_resnet"]), "steps": 5, "batch": 2})
    model = job.build_model("test_resnet", recipe)
    job.train(model, recipe, seed=0)
    assert set(splits) == {"training"}
    job.evaluate(model, 4)
    assert splits[-1] == "evaluation"


def test_curriculum_rises_from_one_digit_to_four(job):
    recipe = job.RECIPES["test_resnet"]
    most = [job.digits_at(step / 1000, recipe) for step in range(1000)]
    assert most == sorted(most)
    assert set(most) == {1, 2, 3, 4}
    assert most[int(1000 * recipe.single) - 1] == 1
    assert most[int(1000 * recipe.ramp)] == 4


def test_targets_are_the_labels(job):
    scenes = DigitScenes(n_images=6)
    images, targets = job.draw_batch(scenes, range(6))[:2]
    assert images.shape == (6, 3, 96, 96)
    for record, row in zip(scenes.entries(), targets, strict=True):
        assert record.labels == tuple(str(k) for k in range(10) if row[k] == 1)
