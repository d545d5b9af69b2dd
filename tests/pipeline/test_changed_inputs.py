"""Going on with other images, features, models or settings: refused where numbers would change, and only there."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import semrsm_dist as srs
from semrsm_dist.errors import InputError, ResumeError
from semrsm_dist.store.directory import RunDirectory
from tests.pipeline.conftest import GROUPS, quick, trees


def assert_refused(shop, document, *words):
    """Check that a changed run is refused with these words and that nothing of it is touched."""
    run = RunDirectory(document["run"]).path
    before = shop.tree(run), shop.chunks(run, *GROUPS)
    with pytest.raises(ResumeError) as caught:
        shop.run(document)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)
    assert (shop.tree(run), shop.chunks(run, *GROUPS)) == before


@pytest.mark.parametrize("stop", [False, True], ids=["finished", "unfinished"])
def test_changed_numbers_are_refused_field_by_field(shop, stop):
    document = quick(shop, "run", matching={"tile": 4, "tolerance": 1e-3})
    assert shop.interrupt(document, "matching", 50 if stop else 10_000) == stop
    assert_refused(shop, document | {"matching": {"tolerance": 1e-2}}, "matching.tolerance", "0.001", "0.01")
    assert_refused(
        shop, document | {"matching": {"matcher": "greedy"}}, "matching.matcher", "auction", "greedy"
    )
    assert_refused(
        shop,
        document | {"matching": {"matcher": "batch-optimal", "window": 3}, "features": {"dtype": "float16"}},
        "matching.window",
        "features.dtype",
        "float32 -> float16",
    )
    queries = {"queries": {"source": "features", "layers": document["data"]["layers"]}}
    assert_refused(shop, document | queries, "queries.count", "(absent) -> 28")
    z = np.load(shop.path / "a.npy")
    z[3, 2, 1] += 1
    shop.save("a.npy", z)
    assert_refused(shop, document, "images.a.sha256")
    shop.save("a.npy", np.load(shop.path / "b.npy"))
    assert_refused(shop, document, "a.n_tokens", "6 -> 4")


@pytest.mark.parametrize("change", ["matcher", "tile", "images"])
def test_a_run_of_which_nothing_was_finished_starts_over_with_any_configuration(shop, caplog, change):
    document = quick(shop, "run", matching={"tile": 4, "tolerance": 1e-3})

    def end():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shop.run(document, before=("import", end))
    assert RunDirectory(document["run"]).read_record() is not None
    if change == "images":
        document |= {"data": {"source": "folder", "path": str(shop.images())}}
        document |= {"model": {"name": "test_resnet", "weights": "random", "layers": ["layer4"]}}
    else:
        document |= {"matching": {"matcher": "greedy"} if change == "matcher" else {"tile": 5}}
    shop.run(document)
    assert ("it starts over with this one" in caplog.text) == (change != "tile")  # which changes no number
    shop.run(document | {"run": str(shop.path / "plain")})
    assert trees(shop, "run") == trees(shop, "plain")


def test_the_command_refuses_with_status_2(shop):
    config = shop.write(quick(shop, "run"))
    shop.run(quick(shop, "run"))
    before = shop.tree(shop.path / "run")
    done = shop.command("run", config, "--set", "matching.tolerance=0.5")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "matching.tolerance" in done.stderr
    assert "-> 0.5" in done.stderr
    assert shop.tree(shop.path / "run") == before


def test_changed_images_are_refused(shop):
    folder = shop.images()
    document = shop.of_images("run", folder)
    shop.run(document)
    changed = folder / "class0" / "000.png"
    original = changed.read_bytes()
    shutil.copy(folder / "class0" / "003.png", changed)
    assert_refused(shop, document, "images.sha256")
    changed.write_bytes(original)
    shop.image("images/class0/new.png")
    assert_refused(shop, document, "images.count", "12 -> 13")
    (folder / "class0" / "new.png").rename(shop.path / "new.png")
    changed.rename(folder / "class0" / "zzz.png")
    assert_refused(shop, document, "images.sha256")
    (folder / "class0" / "zzz.png").rename(changed)
    summary = shop.run(document)
    assert all(count["computed"] == 0 for count in summary["work"].values())


def test_changed_order_of_images_is_refused_and_changed_places_are_not(shop):
    folder = shop.images()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))

    def document(names, place):
        lines = ["image_id,uri,labels", *(f"{name},{place}/{name},x" for name in names)]
        (shop.path / "table.csv").write_text("\n".join(lines))
        return shop.of_images("run", folder) | {
            "data": {"source": "table", "path": str(shop.path / "table.csv")}
        }

    shop.run(document(names, "images"))
    assert_refused(shop, document(names[::-1], "images"), "images.sha256")
    folder.rename(shop.path / "moved")
    for path in (shop.path / "moved").rglob("*.png"):
        os.utime(path)
    summary = shop.run(document(names, "moved"))
    assert all(count["computed"] == 0 for count in summary["work"].values())


def test_other_crops_of_the_same_files_are_refused(shop):
    crops = {"source": "crops", "shifts": [0.0, 0.2], "share": 0.5}
    folder = crops | {"of": {"source": "folder", "path": str(shop.images(n=4))}}
    document = shop.of_images("run", shop.path) | {"data": folder}
    shop.run(document)
    assert_refused(shop, document | {"data": folder | {"share": 0.6}}, "images.share", "0.5 -> 0.6")
    scenes = {"source": "digits", "n_images": 4, "canvas": 64}
    document = shop.of_images("scenes", shop.path) | {"data": crops | {"of": scenes}}
    shop.run(document)
    assert_refused(
        shop, document | {"data": crops | {"of": scenes | {"canvas": 72}}}, "images.of.canvas", "64 -> 72"
    )


def test_other_features_are_refused_though_size_and_time_are_the_same(shop):
    one, other = shop.features("one.npy"), shop.features("other.npy", seed=1)
    for path in (one, other):
        os.utime(path, ns=(0, 0))
    document = shop.of_features("run", one)
    shop.run(document)
    assert_refused(shop, shop.of_features("run", other), "images.last.sha256")
    other.replace(one)
    assert_refused(shop, document, "images.last.sha256")


def test_other_token_counts_are_refused_though_the_features_are_gone(shop):
    z = shop.features("z.npy", (6, 5, 4))
    some, others = shop.save("some.npy", np.full(6, 4)), shop.save("others.npy", np.full(6, 3))

    def document(**counts):
        document = shop.of_features("run", z)
        return document | {"data": document["data"] | {"token_counts": counts}}

    shop.run(document(last=str(some)))
    z.rename(shop.path / "elsewhere.npy")
    assert_refused(shop, document(last=str(others)), "images.last.token_counts_sha256")
    assert_refused(shop, document(), "images.last.token_counts_sha256", "-> (absent)")
    some.unlink()
    assert any("no longer needed" in line for line in shop.run(document(last=str(some)))["warnings"])
    with pytest.raises(InputError, match=r"never\.npy: there is no such file"):
        shop.run(document(last=str(shop.path / "never.npy")))


def test_changed_weights_and_input_sizes_are_refused(shop):
    folder = shop.images()
    weights = shop.path / "weights.pt"

    def train(seed):
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_resnet").state_dict(), weights)

    def document(**model):
        model = {
            "name": "test_resnet",
            "weights": str(weights),
            "layers": ["layer4"],
            "input_size": 64,
        } | model
        return shop.of_images("run", folder, model=model)

    train(0)
    shop.run(document())
    train(1)
    assert_refused(shop, document(), "model.weights_sha256")
    train(0)
    assert_refused(
        shop, document(input_size=96), "model.preprocessing.input_size", "[3, 64, 64] -> [3, 96, 96]"
    )
    assert_refused(shop, document(weights="random", seed=3), "model.weights_sha256")
    assert_refused(shop, document(precision="bfloat16"), "model.precision", "float32 -> bfloat16")
    assert shop.run(document())["work"]["extraction"]["computed"] == 0


def test_another_network_around_the_same_weights_is_refused(shop):
    folder, weights = shop.images(n=3), shop.path / "described.safetensors"

    def document(**options):
        described = {"architecture": "test_resnet", "num_classes": "10", "input_size": "64"}
        torch.manual_seed(0)
        state = timm.create_model("test_resnet", num_classes=10).state_dict()
        metadata = described | {"model_kwargs": json.dumps(options), "mean": "[0, 0, 0]", "std": "[1, 1, 1]"}
        safetensors.torch.save_file(state, weights, metadata=metadata)
        model = {"name": "test_resnet", "weights": str(weights), "layers": ["layer4"]}
        return shop.of_images("run", folder, model=model)

    shop.run(document())
    assert_refused(shop, document(act_layer="gelu"), "model.build_options.act_layer", "(absent) -> gelu")
    assert shop.run(document())["work"]["extraction"]["computed"] == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"workers": 1},
        {"matching": {"tile": 7, "worker_memory": "64MiB", "task_seconds": 1, "attempts": 1}},
        {"retrieval": {"k": [1, 5]}, "unreadable": "skip"},
    ],
    ids=["workers", "memory", "reports"],
)
def test_what_changes_no_number_is_accepted(shop, changed, quick_whole):
    assert shop.interrupt(quick(shop, "run"), "matching", 100)
    found = len(shop.tiles(shop.path / "run"))
    summary = shop.run(quick(shop, "run") | changed)
    assert summary["work"]["matching"] == {"found": found, "computed": 20 - found}
    assert trees(shop, "run") == quick_whole


def test_changed_kernels_are_assembled_anew_from_the_same_tiles(shop):
    shop.run(quick(shop, "run", kernels=[{"name": "rbf", "sigma": 3.0}, "linear"]))
    kept = shop.chunks(shop.path / "run")
    summary = shop.run(quick(shop, "run", kernels=["cosine"]))
    assert summary["work"]["matching"]["computed"] == 0
    assert summary["work"]["assembly"] == {"found": 0, "computed": 2}
    assert shop.chunks(shop.path / "run") == kept
    run = srs.open_run(shop.path / "run")
    assert "semantic_rbf" not in run.dataset("a")  # of the earlier width: it would pass for the default
    assert run.similarity("a", "rbf").attrs["sigma"] != 3.0
    shop.run(quick(shop, "fresh", kernels=["cosine"]))
    assert shop.tree(shop.path / "run" / "rsm.zarr") == shop.tree(shop.path / "fresh" / "rsm.zarr")


def test_a_layer_added_later_leaves_the_others_untouched(shop):
    folder = shop.images(n=10)

    def document(*layers):
        model = {"name": "test_resnet", "weights": "random", "layers": list(layers), "input_size": 64}
        return shop.of_images("run", folder, model=model)

    shop.run(document("layer4"))
    kept = shop.chunks(shop.path / "run", *GROUPS)
    summary = shop.run(document("layer3", "layer4"))
    assert kept.items() <= shop.chunks(shop.path / "run", *GROUPS).items()
    run = srs.open_run(shop.path / "run")
    assert run.layers == ["layer3", "layer4"]
    assert run.similarity("layer3").shape == run.similarity("layer4").shape == (10, 10)
    summary = shop.run(document("layer4"))  # and back
    assert list(summary["layers"]) == ["layer4"]
    assert srs.open_run(shop.path / "run").layers == ["layer3", "layer4"]


def test_changed_labels_reach_the_matrices(shop):
    z = shop.features("z.npy", (6, 4, 3))
    table = shop.path / "table.csv"

    def run(labels):
        table.write_text("image_id,labels\n" + "".join(f"i{k},{label}\n" for k, label in enumerate(labels)))
        document = shop.of_features("run", z)
        document["data"]["table"] = str(table)
        return shop.run(document)

    run("aabbcc")
    kept = shop.chunks(shop.path / "run")
    summary = run("abcabc")
    assert shop.chunks(shop.path / "run") == kept
    assert summary["work"]["matching"]["computed"] == 0
    assert srs.open_run(shop.path / "run").dataset("last")["labels_i"].values.tolist() == list("abcabc")
