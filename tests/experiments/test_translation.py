"""Shifted crops: numbers recomputed from the pixels, and what a run is that it must not ask for."""

import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment

from semrsm_dist.config.schema import parse_config
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.experiments.evaluating import compute

evaluate = partial(compute, "translation")

SHIFTS = (0.0, 0.125, 0.3125)
MODEL = {"name": "test_resnet", "weights": "digits", "layers": ["layer4"]}
N = 6


def config(run, data, **sections):
    document = {"run": str(run), "data": data, "model": MODEL, "matching": {"matcher": "hungarian"}}
    return parse_config({**document, **sections})


def digits(run, **sections):
    return config(run, {"source": "digits"}, **sections)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    run = tmp_path_factory.mktemp("translation")
    evidence = evaluate(digits(run), images=N, shifts=SHIFTS, resamples=20)
    return run, evidence


def select(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    return table


def medians(table, kernel, kind, pair):
    rows = select(table, quantity="median similarity", kernel=kernel, kind=kind, pair=pair)
    return rows.sort_values("shift")["value"].to_numpy()


def crops_by_hand(first):
    """Cut 96 of 126 pixels: 15 from the left, `first` from the top."""
    scenes = DigitScenes(n_images=N, canvas=126)
    pixels = [scenes.render(scenes.scene(index)) for index in range(N)]
    return [Image.fromarray(p[first : first + 96, 15:111]).convert("RGB") for p in pixels]


def extract(images):
    from semrsm_dist.features.extractor import Extractor
    from semrsm_dist.features.models import ModelSpec

    extractor = Extractor(
        ModelSpec("test_resnet", "digits"), ["layer4"], precision="float32", device="cpu", batch_size=N
    )
    return extractor([extractor.transform(image) for image in images])["layer4"].astype(float)


def test_medians_and_auc_are_those_of_crops_cut_by_hand(found):
    _, evidence = found
    base = extract(crops_by_hand(0))
    norms = np.linalg.norm(base, axis=(1, 2))
    off = ~np.eye(N, dtype=bool)
    for shift, first in zip(SHIFTS, (0, 12, 30), strict=True):
        moved = extract(crops_by_hand(first))
        affinity = np.einsum("isc,jtc->ijst", moved, base)
        matched = np.array([[a[linear_sum_assignment(-a)].sum() for a in row] for row in affinity])
        identity = np.einsum("ijss->ij", affinity)
        for kind, inner in (("semantic", matched), ("spatio-semantic", identity)):
            cosine = inner / np.outer(np.linalg.norm(moved, axis=(1, 2)), norms)
            rows = select(evidence.table, shift=shift, kind=kind, kernel="cosine").set_index("pair")["value"]
            assert rows["same"] == pytest.approx(np.median(np.diagonal(cosine)), abs=1e-5)
            assert rows["different"] == pytest.approx(np.median(cosine[off]), abs=1e-5)
            auc = np.mean(np.diagonal(cosine)[:, None] > cosine[off])
            if shift:  # without one, rounding decides
                assert rows["same above different"] == pytest.approx(auc, abs=1e-9)
            linear = select(evidence.table, shift=shift, kind=kind, kernel="linear").set_index("pair")
            assert linear["value"]["same"] == pytest.approx(np.median(np.diagonal(inner)), rel=1e-5)


def test_without_a_shift_an_image_is_itself(found):
    _, evidence = found
    still = select(evidence.table, shift=0.0)
    for kernel in ("cosine", "rbf"):
        same = select(still, kernel=kernel, pair="same")
        np.testing.assert_allclose(same["value"], 1.0, atol=1e-6)
        np.testing.assert_allclose(select(still, kernel=kernel, quantity="auc")["value"], 1.0)


def test_matching_undoes_much_of_a_shift(found):
    _, evidence = found
    for kernel in ("cosine", "rbf"):
        semantic, spatial = (
            medians(evidence.table, kernel, kind, "same") for kind in ("semantic", "spatio-semantic")
        )
        assert np.all(np.diff(spatial) < 0)
        assert semantic[-1] > spatial[-1] + 0.05


def test_the_table_is_tidy_and_complete(found):
    run, evidence = found
    table = evidence.table
    assert len(table) == 3 * 2 * len(SHIFTS) * 3
    assert not table.duplicated(["layer", "kernel", "kind", "shift", "quantity", "pair"]).any()
    assert (table["low"] <= table["value"] + 1e-12).all()
    assert set(select(table, pair="same")["n"]) == {N}
    assert set(select(table, pair="different")["n"]) == {N * (N - 1)}
    assert sorted(set(table["pixels"])) == [0, 12, 30]
    assert set(table["seed"]) == {0}
    assert evidence.settings["shifts"] == list(SHIFTS)
    for path in evidence.save(run / "out"):
        assert path.stat().st_size > 0
    assert "layer4" in evidence.text


def test_legends_hide_no_data(small, found):
    assert len(small.draw(found[1]).axes) == 4


def test_a_second_time_computes_nothing_and_finds_the_same(found, stages):
    run, evidence = found
    again = evaluate(digits(run), reporter=stages, images=N, shifts=SHIFTS, resamples=20)
    assert not {"extraction", "matching"} & set(stages.names)
    assert again.table.equals(evidence.table)


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(4):
        rng = np.random.default_rng(index)
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize((60 + 7 * index, 75 - 4 * index)).save(images / f"{index}.png")
    shutil.copy(images / "0.png", images / "copy.png")
    (images / "z.png").write_bytes(b"no image")
    return images


def test_files_are_cropped_and_copies_are_neither_the_same_nor_different(folder, tmp_path):
    data = {"source": "folder", "path": str(folder)}
    asked = {"images": 50, "shifts": [0.2], "resamples": 5}
    with pytest.raises(InputError, match=r"z\.png"):
        evaluate(config(tmp_path / "run", data), **asked)
    evidence = evaluate(config(tmp_path / "run", data, unreadable="skip"), **asked)
    assert set(select(evidence.table, pair="same")["n"]) == {5}
    assert set(select(evidence.table, pair="different")["n"]) == {5 * 4 - 2}
    assert "50 images were requested, but only 5 could be used" in evidence.text


def test_what_cannot_be_cropped_or_compared_is_refused(tmp_path):
    np.save(tmp_path / "z.npy", np.ones((3, 4, 2)))
    ready = parse_config(
        {
            "run": str(tmp_path / "r"),
            "data": {"source": "features", "layers": {"last": str(tmp_path / "z.npy")}},
        }
    )
    with pytest.raises(ConfigError, match="ready-made features"):
        evaluate(ready)
    assert not (tmp_path / "r").exists()
