"""What a session no longer needs may be gone; what it needs may not."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import timm
import torch

from semrsm_dist import open_run
from semrsm_dist.errors import ConfigError, InputError, ResumeError

FEATURES = "features.zarr/images"


def continues(shop, document, *words):
    """Run without computing anything, with a warning of these words, and leave all results as they are."""
    before = shop.tree(shop.path / "run" / "tiles.zarr")
    summary = shop.run(document)
    assert all(count["computed"] == 0 for count in summary["work"].values())
    gone = [line for line in summary["warnings"] if "no longer there, and no longer needed: " in line]
    assert all(any(word in line for line in gone) for word in words), summary["warnings"]
    assert shop.tree(shop.path / "run" / "tiles.zarr") == before
    return summary


def lose_a_chunk(shop, layer):
    next((shop.path / "run" / FEATURES / layer / "features").rglob("c/0/0/0")).unlink()


def refuses_once_features_are_missing(shop, document, layer, *words):
    """A chunk of features is lost: the input is needed again, and nothing of the run is touched."""
    lose_a_chunk(shop, layer)
    before = shop.tree(shop.path / "run")
    with pytest.raises(InputError) as caught:
        shop.run(document)
    for word in (*words, f"images/{layer}", "put it back"):
        assert word in str(caught.value)
    assert shop.tree(shop.path / "run") == before


@pytest.fixture
def of_weights(shop):
    """A finished run with a file of weights."""
    weights = shop.path / "weights.pt"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    model = {"name": "test_resnet", "weights": str(weights), "layers": ["layer4"], "input_size": 64}
    document = shop.of_images("run", shop.images(n=4), model=model)
    shop.run(document)
    return document, weights


def test_weights(shop, of_weights):
    document, weights = of_weights
    weights.rename(shop.path / "elsewhere.pt")
    continues(shop, document, str(weights))
    continues(shop, document, str(weights))  # the record still knows them
    other = document | {"model": document["model"] | {"weights": str(shop.path / "never.pt")}}
    with pytest.raises(InputError, match=r"there is no file .*never\.pt"):
        shop.run(other)
    refuses_once_features_are_missing(shop, document, "layer4", str(weights))
    (shop.path / "elsewhere.pt").rename(weights)
    assert shop.run(document)["work"]["extraction"]["computed"] == 1


@pytest.mark.parametrize("change", [{"input_size": 96}, {"layers": ["layer3", "layer4"]}])
def test_weights_that_another_question_needs(shop, of_weights, change):
    document, weights = of_weights
    weights.unlink()
    with pytest.raises(InputError, match="there is no file"):
        shop.run(document | {"model": document["model"] | change})


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_folder_of_images(shop, left):
    folder = shop.images(n=5)
    document = shop.of_images("run", folder)
    shop.run(document)
    folder.rename(shop.path / "elsewhere")
    if left != "nothing":
        folder.mkdir()
    assert continues(shop, document, str(folder))["images"] == {"images": 5}
    other = document | {"data": document["data"] | {"path": str(shop.path / "never")}}
    with pytest.raises(InputError, match="never"):
        shop.run(other)
    refuses_once_features_are_missing(shop, document, "layer3", str(folder))


def test_some_images_of_a_folder_are_another_run(shop):
    folder = shop.images(n=5)
    document = shop.of_images("run", folder)
    shop.run(document)
    (folder / "class0" / "000.png").unlink()
    with pytest.raises(ResumeError, match=r"images\.count +5 -> 4"):
        shop.run(document)


@pytest.mark.parametrize("unreadable", ["refuse", "skip"])
@pytest.mark.parametrize("n_gone", [1, 5])
def test_images_that_a_table_still_lists(shop, unreadable, n_gone):
    folder = shop.images(n=5)
    files = sorted(folder.rglob("*.png"))
    lines = ["image_id,uri,labels", *(f"{file.name},{file},{file.parent.name}" for file in files)]
    (shop.path / "table.csv").write_text("\n".join(lines))
    document = shop.of_images("run", folder, unreadable=unreadable)
    document["data"] = {"source": "table", "path": str(shop.path / "table.csv")}
    scores = shop.run(document)["retrieval"]
    for file in files[:n_gone]:
        file.unlink()
    for _ in range(2):
        summary = continues(shop, document, f"{n_gone} of 5 images ({files[0].name}")
        assert summary["retrieval"] == scores
        assert summary["unreadable"] == {"images": 0}
    (shop.path / "table.csv").unlink()
    continues(shop, document, "table.csv")
    lose_a_chunk(shop, "layer3")
    with pytest.raises(InputError, match=r"table\.csv.* features .*missing \(images/layer3\)"):
        shop.run(document)
    (shop.path / "table.csv").write_text("\n".join(lines))
    with pytest.raises((InputError, ResumeError)):
        shop.run(document)


@pytest.mark.parametrize("gone", [["z.npy"], ["counts.npy"], ["z.npy", "counts.npy"], ["table.csv"]])
def test_ready_made_features_and_what_belongs_to_them(shop, gone):
    z = shop.features("z.npy", (6, 5, 4))
    shop.save("counts.npy", np.array([5, 4, 3, 5, 2, 1]))
    (shop.path / "table.csv").write_text("image_id,labels\n" + "".join(f"i{k},{k % 2}\n" for k in range(6)))
    document = shop.of_features("run", z)
    document["data"] |= {
        "token_counts": {"last": str(shop.path / "counts.npy")},
        "table": str(shop.path / "table.csv"),
    }
    shop.run(document)
    (shop.path / "elsewhere").mkdir()
    for name in gone:
        (shop.path / name).rename(shop.path / "elsewhere" / name)
    continues(shop, document, *gone)
    continues(shop, document, *gone)
    if gone != ["table.csv"]:  # no features are made from a table
        refuses_once_features_are_missing(shop, document, "last", gone[0])
    else:
        lose_a_chunk(shop, "last")
    for name in gone:
        (shop.path / "elsewhere" / name).rename(shop.path / name)
    assert shop.run(document)["work"]["import"]["computed"] == 1


@pytest.mark.parametrize("gone", ["thingsvision", "thingsvision/file_names.txt"])
def test_a_folder_of_thingsvision_and_its_list(shop, gone):
    shop.features("thingsvision/features.npy", (3, 5, 4))
    (shop.path / "thingsvision" / "file_names.txt").write_text("a.png\nb.png\nc.png\n")
    document = shop.of_features("run", shop.path / "thingsvision")
    shop.run(document)
    assert open_run(shop.path / "run").manifest().image_ids() == ["a.png", "b.png", "c.png"]
    (shop.path / gone).rename(shop.path / "elsewhere")
    continues(shop, document, gone)
    continues(shop, document, gone)
    assert open_run(shop.path / "run").manifest().image_ids() == ["a.png", "b.png", "c.png"]


def test_features_whose_copy_was_never_verified(shop):
    """Copied to the end, but not yet compared with the source when the session ended."""
    source = shop.features()
    document = shop.of_features("run", source)
    shop.run(document)
    group = shop.path / "run" / FEATURES / "last" / "zarr.json"
    group.write_text(group.read_text().replace('"verified": true', '"verified": false'))
    source.unlink()
    with pytest.raises(InputError, match=r"no longer there: .*put it back"):
        shop.run(document)


def test_all_inputs_of_both_sides(shop):
    layers = {"last": shop.features("a.npy", (5, 4, 3))}
    document = shop.of_features("run", layers)
    document["queries"] = {
        "source": "features",
        "layers": {"last": str(shop.features("b.npy", (3, 4, 3), 1))},
    }
    shop.run(document)
    (shop.path / "a.npy").unlink()
    (shop.path / "b.npy").unlink()
    continues(shop, document, "a.npy", "b.npy")
    shutil.rmtree(shop.path / "run" / "features.zarr" / "queries")
    with pytest.raises(InputError, match=r"b\.npy.*missing \(queries/last\)"):
        shop.run(document)


def test_a_new_run_needs_all_of_it(shop):
    with pytest.raises(InputError, match="no such file"):
        shop.run(shop.of_features("run", shop.path / "z.npy"))
    with pytest.raises((InputError, ConfigError), match="does not exist"):
        shop.run(shop.of_images("run", shop.path / "images"))


def test_features_that_would_now_be_read_in_another_layout(shop):
    source = shop.features("z.npy", (5, 8, 8, 8))
    document = shop.of_features("run", source)  # layout: auto
    shop.run(document)
    explicit, other = (document | {"data": document["data"] | {"layout": name}} for name in ("nchw", "nhwc"))
    assert shop.run(explicit)["work"]["import"]["computed"] == 0
    with pytest.raises(ResumeError, match=r"images\.last\.sha256"):
        shop.run(other)
    source.unlink()
    continues(shop, document, "z.npy")
    continues(shop, explicit, "z.npy")
    with pytest.raises(InputError, match=r"z\.npy: there is no such file"):
        shop.run(other)
