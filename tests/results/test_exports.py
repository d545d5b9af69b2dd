"""Exports hold the numbers of the run, in the terms of the program that they are for, and its readers agree."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import xarray as xr
from scipy.io import loadmat
from scipy.spatial.distance import squareform
from scipy.stats import spearmanr

import semrsm_dist as srs
from semrsm_dist.results.export import (
    OF_MATRICES,
    OF_NEIGHBOURS,
    dissimilarities,
    selection,
    tables,
    whole_zarr,
)
from semrsm_dist.results.export.exporting import WRITERS

IDS = [f"größe data {index}" for index in range(14)]
MATRICES = [(layer, kind) for layer in ("early", "late") for kind in ("semantic", "spatio-semantic")]


def above(matrix):
    """Return the entries of a matrix above its diagonal, row after row."""
    return matrix[np.triu_indices(len(matrix), 1)]


def test_every_format_has_a_writer():
    assert set(WRITERS) == {*OF_MATRICES, *OF_NEIGHBOURS}


def test_an_export_to_zarr_that_is_cut_off_leaves_no_group_that_lacks_chunks(
    symmetric, tmp_path, monkeypatch
):
    def remove_some(folder):
        for path in sorted(folder.rglob("c/*/*"))[:1]:
            path.unlink()
        raise KeyboardInterrupt

    [placed] = symmetric.export("zarr", tmp_path, layers=["late"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(whole_zarr, "remove_folder", remove_some)
        symmetric.export("zarr", tmp_path, layers=["late"])
    assert not list(placed.rglob("c/*"))  # readers would take those that are not there for NaN
    assert list(tmp_path.iterdir()) == [tmp_path / "rsm.zarr"]
    symmetric.export("zarr", tmp_path, layers=["late"])
    np.testing.assert_array_equal(
        xr.open_zarr(placed)["semantic_cosine"], symmetric.similarity("late").values.astype(np.float32)
    )


@pytest.fixture(params=["symmetric", "rectangular"])
def run(request):
    return request.getfixturevalue(request.param)


def test_numpy_files_say_what_they_hold(run, tmp_path):
    written = run.export("npy", tmp_path / "new" / "out", layers=["late"], kinds=["semantic"])
    assert [path.name for path in written[:4]] == [
        "late.semantic.cosine.npy",
        "late.semantic.cosine.json",
        "late.semantic.rbf.npy",
        "late.semantic.rbf.json",
    ]
    matrix = run.similarity("late", "rbf")
    np.testing.assert_array_equal(np.load(written[2]), matrix.values)
    facts = json.loads(written[3].read_text())
    assert facts["quantity"] == "similarity"
    assert facts["sigma"] == matrix.attrs["sigma"]
    assert (facts["matcher"], facts["tolerance"]) == ("auction", 1e-4)
    assert (tmp_path / "new" / "out" / "image_j.txt").read_text("utf-8").splitlines() == IDS
    assert sorted(written) == sorted((tmp_path / "new" / "out").iterdir())  # nothing else is left


def test_a_line_of_ids_is_an_image_whatever_its_name(symmetric, tmp_path, monkeypatch):
    breaks = [chr(code) for code in range(0x11000) if len(f"a{chr(code)}b".splitlines()) == 2]
    assert len(breaks) == 10
    names = [f"an{character}image" for character in breaks] + ["plain", "back\\slash", "größe", "tab\t"]
    columns = {"image": names, "labels": names[::-1]}
    monkeypatch.setattr(selection, "image_columns", lambda run, side: columns)
    for path in selection.write_ids(symmetric, tmp_path):
        lines = path.read_bytes().decode().splitlines()
        assert len(lines) == 14, path
        assert {
            "an\\nimage",
            "an\\x85image",
            "an\\u2028image",
            "plain",
            "back\\slash",
            "größe",
            "tab\t",
        } < set(lines)


def test_text_files_have_ids_and_every_digit(run, tmp_path):
    path, *_ = run.export("csv", tmp_path, layers=["early"], kernels=["linear"], kinds=["semantic"])
    with path.open(encoding="utf-8", newline="") as file:
        (corner, *columns), *rows = csv.reader(file)
    matrix = run.similarity("early", "linear")
    assert (corner, columns) == ("", IDS)
    assert [row[0] for row in rows] == matrix["image_i"].values.tolist()
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], float), matrix.values)
    frame = pd.read_csv(path, index_col=0)
    np.testing.assert_array_equal(frame.to_numpy(), matrix.values)


def test_matlab_files_have_ids_and_labels_as_cells(run, tmp_path):
    written = run.export("mat", tmp_path, layers=["late"], kernels=["cosine"])
    assert [path.name for path in written] == ["late.semantic.cosine.mat", "late.spatio-semantic.cosine.mat"]
    content = loadmat(written[1], squeeze_me=True)
    matrix = run.similarity("late", "cosine", "spatio-semantic")
    np.testing.assert_array_equal(content["similarity"], matrix.values)
    assert content["image_j"].tolist() == IDS
    assert content["labels_i"].tolist() == matrix["labels_i"].values.tolist()
    assert content["kind"] == "spatio-semantic"
    assert content["tolerance"] == 1e-4


def test_parquet_files_have_a_row_for_each_pair(run, tmp_path):
    path, *tables_of_images = run.export("parquet", tmp_path, layers=["late"], kernels=["rbf"])
    assert path.name == "late.rbf.pairs.parquet"
    table = pyarrow.parquet.read_table(path)
    assert json.loads(table.schema.metadata[b"semrsm"])["kind"] == ["semantic", "spatio-semantic"]
    frame = table.to_pandas()
    semantic, spatial = (run.similarity("late", "rbf", kind) for kind in ("semantic", "spatio-semantic"))
    gap = run.gap("late", "rbf").values
    rows, columns = semantic["image_i"].values, semantic["image_j"].values
    wanted = np.triu_indices(14, 1) if run.is_symmetric else np.indices((6, 14)).reshape(2, -1)
    assert len(frame) == len(wanted[0])
    found = {(row.image_i, row.image_j): row[3:] for row in frame.itertuples()}
    for i, j in zip(*wanted, strict=True):
        assert found[rows[i], columns[j]] == (semantic.values[i, j], spatial.values[i, j], gap[i, j])
    images = pyarrow.parquet.read_table(tables_of_images[0]).to_pylist()
    assert images[8] == {"image": "größe data 8", "uri": "", "labels": ["class 2", "=1+1"], "group": "pair"}
    assert len(tables_of_images) == (1 if run.is_symmetric else 2)


@pytest.mark.parametrize("kernel", ["cosine", "rbf"])
def test_rsatoolbox_reads_dissimilarities_and_agrees_about_their_correlation(symmetric, tmp_path, kernel):
    rdm = pytest.importorskip("rsatoolbox.rdm")
    (path,) = symmetric.export("rsatoolbox", tmp_path, kernels=[kernel])
    assert path.name == f"{kernel}.rdms.hdf5"
    read, made = rdm.load_rdm(str(path)), symmetric.to_rsatoolbox(kernel=kernel)
    assert made.pattern_descriptors["image"] == IDS
    assert read.pattern_descriptors["image"] == [name.replace("öß", r"\xf6\xdf") for name in IDS]
    similarities = [symmetric.similarity(layer, kernel, kind) for layer, kind in MATRICES]
    for rdms in (read, made):
        assert rdms.dissimilarity_measure == f"1 - {kernel} similarity"
        assert rdms.rdm_descriptors["quantity"] == ["dissimilarity"] * 4
        assert list(zip(rdms.rdm_descriptors["layer"], rdms.rdm_descriptors["kind"], strict=True)) == MATRICES
        if kernel == "rbf":
            assert list(rdms.rdm_descriptors["sigma"]) == [one.attrs["sigma"] for one in similarities]
        assert list(rdms.pattern_descriptors["labels"])[1] == "class 1|=1+1"
        assert list(rdms.pattern_descriptors["group"])[7:10] == ["", "pair", "pair"]
        assert (rdms.descriptors["matcher"], float(rdms.descriptors["tolerance"])) == ("auction", 1e-4)
        np.testing.assert_array_equal(rdms.get_matrices(), [1 - one.values for one in similarities])
        late = rdms.subset("layer", "late")
        found = rdm.compare(
            late.subset("kind", "semantic"), late.subset("kind", "spatio-semantic"), "spearman"
        )
        ours = spearmanr(*(above(one.values) for one in similarities[2:])).statistic
        assert found.item() == pytest.approx(ours, abs=1e-12)


def test_mne_rsa_takes_the_condensed_dissimilarities_and_agrees(symmetric, tmp_path):
    mne_rsa = pytest.importorskip("mne_rsa")
    written = symmetric.export("mne-rsa", tmp_path, layers=["late"], kernels=["cosine"])
    files = [path for path in written if path.suffix == ".npy"]
    assert [path.name for path in files] == [
        "late.semantic.cosine.rdm.npy",
        "late.spatio-semantic.cosine.rdm.npy",
    ]
    facts = json.loads((tmp_path / "late.semantic.cosine.rdm.json").read_text())
    assert (facts["quantity"], facts["measure"]) == ("dissimilarity", "1 - cosine similarity")
    similarities = [
        symmetric.similarity("late", "cosine", kind).values for kind in ("semantic", "spatio-semantic")
    ]
    condensed = [np.load(path) for path in files]
    for vector, similarity in zip(condensed, similarities, strict=True):
        np.testing.assert_array_equal(squareform(vector), 1 - similarity)
    np.testing.assert_array_equal(symmetric.to_mne_rsa(layer="late"), condensed[0])
    for metric in ("spearman", "pearson"):
        ours = pd.DataFrame([above(one) for one in similarities]).T.corr(metric).iloc[0, 1]
        assert mne_rsa.rsa(*condensed, metric=metric) == pytest.approx(ours, abs=1e-12)


def test_an_undefined_similarity_is_an_undefined_dissimilarity(tmp_path):
    z = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    z[2] = 0
    np.save(tmp_path / "z.npy", z)
    data = {"source": "features", "layers": {"a": str(tmp_path / "z.npy")}}
    run = srs.run({"run": str(tmp_path / "run"), "data": data})
    assert np.isnan(run.to_mne_rsa()).tolist() == [False, True, False, True, False, True]
    path, *_ = run.export("csv", tmp_path, kinds="semantic")
    assert pd.read_csv(path, index_col=0).isna().sum().sum() == 7


def test_what_has_no_dissimilarities_is_refused_before_anything_is_written(symmetric, rectangular, tmp_path):
    out = tmp_path / "out"
    for to in ("rsatoolbox", "mne-rsa"):
        with pytest.raises(srs.ConfigError, match=r"rows are queries.*export npy, csv, mat, parquet or zarr"):
            rectangular.export(to, out)
        with pytest.raises(srs.ConfigError, match="kernel linear: inner products have no dissimilarity"):
            symmetric.export(to, out, kernels=["cosine", "linear"])
    for call in (rectangular.to_rsatoolbox, rectangular.to_mne_rsa):
        with pytest.raises(srs.ConfigError, match="rows are queries"):
            call(**({"layer": "late"} if "mne" in call.__name__ else {}))
    assert not out.exists()


@pytest.mark.parametrize("to", ["rsatoolbox", "mne-rsa"])
def test_kernels_without_dissimilarities_are_left_out_of_those_of_the_run(symmetric, to, tmp_path, caplog):
    run = srs.open_run(symmetric.directory.path)
    run.record.config["kernels"].append({"name": "linear"})
    written = run.export(to, tmp_path / "out", layers=["late"], kinds=["semantic"])
    assert not [path for path in written if "linear" in path.name]
    assert {kernel for path in written for kernel in ("cosine", "rbf") if kernel in path.name} == {
        "cosine",
        "rbf",
    }
    assert "kernel linear is left out: inner products have no dissimilarity" in caplog.text
    run.record.config["kernels"][:] = [{"name": "linear"}]
    with pytest.raises(srs.ConfigError, match="kernel linear: inner products have no dissimilarity"):
        run.export(to, tmp_path / "linear")
    assert not (tmp_path / "linear").exists()


def test_a_choice_of_nothing_is_refused_and_of_the_same_twice_is_one(
    symmetric, neighbours, tmp_path, monkeypatch
):
    for name in ("layers", "kernels", "kinds"):
        for to in OF_MATRICES:
            with pytest.raises(srs.ConfigError, match=f"{name}: an empty list leaves nothing to export"):
                symmetric.export(to, tmp_path / "out", **{name: []})
    with pytest.raises(srs.ConfigError, match="kernels: an empty list"):
        neighbours.export("csr", tmp_path / "out", kernels=[])
    with pytest.raises(srs.ConfigError, match="layers: an empty list"):
        symmetric.to_rsatoolbox(layers=[])
    assert not (tmp_path / "out").exists()
    twice = {"layers": ["late"] * 2, "kernels": ["cosine"] * 2, "kinds": ["semantic"] * 2}
    once = {name: names[:1] for name, names in twice.items()}
    for to in ("npy", "parquet"):
        written = [path.name for path in symmetric.export(to, tmp_path / "twice", **twice)]
        assert written == [path.name for path in symmetric.export(to, tmp_path / "once", **once)]
    monkeypatch.setattr(type(symmetric), "kernels", [])
    for to in OF_MATRICES:
        with pytest.raises(srs.ConfigError, match="names no kernels: choose one, as in --kernel cosine"):
            symmetric.export(to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_formats_of_neighbours_and_of_matrices_exclude_each_other(symmetric, neighbours, tmp_path):
    for run, formats in ((symmetric, OF_NEIGHBOURS), (neighbours, OF_MATRICES)):
        for to in formats:
            with pytest.raises(
                srs.ConfigError,
                match=r"this run keeps .*, which are exported as .*, not as .*--to (edges|npy)",
            ):
                run.export(to, tmp_path / "out")
    with pytest.raises(srs.ConfigError, match="kind semantic: neighbours are semantic"):
        neighbours.export("edges", tmp_path / "out", kinds=["semantic"])
    with pytest.raises(srs.ConfigError, match=r"unknown format 'numpy'.*did you mean"):
        symmetric.export("numpy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_takes_too_much_is_refused_with_its_size_before_anything_is_written(
    symmetric, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(tables, "LARGEST_MAT", 1000)
        with pytest.raises(srs.LimitError, match=r"a matrix of 14 x 14 takes .*MATLAB files take at most"):
            symmetric.export("mat", out)
    for module in (tables, dissimilarities):
        monkeypatch.setattr(module, "available_memory", lambda: 1000)
    for call in (lambda: symmetric.export("mat", out), symmetric.to_rsatoolbox):
        with pytest.raises(srs.LimitError, match=r"GiB of memory.*but there are"):
            call()
    assert not out.exists()


@pytest.mark.parametrize("to", OF_MATRICES)
def test_a_damaged_run_leaves_no_file_behind_that_looks_whole(symmetric, tmp_path, to):
    shutil.copytree(symmetric.directory.path, tmp_path / "run")
    (tmp_path / "run/tiles.zarr/late/tiles/c/0/2/3").unlink()
    before = tmp_path / "out" / "cosine.rdms.hdf5"
    before.parent.mkdir()
    before.write_bytes(b"earlier")
    kept = []
    if to == "zarr":
        (group,) = symmetric.export(to, before.parent, layers=["late"], kernels=["rbf"])
        kept = sorted((file, file.read_bytes()) for file in group.rglob("*") if file.is_file())
    with pytest.raises(srs.StorageError, match="c/0/2/3: this chunk is missing"):
        srs.open_run(tmp_path / "run").export(to, tmp_path / "out", layers=["late"], kernels=["cosine"])
    assert before.read_bytes() == b"earlier"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        before.name,
        *(["rsm.zarr"] if kept else []),
    }
    assert all(file.read_bytes() == content for file, content in kept)
