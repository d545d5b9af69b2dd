"""What a report gathers: matched patches, hits and pictures, each checked against what it stands for."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import semrsm_dist as srs
from semrsm_dist.evaluation.retrieval import find_hits
from semrsm_dist.pipeline.stages.evaluation import retrieval_task
from semrsm_dist.progress import SilentReporter
from semrsm_dist.report import gathering as report_data
from semrsm_dist.report import matches as report_matches
from semrsm_dist.report.facts import gap_histogram
from semrsm_dist.report.gathering import gather
from semrsm_dist.report.pictures import read_picture
from semrsm_dist.results.images import CHANGED, ImageReader, see, seen_box

from .conftest import draw, make_run


@pytest.fixture(scope="module")
def gathered(run):
    return gather(run, SilentReporter())


def test_matched_patches_add_up_to_the_similarities_of_the_store(run, gathered):
    for layer in gathered.data.layers:
        found = layer.matches
        semantic, spatial = (
            run.similarity(layer.name, kind=kind).to_numpy() for kind in ("semantic", "spatio-semantic")
        )
        pairs = found.pairs.read()
        assert found.grid == (3, 3)
        assert len(np.unique(pairs, axis=0)) == len(pairs) > 20
        assert np.all(pairs[:, 0] < pairs[:, 1])
        at = tuple(pairs.T)
        np.testing.assert_array_equal(
            np.sort(found.partners.read(), axis=1), np.tile(np.arange(9), (len(pairs), 1))
        )
        np.testing.assert_allclose(found.semantic.read(), semantic[at], rtol=1e-6)
        np.testing.assert_allclose(found.matched.read().sum(axis=1), semantic[at], atol=0.01)
        np.testing.assert_allclose(found.identity.read().sum(axis=1), spatial[at], atol=0.01)


def test_patches_are_matched_again_as_the_matcher_does_it(run, gathered):
    found = gathered.data.layers[1].matches
    z = np.load(run.directory.path.parent / "data.late.npy")
    for pair, partners in zip(found.pairs.read()[:10], found.partners.read(), strict=False):
        i, j = map(int, pair)
        np.testing.assert_array_equal(partners, srs.match(z[i], z[j], tolerance=1e-4).permutation)


def test_hits_are_those_of_the_runs_own_retrieval(run, gathered):
    task = retrieval_task({"images": run.manifest()})
    layer = gathered.data.layers[0]
    for ranking in layer.queries.rankings[:2]:
        expected = find_hits(run.similarity_rows(layer.name, "cosine", ranking.method), task, 8).indices
        np.testing.assert_array_equal(ranking.indices.read(), expected)
        rows = np.arange(len(expected))[:, None]
        matrix = run.similarity(layer.name, kind=ranking.method).to_numpy()
        np.testing.assert_allclose(ranking.score.read(), matrix[rows, expected], rtol=1e-6)
    assert [ranking.method for ranking in layer.queries.rankings] == [
        "spatio-semantic",
        "semantic",
        "average pooling",
    ]


def test_queries_are_compared_with_images_and_kept_by_their_gain(rectangular, monkeypatch):
    monkeypatch.setattr("semrsm_dist.report.retrieval.QUERY_BYTES", 2 * 5 * 3 * 8 * 18)
    found = gather(rectangular, SilentReporter()).data
    queries = found.layers[0].queries
    assert len(queries.rows.read()) == 5
    assert "5 of 7 queries" in queries.note
    assert not found.symmetric
    assert len(found.images["queries"].ids) == 7


def test_neighbours_are_hits_and_have_their_patches(neighbours):
    found = gather(neighbours, SilentReporter())
    layer = found.data.layers[0]
    assert layer.maps is None
    kept = neighbours.neighbours("early")
    np.testing.assert_array_equal(layer.queries.rankings[0].indices.read(), kept["index"].to_numpy())
    assert len(layer.matches.pairs.read()) > 10
    known = {tuple(sorted((i, j))) for i, row in enumerate(kept["index"].to_numpy().tolist()) for j in row}
    assert {tuple(pair) for pair in layer.matches.pairs.read().tolist()} <= known


def test_images_without_labels_are_compared_all_the_same(tmp_path):
    run = make_run(tmp_path, n_images=6, labels=False, pictures=False, layers=("one",))
    found = gather(run, SilentReporter())
    queries = found.data.layers[0].queries
    assert not queries.judged
    assert "label" not in found.data.layers[0].maps.orders
    hits = queries.rankings[0].indices.read()
    assert all(query not in row for query, row in enumerate(hits.tolist()))
    assert found.data.images["images"].thumbnails is None
    assert any("column uri" in note for note in found.notes)


def test_thumbnails_are_the_images(run, gathered):
    images = gathered.data.images["images"]
    assert (images.thumbnails.sizes.read() == [32, 24]).all()
    assert len(images.ids) == 24


def test_missing_images_are_reported_and_not_shown(copy, caplog):
    folder = copy.directory.path.parent
    for path in sorted(folder.glob("data 1*.png")):
        path.unlink()
    (folder / "data 2.png").write_text("no picture")
    found = gather(copy, SilentReporter())
    images = found.data.images["images"]
    shown = images.thumbnails.sizes.read()[:, 0] > 0
    assert not shown[[1, 2, *range(10, 20)]].any()
    assert shown[[0, 3, 4]].all()
    assert "no such file" in images.problems[1]
    assert any("11 of 24 images: there is no such file" in note for note in found.notes)
    assert "lacks pictures of 11 of 24 images: there is no such file" in caplog.text


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 1), (8, 8)), ((3, 4000), (8, 64)), ((4000, 3), (64, 8)), ((320, 240), (64, 48))]
)
def test_a_thumbnail_of_any_image_can_be_seen(shape, size):
    reader = SimpleNamespace(load=lambda index: (Image.new("RGB", shape), ""))
    content, _ = read_picture(reader, 0, 64, seen=False)
    assert Image.open(io.BytesIO(content)).size == size


def test_features_that_are_gone_or_changed_show_no_patches(copy, caplog):
    path = copy.directory.features
    from semrsm_dist.store.features import FeatureStore

    changed = FeatureStore(path, "images", "early")
    changed.write_chunk(0, changed.read(slice(0, 24))[:, ::-1] + 1)
    FeatureStore(path, "images", "late").remove()
    found = gather(copy, SilentReporter())
    assert [layer.matches for layer in found.data.layers] == [None, None]
    assert any("early: matched patches of" in note for note in found.notes)
    needed = "late: matched patches need the run's features"
    assert any(needed in note for note in found.notes)
    assert needed in caplog.text
    assert needed in found.data.layers[1].problem
    assert [ranking.method for ranking in found.data.layers[1].queries.rankings] == [
        "spatio-semantic",
        "semantic",
    ]


def test_pairs_stay_within_their_budgets(run, monkeypatch):
    monkeypatch.setattr(report_data, "MATCH_BYTES", 40 * report_matches.pair_bytes(9))
    monkeypatch.setattr(report_matches, "MOST_IMAGES", 6)
    found = gather(run, SilentReporter()).data
    pairs = [layer.matches.pairs.read() for layer in found.layers]
    assert 0 < sum(map(len, pairs)) <= 40
    assert len(np.unique(np.concatenate(pairs))) <= 6


def test_a_page_of_very_many_images_lists_those_that_it_refers_to(run, monkeypatch):
    monkeypatch.setattr(report_data, "MOST_LISTED", 10)
    images = gather(run, SilentReporter()).data.images["images"]
    assert images.count == 24
    rows = images.rows.read()
    assert [run.manifest().image_ids()[row] for row in rows] == images.ids
    assert len(images.pictured.read()) == 10
    assert len(images.thumbnails.sizes.read()) == 10


def test_the_more_thumbnails_take_the_smaller_they_are(run, gathered, monkeypatch):
    large = gathered.data.images["images"].thumbnails
    sizes = []
    for most in (large.n_bytes, large.n_bytes - 1, 1):
        monkeypatch.setattr(report_data, "THUMBNAIL_BYTES", most)
        thumbnails = gather(run, SilentReporter()).data.images["images"].thumbnails
        assert thumbnails.sizes.read().max() <= thumbnails.cell
        sizes.append(thumbnails.cell)
    assert sizes[0] == large.cell == 64
    assert sizes[1] < 64
    assert sizes[2] == 24


def test_an_image_that_has_changed_is_not_shown(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(4):
        draw(folder / f"{index}.png", index)
    run = srs.run(
        {
            "run": str(tmp_path / "run"),
            "data": {"source": "folder", "path": str(folder)},
            "model": {"name": "test_resnet", "weights": "random", "layers": ["layer4"]},
        }
    )
    draw(folder / "2.png", 99)
    found = gather(run, SilentReporter())
    images = found.data.images["images"]
    assert images.problems == {2: CHANGED}
    assert images.thumbnails.sizes.read()[:, 0].tolist() == [32, 32, 0, 32]
    assert any(f"1 of 4 images: {CHANGED}" in note for note in found.notes)
    reader = ImageReader(run, "images")
    assert read_picture(reader, 2, 64, seen=False) == (None, CHANGED)
    content, problem = read_picture(reader, 1, 20, seen=False)
    assert Image.open(io.BytesIO(content)).size == (20, 15)
    assert problem == ""


@pytest.mark.parametrize("image", [(120, 80), (50, 200), (97, 97)])
@pytest.mark.parametrize(
    ("mode", "crop_pct", "size"),
    [
        ("center", 1.0, (64, 64)),
        ("center", 0.875, (64, 64)),
        ("squash", 0.9, (64, 64)),
        ("center", 1.0, (48, 64)),
        ("border", 1.0, (64, 64)),
    ],
)
def test_the_picture_is_what_the_model_sees(image, mode, crop_pct, size):
    create_transform = pytest.importorskip("timm.data.transforms_factory").create_transform
    ramp = np.stack(
        [
            np.broadcast_to(np.linspace(40, 250, image[0]), image[::-1]),
            np.broadcast_to(np.linspace(40, 250, image[1])[:, None], image[::-1]),
            np.full(image[::-1], 128.0),
        ],
        axis=-1,
    )
    picture = Image.fromarray(ramp.astype(np.uint8))
    config = {"input_size": (3, *size), "crop_pct": crop_pct, "crop_mode": mode, "interpolation": "bicubic"}
    transform = create_transform(**config, mean=(0, 0, 0), std=(1, 1, 1), is_training=False)
    expected = transform(picture).numpy().transpose(1, 2, 0) * 255
    seen = np.asarray(see(picture, config, 224), dtype=float)
    assert seen.shape == expected.shape
    inner = (slice(4, -4), slice(4, -4))
    assert np.abs(seen[inner] - expected[inner]).mean() < 6


def test_the_whole_image_is_seen_without_a_model():
    assert see(Image.new("RGB", (300, 100)), {}, 150).size == (150, 50)
    assert seen_box((100, 50), (50, 50), 1.0, "center") == (25, 0, 75, 50)


def test_a_histogram_of_gaps_counts_its_pairs():
    gaps = np.zeros(400, np.int64)
    gaps[[0, 5]] = 1, 2000
    shown = gap_histogram("late", gaps, 1e-3)
    assert ": 1 pair</title>" in shown
    assert ": 2,000 pairs</title>" in shown
    assert "late: 2,001 pairs;" in shown
    gaps[1] = 7  # those of exact matchers are smaller than any bar
    shown = gap_histogram("late", gaps, None)
    assert "up to 1.5e-12: 7 pairs" in shown and "4.6e-12 to 6.8e-12: 2,000 pairs" in shown
