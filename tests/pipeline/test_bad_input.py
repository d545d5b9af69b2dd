"""What users get wrong: a clear message, the right status, and nothing lost or touched."""

from __future__ import annotations

import copy
import resource
import shutil
import threading

import numpy as np
import pytest
import zarr

import semrsm_dist as srs
from semrsm_dist.config.schema import parse_config
from semrsm_dist.errors import ConfigError, InputError, SemrsmError, WorkError
from tests.pipeline.conftest import StopAfter


def assert_refused(shop, document, kind, *words, **options):
    """Run and return the error, which must be of this kind, lead to status 2 and hold these words."""
    with pytest.raises(kind) as caught:
        shop.run(document, **options)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value), str(caught.value)
    return caught.value


# --- images ----------------------------------------------------------------------------------------------


def test_no_images_at_all(shop):
    (shop.path / "empty").mkdir()
    assert_refused(shop, shop.of_images("run", shop.path / "empty"), InputError, "no images in", "/empty")
    assert_refused(
        shop, shop.of_images("run", shop.path / "nowhere"), InputError, "nowhere", "does not exist"
    )
    assert_refused(shop, shop.of_images("run", shop.image("a.png")), InputError, "a.png", "is a file")


def test_one_image_makes_no_matrix(shop):
    shop.image("one/a.png")
    assert_refused(
        shop, shop.of_images("run", shop.path / "one"), InputError, "1 usable image,", "at least 2"
    )


def test_unreadable_images_are_listed_and_refused_or_skipped_and_recorded(shop):
    folder = shop.images(n=9)
    bad = shop.spoil(folder)
    document = shop.of_images("run", folder)
    words = ("4 of 13 images cannot be read", *bad, "unreadable: skip")
    assert_refused(shop, document, InputError, *words)
    assert not (shop.path / "run" / "run.json").exists()
    summary = shop.run(document | {"unreadable": "skip"})
    assert summary["images"] == {"images": 9}
    assert summary["unreadable"] == {"images": 4}
    assert all(name in summary["warnings"][0] for name in bad)
    run = srs.open_run(shop.path / "run")
    assert [row.image_id for row in run.manifest().unreadable] == bad
    assert all(row.error for row in run.manifest().unreadable)
    assert not set(bad) & set(run.similarity("layer4")["image_i"].values.tolist())
    shop.run(shop.of_images("clean", shop.images("good", n=9)))
    assert srs.open_run(shop.path / "clean").similarity("layer4").shape == run.similarity("layer4").shape


def test_nothing_but_unreadable_images(shop):
    for name in "abc":
        shop.save(f"bad/{name}.npy", np.zeros(3))
        (shop.path / "bad" / f"{name}.npy").rename(shop.path / "bad" / f"{name}.png")
    document = shop.of_images("run", shop.path / "bad", unreadable="skip")
    assert_refused(shop, document, InputError, "0 usable images")


def test_mixed_sizes_modes_and_names(shop):
    modes = {
        "grey.png": "L",
        "grey with alpha.png": "LA",
        "print.jpg": "CMYK",
        "print.tif": "CMYK",
        "deep.png": "I;16",
        "see-through.png": "RGBA",
        "palette.gif": "P",
        "bitmap.png": "1",
        "UPPER.JPG": "RGB",
        "#hash?.png": "RGB",
        "per%20cent.png": "RGB",
        "new\nline.png": "RGB",
        "日本 ö.png": "RGB",
        "-dash.png": "RGB",
        "a|b/same.png": "RGB",
        "b/same.png": "RGB",
    }
    for index, (name, mode) in enumerate(modes.items()):
        shop.image(f"images/{name}", mode=mode, size=(20 + 13 * index, 90 - 4 * index))
    summary = shop.run(shop.of_images("run", shop.path / "images"))
    assert summary["images"] == {"images": len(modes)}
    matrix = srs.open_run(shop.path / "run").similarity("layer4")
    assert set(matrix["image_i"].values.tolist()) == set(modes)
    labels = dict(zip(matrix["image_i"].values, matrix["labels_i"].values, strict=True))
    assert labels["a|b/same.png"] == '["a|b"]', "one label, not two"
    assert np.isfinite(matrix.values).all()


def test_the_run_must_not_lie_among_its_own_images(shop):
    folder = shop.images()
    assert_refused(shop, shop.of_images("images/run", folder), ConfigError, "lies inside the image folder")


