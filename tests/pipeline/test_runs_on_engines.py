"""Whole runs on both engines: every kind of input, against an independent oracle, and the same bytes."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from PIL import Image
from ray import cloudpickle
from scipy.optimize import linear_sum_assignment

import semrsm_dist as srs
from semrsm_dist.config.schema import parse_config
from semrsm_dist.engine import make_engine
from semrsm_dist.errors import ConfigError, InputError, WorkError
from semrsm_dist.features.models import ModelSpec, load_model
from semrsm_dist.pipeline.stages import extraction
from semrsm_dist.pipeline.stages.extraction_worker import ExtractorFactory
from semrsm_dist.results.xarray_engine import SemrsmBackend

KERNELS = ["linear", "cosine", "rbf"]
TOLERANCE = 1e-3
ROUNDING = 1e-9


@pytest.fixture(scope="module", params=["local", "ray"])
def engine(request):
    engine = make_engine(request.param, workers=2)
    yield engine
    engine.close()


# --- inputs: name -> document without its run directory ---------------------------------------------------


def folder_through_a_convolutional_network(shop):
    folder = shop.images(n=11)
    shop.spoil(folder)
    matching = {"tolerance": TOLERANCE}
    return shop.of_images("-", folder, kernels=KERNELS, matching=matching, unreadable="skip")


def tables_through_a_transformer(shop):
    """Queries against a database, from one table each."""
    shown = {1: "cat|dog", 3: "cow", 5: "cow", 7: "hen"}
    rows = [("image_id", "uri", "labels", "group")]
    for index in range(9):
        shop.image(f"pictures/{index}.png", size=(40 + index, 44))
        uri = f"pictures/{3 if index == 5 else index}.png"  # two frames of a film, the same
        rows.append((f"picture {index}", uri, shown.get(index, ""), f"g{index // 3}"))
    asked = [rows[0], ("a cow", "pictures/3.png", "cow", "g1"), ("nobody knows", "pictures/8.png", "", "")]
    tables = {}
    for name, lines in {"data": rows, "queries": asked}.items():
        tables[name] = {"source": "table", "path": str(shop.path / f"{name}.csv")}
        (shop.path / f"{name}.csv").write_text("\r\n".join(",".join(line) for line in lines) + "\r\n")
    return {
        **tables,
        "model": {
            "name": "test_vit",
            "weights": "random",
            "layers": ["blocks.1", "blocks.5"],
            "input_size": 64,
            "actors": 1,
        },
        "kernels": KERNELS,
        "matching": {"matcher": "hungarian"},
    }


def features_of_tokens(shop):
    z = shop.features("tokens.npy", (40, 9, 5))
    return shop.of_features("-", z, kernels=KERNELS, matching={"tolerance": 0, "tile": 7})


def feature_maps(shop):
    maps = shop.features("maps.npy", (13, 4, 3, 2), seed=1)
    return shop.of_features("-", maps, kernels=KERNELS, matching={"matcher": "batch-optimal", "window": 4})


def zarr_in_half_precision(shop):
    z = np.random.default_rng(2).normal(size=(18, 8, 6)).astype(np.float32)
    zarr.create_array(shop.path / "z.zarr", data=z, chunks=(5, 8, 6))
    return shop.of_features(
        "-",
        shop.path / "z.zarr",
        kernels=[{"name": "rbf", "sigma": 2.5}, "cosine"],
        features={"dtype": "float16"},
        matching={"matcher": "greedy"},
    )


def queries_against_features(shop):
    layers = {"a": shop.features("a.npy", (23, 6, 4)), "b": shop.features("b.npy", (23, 3, 7))}
    document = shop.of_features("-", layers, kernels=KERNELS, matching={"tolerance": TOLERANCE, "tile": 5})
    asked = {
        "a": str(shop.features("qa.npy", (8, 6, 4), seed=5)),
        "b": str(shop.features("qb.npy", (8, 3, 7), 6)),
    }
    return document | {"queries": {"source": "features", "layers": asked}}


def images_of_unequal_size(shop):
    z = np.random.default_rng(2).normal(size=(17, 9, 4)).astype(np.float32) + 1.0
    counts = np.random.default_rng(3).integers(1, 10, 17)
    counts[:3] = 5  # some agree
    z[np.arange(9) >= counts[:, None]] = np.nan  # never looked at
    document = shop.of_features(
        "-", shop.save("z.npy", z), kernels=KERNELS, matching={"tolerance": 0, "tile": 5}
    )
    document["data"]["token_counts"] = {"last": str(shop.save("counts.npy", counts))}
    asked = shop.features("asked.npy", (4, 5, 4), seed=4)
    return document | {"queries": {"source": "features", "layers": {"last": str(asked)}}}


def neighbours(shop):
    return shop.of_features("-", shop.features(), matching={"tile": 7}) | {"output": {"neighbours": 3}}


CASES = [
    folder_through_a_convolutional_network,
    tables_through_a_transformer,
    features_of_tokens,
    feature_maps,
    zarr_in_half_precision,
    queries_against_features,
    images_of_unequal_size,
]


@pytest.fixture(scope="module")
def documents():
    return {}


@pytest.fixture(scope="module")
def hashes():
    return {}


@pytest.fixture
def done(request, module_shop, engine, documents):
    """The run directory of a case on an engine."""
    make = request.param
    if make not in documents:
        documents[make] = make(type(module_shop)(module_shop.path / make.__name__))
    path = module_shop.path / engine.name / make.__name__
    if not path.exists():
        srs.run(parse_config(documents[make] | {"run": str(path)}), engine=engine)
    return path


# --- the oracle ------------------------------------------------------------------------------------------


def read_features(run, side, layer):
    """Return the stored features of each image (S_i, C) in float64, with nothing of the package between."""
    stored = zarr.open_group(run / "features.zarr" / side / layer, mode="r")
    images = zip(stored["features"][:], stored["token_count"][:], strict=True)
    return [np.asarray(z[:count], np.float64) for z, count in images]


def solve_by_scipy(z, y):
    """Return optimal and position-by-position inner products of all pairs."""
    best, identity = np.empty((len(z), len(y))), np.full((len(z), len(y)), np.nan)
    for i, j in itertools.product(range(len(z)), range(len(y))):
        affinity = z[i] @ y[j].T
        best[i, j] = affinity[linear_sum_assignment(affinity, maximize=True)].sum()
        if len(z[i]) == len(y[j]):
            identity[i, j] = np.trace(affinity)
    return best, identity


def kernel_by_hand(kernel, inner, n_i, n_j, sigma=None):
    if kernel == "linear":
        return inner
    if kernel == "cosine":
        return inner / np.sqrt(np.outer(n_i, n_j))
    squared = n_i[:, None] + n_j[None, :] - 2 * inner
    if inner.shape[0] == inner.shape[1] and np.array_equal(n_i, n_j):
        np.fill_diagonal(squared, 0)
    squared[squared < 1e-12 * (n_i[:, None] + n_j[None, :])] = 0
    if sigma is None:
        sigma = np.sqrt(np.median(squared[squared > 0]))
    return np.exp(-squared / (2 * sigma**2))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("done", CASES, indirect=True)
def test_a_run_agrees_with_scipy_on_the_features_it_stored(done):
    record = json.loads((done / "run.json").read_text())
    matcher, tolerance = (record["fingerprint"].get(f"matching.{name}") for name in ("matcher", "tolerance"))
    for layer in record["layers"]:
        y = read_features(done, "images", layer)
        z = y if "queries" not in record["counts"] else read_features(done, "queries", layer)
        best, identity = solve_by_scipy(z, y)
        n_i, n_j = (np.array([np.vdot(image, image) for image in x]) for x in (z, y))
        scale = np.sqrt(np.outer(n_i, n_j))
        data = srs.open_run(done).dataset(layer)
        matched, gap = data["matched"].values, data["gap"].values
        if z is y:
            assert np.array_equal(matched, matched.T)
            np.fill_diagonal(best, n_j)
        rounding = srs.open_run(done).rounding(layer) or ROUNDING
        assert (matched <= best + rounding * scale).all()
        assert (best <= matched + gap + ROUNDING * scale).all()
        if matcher == "hungarian" or (matcher == "auction" and tolerance == 0):
            np.testing.assert_array_less(best - matched, 1e-6 * scale)
        if matcher == "auction":
            assert (gap <= (1 + 2**-4) * (tolerance + 1e-6) * scale).all()
        np.testing.assert_allclose(data["identity"].values, identity, atol=rounding * scale.max())
        np.testing.assert_allclose(data["squared_norm_i"].values, n_i, rtol=1e-12)
        for kernel in record["config"]["kernels"]:
            for kind, inner in (("semantic", matched), ("spatio-semantic", data["identity"].values)):
                expected = kernel_by_hand(kernel["name"], inner, n_i, n_j, kernel["sigma"])
                found = data[f"{kind}_{kernel['name']}"].values
                np.testing.assert_allclose(
                    found, expected, rtol=1e-9, atol=1e-9 * np.nanmax(np.abs(expected))
                )


@pytest.mark.timeout(240)
@pytest.mark.parametrize("done", [*CASES, neighbours], indirect=True)
def test_both_engines_write_the_same_bytes(done, module_shop, hashes, request):
    case = request.node.callspec.params["done"]
    computed = "neighbours.zarr" if case is neighbours else "tiles.zarr"
    found = {group: module_shop.tree(done / group) for group in ("features.zarr", computed)}
    assert found[computed]
    assert found == hashes.setdefault(case, found)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("done", [folder_through_a_convolutional_network], indirect=True)
def test_rows_and_columns_are_the_images_in_their_order(done, documents):
    data = xr.open_dataset(done, engine=SemrsmBackend, layer="layer3")
    names = [f"class{index % 3}/{index:03d}.png" for index in range(11)]
    assert data["image_i"].values.tolist() == data["image_j"].values.tolist() == sorted(names)
    assert data["labels_i"].values.tolist() == [name.partition("/")[0] for name in sorted(names)]
    assert {"labels_i", "labels_j", "image_i", "image_j"} <= set(data["semantic_cosine"].coords)

    folder = documents[folder_through_a_convolutional_network]["data"]["path"]
    model = load_model(ModelSpec("test_resnet", "random", 64))
    z = read_features(done, "images", "layer4")
    for index, name in enumerate(data["image_i"].values):
        with Image.open(f"{folder}/{name}") as image, torch.inference_mode():
            grid = model.module.forward_features(model.transform(image.convert("RGB"))[None])
        np.testing.assert_allclose(z[index], grid[0].flatten(1).T.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("done", [tables_through_a_transformer], indirect=True)
def test_a_table_gives_ids_labels_and_groups(done):
    data = srs.open_run(done).dataset("blocks.5")
    assert data["image_j"].values.tolist() == [f"picture {index}" for index in range(9)]
    assert data["labels_j"].values.tolist() == ["", "cat|dog", "", "cow", "", "cow", "", "hen", ""]
    assert data["group_j"].values.tolist() == [f"g{index // 3}" for index in range(9)]
    assert data["image_i"].values.tolist() == ["a cow", "nobody knows"]
    assert data["labels_i"].values.tolist() == ["cow", ""]
    assert data["group_i"].values.tolist() == ["g1", ""]
    matrix = data["semantic_cosine"].values
    assert matrix[0, [3, 5]] == pytest.approx([1, 1])
    assert matrix[1, 8] == pytest.approx(1)
    scores = srs.open_run(done).summary()["retrieval"]
    assert {score["n_queries"] for score in scores} == {1}
    assert {score["f1"] for score in scores} == {0.0}  # all cows are of the query's own group


@pytest.mark.timeout(240)
@pytest.mark.parametrize("done", [queries_against_features], indirect=True)
def test_a_run_is_read_as_xarray_objects(done):
    run = srs.open_run(done)
    assert run.layers == ["a", "b"]
    assert not run.is_symmetric
    matrix = run.similarity("a", kernel="cosine", kind="semantic")
    assert matrix.dims == ("image_i", "image_j")
    assert matrix.shape == (8, 23)
    assert matrix.dtype == np.float64
    assert (run.gap("a").values >= 0).all()
    best, _ = solve_by_scipy(*(read_features(done, side, "a") for side in ("queries", "images")))
    data = run.dataset("a")
    for kernel in ("linear", "cosine", "rbf"):
        similarity = run.similarity("a", kernel)
        bound = similarity.values + run.gap("a", kernel).values
        optimum = kernel_by_hand(
            kernel,
            best,
            data["squared_norm_i"].values,
            data["squared_norm_j"].values,
            similarity.attrs.get("sigma"),
        )
        assert (optimum <= bound + 1e-9 * np.abs(optimum).max()).all()
        assert (bound > similarity.values).any()
    assert (
        run.similarity("a").values >= run.similarity("a", kind="spatio-semantic").values - TOLERANCE
    ).all()
    z, y = (np.stack(read_features(done, side, "b")) for side in ("queries", "images"))
    _, identity = solve_by_scipy(z, y)
    n_i, n_j = (np.einsum("nsc,nsc->n", x, x) for x in (z, y))
    stored = run.dataset("b")["identity"].values
    assert (np.abs(stored - identity) <= run.rounding("b") * np.sqrt(np.outer(n_i, n_j))).all()
    for kernel, sigma in (("linear", None), ("cosine", None), ("rbf", None), ("rbf", 0.7)):
        found = run.similarity("b", kernel, "spatio-semantic", sigma=sigma).values
        np.testing.assert_allclose(
            found, kernel_by_hand(kernel, stored, n_i, n_j, sigma), rtol=1e-9, atol=1e-12
        )


# --- what users get wrong ----------------------------------------------------------------------------------


def test_unreadable_images_are_refused_by_name(shop, engine):
    folder = shop.images(n=9)
    bad = shop.spoil(folder)
    with pytest.raises(InputError, match="4 of 13 images cannot be read") as caught:
        shop.run(shop.of_images("run", folder), engine=engine)
    assert all(name in str(caught.value) for name in bad)
    assert not (shop.path / "run" / "run.json").exists()


def test_features_that_are_not_finite_name_the_images(shop, engine):
    z = np.random.default_rng(0).normal(size=(50, 6, 4)).astype(np.float32)
    z[41, 2, 1], z[7, 0, 0] = np.inf, np.nan
    table = shop.path / "table.csv"
    table.write_text("image_id,labels\n" + "".join(f"photo {index},\n" for index in range(50)))
    document = shop.of_features("run", shop.save("bad.npy", z))
    document["data"]["table"] = str(table)
    with pytest.raises(InputError, match="NaN or infinite") as caught:
        shop.run(document, engine=engine)
    assert all(words in str(caught.value) for words in ("'photo 7' (index 7", "'photo 41' (index 41"))
    assert "photo 8'" not in str(caught.value)
    assert not shop.tiles(shop.path / "run")


# --- a GPU that fails --------------------------------------------------------------------------------------


class FailingFactory(ExtractorFactory):
    """Makes workers of which the first loses its GPU at its second batch: CUDA says nothing else in that process."""

    def __call__(self):
        made = Path(os.environ["SEMRSM_TEST_FOLDER"])
        first = not any(made.iterdir())
        (made / str(os.getpid())).touch()
        worker, batches = super().__call__(), []

        def fail(module, inputs):
            if first and isinstance(module, torch.nn.MaxPool2d):
                batches.append(len(inputs[0]))
                if len(batches) > 1:
                    raise torch.AcceleratorError("CUDA error: unspecified launch failure\nSearch for more")

        torch.nn.modules.module.register_module_forward_pre_hook(fail)
        return worker


@pytest.mark.timeout(240)
@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="this torch raises RuntimeError alone")
def test_images_of_a_gpu_that_fails_are_extracted_by_another_process(shop, engine, monkeypatch, caplog):
    folder, made = shop.images(n=100), shop.path / "made"
    made.mkdir()
    document = shop.of_images("run", folder)
    document["model"]["actors"] = 1
    shop.run(document | {"run": str(shop.path / "undisturbed")})
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setenv("SEMRSM_TEST_FOLDER", str(made))
    monkeypatch.setattr(extraction, "ExtractorFactory", FailingFactory)
    hooks = torch.nn.modules.module._global_forward_pre_hooks
    monkeypatch.setattr(torch.nn.modules.module, "_global_forward_pre_hooks", hooks.copy())
    if engine.name == "local":  # has but one process, and the GPU is of no more use to it
        with pytest.raises(
            WorkError, match=r"no GPU is left, and what is done is kept: .*unspecified launch"
        ):
            shop.run(document, engine=engine)
        monkeypatch.undo()
    summary = shop.run(document, engine=engine)
    assert summary["work"]["extraction"]["computed"] >= 3
    trees = [shop.tree(shop.path / name / "features.zarr") for name in ("run", "undisturbed")]
    assert trees[0] == trees[1]
    if engine.name == "ray":
        assert len(list(made.iterdir())) == 2
        assert "a worker was lost, and another takes its place: the GPU" in caplog.text
        assert "failed (CUDA error: unspecified launch failure)" in caplog.text


# --- kernels ---------------------------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_kernels_that_were_not_asked_for_are_derived(shop):
    asked = shop.of_features("asked", shop.features(), kernels=KERNELS)
    not_asked = shop.of_features("not-asked", shop.features(), kernels=[])
    shop.run(asked)
    shop.run(not_asked)
    one, other = srs.open_run(asked["run"]), srs.open_run(not_asked["run"])
    assert "semantic_rbf" not in other.dataset("last")
    for kernel, kind in itertools.product(KERNELS, ("semantic", "spatio-semantic")):
        xr.testing.assert_identical(
            one.similarity("last", kernel, kind).drop_attrs(),
            other.similarity("last", kernel, kind).drop_attrs(),
        )
        rows = other.similarity_rows("last", kernel, kind)(slice(3, 9))
        assert np.array_equal(rows, one.similarity("last", kernel, kind).values[3:9])


# --- what must not matter --------------------------------------------------------------------------------


def values(run, layer="last"):
    data = srs.open_run(run).dataset(layer)
    return {name: array.values.tobytes() for name, array in data.data_vars.items()}


@pytest.mark.timeout(240)
def test_workers_tiles_and_memory_change_no_bit(shop):
    folder = shop.images(n=37)
    plain = shop.of_images("plain", folder, kernels=KERNELS)
    shop.run(plain)
    expected = {layer: values(shop.path / "plain", layer) for layer in ("layer3", "layer4")}
    for name, changed in (
        ("one-worker", {"workers": 1}),
        ("tile-7", {"matching": {"tile": 7}}),
        ("tile-100", {"matching": {"tile": 100}}),
        ("little-memory", {"matching": {"worker_memory": "16MiB", "task_seconds": 0.01}}),
    ):
        shop.run(plain | {"run": str(shop.path / name)} | changed)
        for layer, numbers in expected.items():
            assert values(shop.path / name, layer) == numbers, (name, layer)


def test_the_format_of_ready_made_features_changes_no_bit(shop):
    z = np.random.default_rng(0).normal(size=(21, 6, 4)).astype(np.float32)
    maps = np.ascontiguousarray(z.transpose(0, 2, 1)).reshape(21, 4, 3, 2)
    group = zarr.open_group(shop.path / "group.zarr", mode="w")
    group.create_array("net/layer", data=z, chunks=(4, 3, 4))
    zarr.create_array(shop.path / "two.zarr", data=z, chunks=(7, 6, 4), zarr_format=2)
    zarr.create_array(shop.path / "maps.zarr", data=maps, chunks=(50, 4, 3, 2))
    files = [
        shop.save("plain.npy", z),
        shop.save("fortran.npy", np.asfortranarray(z)),
        shop.save("big-endian.npy", z.astype(">f4")),
        shop.save("double.npy", z.astype(np.float64)),
        shop.save("maps.npy", maps),
        shop.path / "two.zarr",
        shop.path / "maps.zarr",
        shop.path / "group.zarr" / "net" / "layer",
    ]
    layers = {f"layer{number}": path for number, path in enumerate(files)}
    shop.run(shop.of_features("run", layers))
    found = [values(shop.path / "run", layer) for layer in layers]
    assert all(item == found[0] for item in found)


@pytest.mark.parametrize("shape", [(2, 6, 4), (3, 1, 4), (5, 1, 1), (2, 1, 1), (7, 33, 1), (3, 400, 2)])
def test_extreme_shapes(shop, shape):
    document = shop.of_features("run", shop.features(shape=shape), kernels=KERNELS, matching={"tolerance": 0})
    shop.run(document)
    z = np.stack(read_features(shop.path / "run", "images", "last"))
    best, _ = solve_by_scipy(z, z)
    norms = np.einsum("nsc,nsc->n", z, z)
    np.fill_diagonal(best, norms)
    found = srs.open_run(document["run"]).similarity("last", "linear").values
    np.testing.assert_allclose(found, best, atol=1e-6 * norms.max())


def test_relative_paths_belong_to_the_working_directory(module_shop, tmp_path):
    shop = type(module_shop)(tmp_path / "a place")
    shop.features("z.npy")
    (tmp_path / "elsewhere").mkdir()
    config = tmp_path / "elsewhere" / "config.yaml"
    config.write_bytes(b"run: runs/mine\r\ndata:\r\n  source: features\r\n  layers: {last: z.npy}\r\n")
    done = shop.command("run", config)
    assert done.returncode == 0, done.stderr
    assert srs.open_run(shop.path / "runs" / "mine").similarity("last").shape == (20, 20)


def test_a_relative_run_directory_of_a_submitted_job_is_refused(shop, monkeypatch):
    copy = shop.path / "working_dir_files" / "_ray_pkg_0123456789abcdef"  # as Ray makes it, and deletes it
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(
        ConfigError, match=r"run: runs/features: .*is deleted when it ends.*give an absolute path"
    ):
        shop.run(shop.of_features("-", shop.features()) | {"run": "runs/features"})
    assert list(copy.iterdir()) == []


def test_a_run_directory_may_be_reached_through_a_link(shop):
    (shop.path / "real").mkdir()
    (shop.path / "link").symlink_to(shop.path / "real", target_is_directory=True)
    document = shop.of_features("link", shop.features())
    shop.run(document)
    again = shop.run(document | {"run": str(shop.path / "real")})
    assert again["work"]["matching"]["computed"] == 0


def test_the_first_of_equal_layers_stays_first(shop):
    z = shop.features()
    shop.run(shop.of_features("run", {"z": z, "m": z, "a": z}))
    assert srs.open_run(shop.path / "run").layers == ["z", "m", "a"]
    shop.run(shop.of_features("run", {"z": z, "m": z, "a": z}))
    assert srs.open_run(shop.path / "run").layers == ["z", "m", "a"]
