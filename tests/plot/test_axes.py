"""Figures for users: what is drawn is what was given, into the axes that were given."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import semrsm_dist as srs

mpl.use("agg")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of digit scenes, which have labels and pictures."""
    model = {"name": "test_resnet", "weights": "digits", "layers": ["layer3", "layer4"]}
    data = {"source": "digits", "n_images": 12}
    return srs.run({"run": str(tmp_path_factory.mktemp("digits") / "run"), "data": data, "model": model})


@pytest.fixture
def axes():
    figure = Figure()
    yield figure.subplots()
    figure.savefig("/dev/null", format="png")  # all that was drawn can be rendered


def shown(axes):
    return np.asarray(axes.images[-1].get_array())


def test_a_matrix_is_drawn_sorted_by_label(run, axes):
    matrix = run.similarity("layer4")
    assert srs.plot.rsm(matrix, ax=axes) is axes
    labels = run.manifest().labels()
    order = sorted(range(12), key=lambda index: (len(labels[index]), labels[index], index))
    np.testing.assert_array_equal(shown(axes), matrix.values[np.ix_(order, order)])
    off_diagonal = matrix.values[~np.eye(12, dtype=bool)]
    np.testing.assert_allclose(axes.images[-1].get_clim(), np.quantile(off_diagonal, [0.01, 0.99]))
    assert axes.get_xlabel() == axes.get_ylabel() == "12 images"


def test_or_as_given_or_by_similarity_and_in_colours_that_are_chosen(axes):
    matrix = np.kron(np.eye(2), np.ones((3, 3)))[np.ix_([0, 3, 1, 4, 2, 5], [0, 3, 1, 4, 2, 5])]
    srs.plot.rsm(matrix, limits=(-1.0, 2.0), cmap="magma", ax=axes)
    np.testing.assert_array_equal(shown(axes), matrix)
    assert axes.images[-1].get_clim() == (-1.0, 2.0)
    assert axes.images[-1].get_cmap().name == "magma"
    srs.plot.rsm(matrix, order="cluster", ax=axes)
    np.testing.assert_array_equal(shown(axes), np.kron(np.eye(2), np.ones((3, 3))))


def test_a_rectangular_matrix_has_queries_as_rows_and_of_many_images_some_are_drawn(axes):
    matrix = np.arange(40 * 1000.0).reshape(40, 1000)
    matrix[0, 0] = np.nan
    srs.plot.rsm(matrix, most=100, ax=axes)
    assert shown(axes).shape == (40, 100)
    assert np.isnan(shown(axes)[0, 0])
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("40 queries", "100 of 1,000 images")
    srs.plot.rsm(matrix, order="cluster", most=20, ax=axes)
    assert sorted(shown(axes)[1:, 0]) != []


def test_only_what_is_drawn_of_a_matrix_is_read(axes):
    big = xr.DataArray(np.zeros((10_000, 10_000), np.int8), dims=("image_i", "image_j"))
    srs.plot.rsm(big, most=64, ax=axes)
    assert shown(axes).shape == (64, 64)


def test_without_axes_the_current_ones_are_used():
    figure, axes = plt.subplots()
    assert srs.plot.rsm(np.eye(3)) is axes
    plt.close(figure)


@pytest.mark.parametrize(
    ("matrix", "options", "error", "words"),
    [
        (np.eye(3), {"order": "label"}, srs.ConfigError, "no labels"),
        (np.eye(3), {"order": "size"}, srs.ConfigError, "expected label, cluster or given"),
        (np.eye(3), {"most": 0}, srs.ConfigError, "most: 0"),
        (np.ones(3), {}, srs.InputError, r"found an array of shape \(3,\)"),
        (np.ones((0, 3)), {}, srs.InputError, "found an array of shape"),
    ],
)
def test_what_is_no_matrix_or_order_is_refused(matrix, options, error, words, axes):
    with pytest.raises(error, match=words):
        srs.plot.rsm(matrix, ax=axes, **options)