def test_an_image_that_vanishes_on_the_way_costs_its_chunk_alone(shop):
    folder = shop.images(n=40)
    document = shop.of_images("run", folder)
    gone = folder / "class0" / "000.png"
    content = gone.read_bytes()
    with pytest.raises(WorkError, match=r"1 of 2 chunks.*class0/000\.png") as caught:
        shop.run(document, before=("extraction", gone.unlink))
    assert caught.value.exit_code == 1
    kept = shop.chunks(shop.path / "run")
    assert len(kept) == 2  # the other chunk, in two layers
    gone.write_bytes(content)
    assert shop.run(document)["work"]["extraction"] == {"found": 1, "computed": 1}
    assert kept.items() <= shop.chunks(shop.path / "run").items()


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "value", "words"),
    [
        ("model", {"name": "test_resne"}, ["unknown model 'test_resne'", "'test_resnet'"]),
        ("model", {"layers": ["layr3"]}, ["no layer 'layr3'", "'layer3'"]),
        ("model", {"layers": ["nothing*"]}, ["nothing*"]),
        ("model", {"weights": "nowhere.safetensors"}, ["nowhere.safetensors", "there is no file"]),
        ("model", {"weights": "pretrained"}, ["which pretrained weights", "test_resnet.r160_in1k"]),
        ("model", {"name": "test_resnet.in1k"}, ["test_resnet.r160_in1k"]),
        ("model", {"name": "test_vit", "layers": ["blocks.1"], "input_size": 70}, ["input_size 70 x 70"]),
        ("matching", {"matcher": "auctoin"}, ["matching.matcher: 'auctoin'", "'auction'"]),
        ("matching", {"matcher": "greedy", "window": 3}, ["'matching.window'", "batch-optimal"]),
        ("matching", {"matcher": "batch-optimal", "window": 0}, ["window"]),
        ("matching", {"tolerance": -1}, ["tolerance"]),
    ],
)
def test_unknown_names_are_refused_with_near_ones(shop, section, value, words):
    document = shop.of_images("run", shop.path / "images")
    shop.images()
    document[section] = document.get(section, {}) | value
    assert_refused(shop, document, SemrsmError, *words)
    assert not (shop.path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    "name", ["a/b", "../up", "..", ".", "", "zarr.json", "back\\slash", "line\n", "x" * 300, "__x"]
)
def test_names_of_layers_that_the_store_cannot_hold(shop, name):
    assert_refused(shop, shop.of_features("run", {name: shop.features()}), SemrsmError, "layer")
    assert sorted(path.name for path in shop.path.iterdir()) in (["run", "z.npy"], ["z.npy"])


def test_odd_names_of_layers_that_it_can(shop):
    names = ["a b", "ä", "a|b", "layer.1", "c", "features", "$x$", "0", "a.npy", "a.partial"]
    document = shop.of_features("run", {name: shop.features(f"{k}.npy") for k, name in enumerate(names)})
    assert shop.interrupt(document, "matching", 1)
    shop.run(document)
    run = srs.open_run(shop.path / "run")
    for number, name in enumerate(names):
        assert run.similarity(name).shape == (20, 20)
        written, *_ = run.export("npy", shop.path / f"out{number}", layers=[name], kernels=["cosine"])
        assert np.load(written).shape == (20, 20)


# --- features --------------------------------------------------------------------------------------------


def test_features_of_the_queries_that_are_not_finite(shop):
    document = shop.of_features("run", shop.features())
    z = shop.save("q.npy", np.full((3, 6, 4), np.nan, np.float32))
    document["queries"] = {"source": "features", "layers": {"last": str(z)}}
    assert_refused(shop, document, InputError, "queries: features of '0' (index 0")


@pytest.mark.parametrize(
    ("scale", "stored"), [(1e6, "float16"), (1e300, "float32"), (1e-6, "float16"), (1e-200, "float32")]
)
def test_features_that_do_not_fit_the_stored_type(shop, scale, stored):
    z = np.random.default_rng(0).normal(size=(5, 6, 4))
    z[3] *= scale
    document = shop.of_features("run", shop.save("odd.npy", z), features={"dtype": stored})
    assert_refused(shop, document, InputError, "'3' (index 3, layer last) do not fit", "scale the features")


def test_features_of_any_scale_that_float32_holds(shop):
    z = np.random.default_rng(0).normal(size=(9, 6, 4))
    scales = [1, 1e-30, 1e-12, 1e12, 1e30]
    layers = {f"{scale:g}": shop.save(f"{scale:g}.npy", (z * scale).astype(np.float32)) for scale in scales}
    shop.run(shop.of_features("run", layers, matching={"matcher": "hungarian"}))
    run = srs.open_run(shop.path / "run")
    for layer in layers:
        for kernel in ("cosine", "rbf"):
            np.testing.assert_allclose(
                run.similarity(layer, kernel).values, run.similarity("1", kernel).values, atol=1e-6
            )


@pytest.mark.parametrize(
    "matcher", ["auction", "hungarian", "greedy", "topk-greedy", "batch-optimal", "identity"]
)
def test_representations_of_norm_zero_are_undefined_and_reported(shop, matcher):
    z = np.random.default_rng(0).normal(size=(12, 6, 4)).astype(np.float32)
    z[[4, 9]] = 0
    document = shop.of_features(
        "run", shop.save("zero.npy", z), kernels=["cosine", "linear", "rbf"], matching={"matcher": matcher}
    )
    config = shop.write(document)
    if matcher == "auction":
        done = shop.command("run", config)
        assert done.returncode == 0, done.stderr
        header, row = (line for line in done.stdout.splitlines() if line.startswith(("layer ", "last ")))
        assert header.endswith("  undefined images")
        assert row.endswith(" 2")
    summary = shop.run(document)
    assert summary["layers"]["last"]["undefined_images"] == 2
    run = srs.open_run(shop.path / "run")
    expected = np.zeros((12, 12), bool)
    expected[[4, 9]] = expected[:, [4, 9]] = True
    assert np.array_equal(np.isnan(run.similarity("last", "cosine").values), expected)
    assert np.isfinite(run.similarity("last", "rbf").values).all()
    assert (run.similarity("last", "linear").values[expected] == 0).all()
    assert (run.gap("last").values[expected] == 0).all()


def test_nothing_but_zeros(shop):
    z = shop.save("zero.npy", np.zeros((4, 3, 2), np.float32))
    summary = shop.run(shop.of_features("run", z, kernels=["cosine", "rbf"]))
    assert summary["layers"]["last"]["undefined_images"] == 4
    assert summary["layers"]["last"]["mean_gap"] is None
    run = srs.open_run(shop.path / "run")
    assert np.isnan(run.similarity("last").values).all()
    assert (run.similarity("last", "rbf").values == 1).all()


def test_sizes_that_do_not_go_together(shop):
    z = shop.features()
    for name, shape, matcher, words in (
        ("s", (3, 7, 4), "batch-optimal", "S = 7 and C = 4"),  # others match images that differ in S
        ("c", (3, 6, 5), "auction", "S = 6 and C = 5"),
    ):
        document = shop.of_features("run", z, matching={"matcher": matcher})
        asked = shop.features(f"{name}.npy", shape)
        document["queries"] = {"source": "features", "layers": {"last": str(asked)}}
        assert_refused(shop, document, InputError, words, "but 6 and 4")
    other = shop.features("other.npy", (19, 6, 4))
    assert_refused(
        shop,
        shop.of_features("run", {"a": z, "b": other}),
        InputError,
        "different numbers of images",
        "19",
        "20",
    )
    short = shop.path / "short.csv"
    short.write_text("image_id,labels\na,\nb,\n")
    document = shop.of_features("run", z)
    document["data"]["table"] = str(short)
    assert_refused(shop, document, InputError, "2 rows", "20 images")


def test_a_missing_chunk_of_an_array_is_named_before_anything_is_computed(shop):
    z = np.random.default_rng(0).normal(size=(20, 16, 8)).astype(np.float32)
    zarr.create_array(shop.path / "z.zarr", data=z, chunks=(10, 16, 4))
    document = shop.of_features("run", shop.path / "z.zarr")
    (shop.path / "z.zarr" / "c" / "1" / "0" / "0").unlink()
    assert_refused(shop, document, InputError, "z.zarr: chunk (1, 0, 0) is missing")
    assert not (shop.path / "run" / "run.json").exists()
    zarr.open_array(shop.path / "z.zarr")[...] = z
    shop.run(document)
    shop.run(shop.of_features("same", shop.save("z.npy", z)))
    one, other = (srs.open_run(shop.path / name).similarity("last") for name in ("run", "same"))
    np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.parametrize("kind", ["npy", "zarr"])
@pytest.mark.parametrize("change", ["rewritten", "cut", "replaced and put back"])
def test_a_source_that_changes_while_it_is_imported_is_refused(shop, kind, change):
    z = np.random.default_rng(0).normal(size=(70, 5, 4)).astype(np.float32)

    def write(values):
        if kind == "npy":
            return shop.save("z.npy", values)
        zarr.create_array(shop.path / "z.zarr", data=values, chunks=(8, 5, 4), overwrite=True)
        return shop.path / "z.zarr"

    def act():
        write(2 * z[:40] if change == "cut" else 2 * z)
        if change.endswith("back"):
            write(z)

    document = shop.of_features("run", write(z))
    assert_refused(
        shop, document, InputError, "changed while it was imported", "removed", before=("import", act)
    )
    assert not shop.chunks(shop.path / "run")
    write(z)
    assert shop.run(document)["work"]["import"] == {"found": 0, "computed": 3}
    shop.run(shop.of_features("other", write(z)))
    assert shop.tree(shop.path / "run" / "tiles.zarr") == shop.tree(shop.path / "other" / "tiles.zarr")