def test_matched_tokens_are_joined_by_lines_from_picture_to_picture(run, axes):
    pair = run.pair(0, 1, layer="layer4")
    assert pair.grids == ((3, 3), (3, 3))
    assert pair.images[0].size == pair.images[1].size == (96, 96)
    assert srs.plot.matches(pair, least=0, ax=axes) is axes
    assert [image.get_extent() for image in axes.images] == [[0, 1, 1, 0], [1.15, 2.15, 1, 0]]
    shares = pair.contributions / pair.contributions.sum()
    ends = {tuple(np.round(line.get_xydata().ravel(), 9)) for line in axes.lines}
    assert ends == {
        tuple(
            np.round([(s % 3 + 0.5) / 3, (s // 3 + 0.5) / 3, 1.15 + (p % 3 + 0.5) / 3, (p // 3 + 0.5) / 3], 9)
        )
        for s, p in enumerate(pair.permutation)
        if shares[s] >= 0
    }
    widths = [line.get_linewidth() for line in axes.lines]
    assert widths == sorted(widths)
    assert f"{pair.similarity:.3f} after matching" in axes.get_title()


def test_weak_matches_have_no_line_and_a_picture_that_is_missing_is_an_empty_grid(run, axes):
    pair = run.pair(0, 1, layer="layer3")
    bare = srs.Pair(**{**vars(pair), "images": (None, pair.images[1]), "problems": ("it is $gone$", "")})
    srs.plot.matches(bare, least=0.05, ax=axes)
    assert len(axes.lines) == (pair.contributions >= 0.05 * pair.contributions.sum()).sum() < 36
    assert len(axes.images) == 1
    assert any("(no picture: it is $gone$)" in text.get_text() for text in axes.texts)
    with pytest.raises(srs.ConfigError, match="least: 2: expected a share"):
        srs.plot.matches(pair, least=2, ax=axes)


def test_scores_of_a_run_are_bars_with_their_numbers(run, axes):
    assert srs.plot.retrieval(run, ax=axes) is axes
    scores = {(row["method"], row["layer"]): row["f1"] for row in run.summary()["retrieval"] if row["k"] == 1}
    heights = [bar.get_height() for container in axes.containers for bar in container]
    assert sorted(heights) == sorted(scores.values())
    assert {text.get_text() for text in axes.texts} == {f"{value:.2f}" for value in scores.values()}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["layer3", "layer4"]
    with pytest.raises(srs.ConfigError, match="k: 99: there are scores for 1 only"):
        srs.plot.retrieval(run, k=99, ax=axes)


def test_scores_with_intervals_are_points_and_no_scores_are_said_to_be_none(axes):
    rows = [
        {
            "layer": layer,
            "method": method,
            "kernel": "cosine",
            "groups": "none",
            "against": None,
            "k": 1,
            "f1": f1,
        }
        for layer, f1 in (("a", 0.5), ("b", 0.6))
        for method in ("semantic", "chance")
    ]
    table = pd.DataFrame(rows).assign(low=0.4, high=0.7)
    difference = table.iloc[:1].assign(against="chance", f1=0.1)
    srs.plot.retrieval(pd.concat([table, difference], ignore_index=True), ax=axes)
    assert next(list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 2) == [0.5, 0.6]
    assert axes.get_ylabel() == "retrieval F1@1"
    for nothing in (pd.DataFrame(), table.drop(columns="f1")):
        with pytest.raises(srs.InputError, match="there are no retrieval scores"):
            srs.plot.retrieval(nothing, ax=axes)
    with pytest.raises(srs.InputError, match="expected a run, or a table"):
        srs.plot.retrieval("runs/mine", ax=axes)
    with pytest.raises(srs.ConfigError, match=r"expected what Run.pair\(i, j\) returns"):
        srs.plot.matches("runs/mine", ax=axes)


def test_similarities_of_shifted_crops_are_lines_with_quartiles(axes):
    rows = [
        {
            "layer": layer,
            "kernel": "rbf",
            "quantity": "median similarity",
            "kind": kind,
            "pair": pair,
            "pixels": pixels,
        }
        for layer in ("a", "b")
        for kind in ("semantic", "spatio-semantic")
        for pair in ("same", "different")
        for pixels in (0, 8)
    ]
    table = pd.DataFrame(rows).assign(value=0.5, lower_quartile=0.4, upper_quartile=0.6)
    table.loc[table["layer"] == "a", "value"] = 0.25
    assert srs.plot.translation(table, layer="a", ax=axes) is axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.25, 0.25]] * 4
    assert len(axes.collections) == 2  # bands, of crops of one image
    colours = {line.get_label(): to_hex(line.get_color()) for line in axes.lines}
    assert colours["semantic, same image"] == colours["semantic, different images"]
    assert axes.get_title() == "a"
    with pytest.raises(srs.ConfigError, match="unknown layer 'c'"):
        srs.plot.translation(table, layer="c", ax=axes)
    with pytest.raises(srs.InputError, match=r"columns \['pixels'\]"):
        srs.plot.translation(table.drop(columns="pixels"), ax=axes)