def test_what_was_copied_from_another_source_before_an_interrupt_is_not_kept(shop):
    z = np.random.default_rng(0).normal(size=(70, 5, 4)).astype(np.float32)
    document, stop = shop.of_features("run", shop.save("z.npy", z)), threading.Event()

    class ReplaceThenStop(StopAfter):
        def stage(self, name, *arguments, **options):
            if name == "import":
                shop.save("z.npy", 2 * z)
            return super().stage(name, *arguments, **options)

    with pytest.raises(KeyboardInterrupt):
        srs.run(parse_config(document), reporter=ReplaceThenStop("import", 1, stop), stop=stop)
    assert shop.chunks(shop.path / "run")
    shop.save("z.npy", z)
    assert shop.run(document)["work"]["import"] == {"found": 0, "computed": 3}
    norms = srs.open_run(shop.path / "run").matrices("last").store.coordinate("squared_norm_i")
    np.testing.assert_allclose(norms, (z.astype(np.float64) ** 2).sum(axis=(1, 2)), rtol=1e-12)


def test_arrays_that_are_no_features(shop):
    z = shop.features()
    cut = shop.path / "cut.npy"
    cut.write_bytes(z.read_bytes()[:-100])
    for path, words in (
        (cut, "not complete"),
        (shop.path / "zz.npy", "no such file"),
        (shop.save("flat.npy", np.ones((4, 3))), "(N, 1, C)"),
        (shop.save("complex.npy", np.ones((4, 3, 2), complex)), "complex"),
        (shop.save("objects.npy", np.array([[[None]]], object)), "objects"),
        (shop.save("nobody.npy", np.ones((0, 3, 2))), "empty"),
        (shop.save("single.npy", np.ones((1, 3, 2))), "at least 2"),
    ):
        assert_refused(shop, shop.of_features("run", path), InputError, words)


# --- the run directory -----------------------------------------------------------------------------------


def test_a_directory_that_is_no_run_is_not_touched(shop):
    (shop.path / "thesis").mkdir()
    (shop.path / "thesis" / "chapter1.tex").write_text("important")
    before = sorted((shop.path / "thesis").iterdir())
    assert_refused(
        shop, shop.of_features("thesis", shop.features()), ConfigError, "not a run", "chapter1.tex"
    )
    assert sorted((shop.path / "thesis").iterdir()) == before
    with pytest.raises(ConfigError, match="no run here"):
        srs.open_run(shop.path / "thesis")


def test_a_run_directory_that_cannot_be(shop):
    z = shop.features()
    assert_refused(shop, shop.of_features("z.npy", z), ConfigError, "it or a folder above it is a file")
    assert_refused(
        shop, shop.of_features("z.npy/below/run", z), ConfigError, "it or a folder above it is a file"
    )
    with pytest.raises(ConfigError, match="no run here"):
        srs.open_run(shop.path / "z.npy")


def test_a_run_directory_of_another_configuration_keeps_everything(shop):
    shop.run(shop.of_features("run", shop.features()))
    before = shop.tree(shop.path / "run")
    with pytest.raises(SemrsmError, match=r"images\.sha256") as caught:
        shop.run(shop.of_images("run", shop.images()))
    assert caught.value.exit_code == 2
    assert shop.tree(shop.path / "run") == before


def test_a_limit_on_the_size_of_files_is_reported_like_a_full_disk(shop):
    z = shop.features("z.npy", (64, 16, 64))
    config = shop.write(shop.of_features("run", z))

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    with shop.process("run", config, preexec_fn=limit) as process:
        stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "File too large" in stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert shop.run(shop.of_features("run", z))["images"] == {"images": 64}


def test_workers_whose_memory_takes_no_pair_are_refused(shop):
    z = shop.features("many.npy", (2000, 2, 4))
    little = {"worker_memory": "64MiB", "tile": 2000}
    assert_refused(
        shop, shop.of_features("run", z, matching=little), ConfigError, "2000 x 2000", "smaller matching.tile"
    )
    assert not (shop.path / "run" / "run.json").exists()
    huge = shop.features("huge.npy", (2, 3000, 400))
    assert_refused(
        shop, shop.of_features("huge", huge, matching={"worker_memory": "16MiB"}), ConfigError, "fewer tokens"
    )


def test_a_matrix_that_was_deleted_is_assembled_again(shop):
    document = shop.of_features("run", shop.features(), output={"matrices": "stored"})
    shop.run(document)
    before = shop.tree(shop.path / "run" / "rsm.zarr")
    shutil.rmtree(shop.path / "run" / "rsm.zarr")
    assert shop.run(document)["work"]["assembly"] == {"found": 0, "computed": 1}
    assert shop.tree(shop.path / "run" / "rsm.zarr") == before


def test_a_run_changes_no_setting_of_zarr(shop):
    with zarr.config.set({"async.concurrency": 7}):
        before = copy.deepcopy(zarr.config.config)
        shop.run(shop.of_features("run", shop.features()))
        assert zarr.config.config == before
