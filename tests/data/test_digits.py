"""Scenes of digits: reproducible, labelled by what they show, within the controls that were asked for."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import astuple, replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.handwriting import digit_sources, enlarge
from semrsm_dist.data.sources.digits import DigitScenes, Placement, Scene
from semrsm_dist.errors import ConfigError, InputError


def covered_share(a: Placement, b: Placement) -> float:
    """Share of the smaller box that the other covers, counted pixel by pixel."""
    side = max(a.top + a.size, a.left + a.size, b.top + b.size, b.left + b.size)
    masks = np.zeros((2, side, side), dtype=bool)
    for mask, p in zip(masks, (a, b), strict=True):
        mask[p.top : p.top + p.size, p.left : p.left + p.size] = True
    return float((masks[0] & masks[1]).sum() / min(a.size, b.size) ** 2)


@pytest.fixture
def classes():
    """The digit in every picture, according to scikit-learn."""
    from sklearn.datasets import load_digits

    return load_digits().target


def test_splits_are_stratified_and_share_no_digit(classes):
    training, evaluation = digit_sources("training"), digit_sources("evaluation")
    assert set(np.concatenate(training)).isdisjoint(np.concatenate(evaluation))
    assert sorted(np.concatenate(training + evaluation)) == list(range(1797))
    for digit in range(10):
        assert set(classes[training[digit]]) == set(classes[evaluation[digit]]) == {digit}
        assert 0.29 < len(evaluation[digit]) / (classes == digit).sum() < 0.31


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_scenes_use_only_digits_of_their_split(split):
    scenes = DigitScenes(n_images=100, split=split)
    used = {p.source for k in range(100) for p in scenes.scene(k).placements}
    assert used <= set(np.concatenate(digit_sources(split)))


def test_labels_are_the_digits_placed_according_to_scikit_learn(classes):
    scenes = DigitScenes(n_images=60)
    for index, record in enumerate(scenes.entries()):
        placements = scenes.scene(index).placements
        assert record.labels == tuple(sorted({str(classes[p.source]) for p in placements}))
        assert all(classes[p.source] == p.digit for p in placements)
        assert len(record.labels) == len(placements)


def test_every_number_of_digits_and_every_digit_occurs():
    records = DigitScenes(n_images=300, digits=(1, 4)).entries()
    counts = np.bincount([len(r.labels) for r in records])
    assert counts[0] == 0
    assert len(counts) == 5
    assert counts[1:].min() > 40
    assert {label for r in records for label in r.labels} == set("0123456789")


def test_same_scenes_whatever_the_number_of_images_and_the_order_of_reading():
    few, many = DigitScenes(n_images=5), DigitScenes(n_images=50)
    assert few.entries() == many.entries()[:5]
    record = many.entries()[3]
    first = many.read(record).tobytes()
    assert many.load(many.entries()[4]).sha256 != many.load(record).sha256
    assert few.read(record).tobytes() == first
    assert pickle.loads(pickle.dumps(few)).read(record).tobytes() == first
    assert few.load(record).sha256 == many.load(record).sha256


def test_seed_and_split_change_the_scenes():
    base = DigitScenes(n_images=3)
    others = [
        base.model_copy(update={"seed": 1}),
        base.model_copy(update={"split": "training"}),
        base.model_copy(update={"canvas": 97}),
    ]
    digests = {s.load(s.entries()[0]).sha256 for s in [base, *others]}
    assert len(digests) == 4


def test_pixels_of_the_default_scenes_are_pinned():
    """The shipped weights and published figures belong to these scenes; Pillow's resampling may differ by 1."""
    pixels = DigitScenes().render(DigitScenes().scene(0)).astype(float)
    assert DigitScenes().scene(0).labels == ("0", "1", "4", "7")
    top, left, corner = pixels[:48], pixels[:, :48], pixels[:24, :24]
    found = [part.mean() for part in (pixels, top, left, corner)]
    assert found == pytest.approx([45.703, 50.977, 49.430, 34.226], abs=0.05)


@pytest.mark.parametrize(
    ("controls", "golden"),
    [
        ({}, "ff356d964fe04a70"),
        (
            {
                "canvas": 60,
                "digits": (3, 4),
                "scale": (1.1, 3.3),
                "seed": 4,
                "split": "training",
                "overlap": 0.0,
            },
            "e72527409300f065",
        ),
        ({"digits": (9, 9), "scale": (3, 4), "overlap": 0}, "ac036b86d4efa74f"),
        ({"digits": (15, 15), "scale": (1.5, 2), "overlap": 1.0}, "9266e9ad7a037f88"),
    ],
)
def test_layouts_are_those_of_the_first_version(controls, golden):
    """Runs go on with their scenes, and published numbers hold, whatever controls are added."""
    scenes = DigitScenes(n_images=20, **controls)
    layouts = [repr([astuple(p) for p in scenes.scene(index).placements]) for index in range(20)]
    assert hashlib.sha256("".join(layouts).encode()).hexdigest().startswith(golden)


def test_image_is_rgb_with_equal_channels():
    scenes = DigitScenes(n_images=1, canvas=64, digits=(1, 2))
    image = scenes.read(scenes.entries()[0])
    assert (image.mode, image.size) == ("RGB", (64, 64))
    channels = np.asarray(image)
    assert (channels == channels[..., :1]).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    index=st.integers(0, 10**6),
    low=st.floats(0.5, 5),
    span=st.floats(1, 2),
    n_digits=st.integers(1, 12),
    overlap=st.floats(0, 1),
    canvas=st.integers(32, 128),
)
def test_controls_are_honoured_or_refused(seed, index, low, span, n_digits, overlap, canvas):
    scale = (low, low * span)
    try:
        scenes = DigitScenes(
            n_images=1, digits=(1, n_digits), canvas=canvas, scale=scale, overlap=overlap, seed=seed
        )
    except ConfigError as error:
        assert str(n_digits) in str(error)
        assert str(canvas) in str(error)
        return
    scene = scenes.scene(index)
    assert 1 <= len(scene.placements) <= n_digits
    for p in scene.placements:
        assert round(8 * scale[0]) <= p.size <= round(8 * scale[1])
        assert 0 <= p.top <= canvas - p.size
        assert 0 <= p.left <= canvas - p.size
    for a, b in combinations(scene.placements, 2):
        assert covered_share(a, b) <= overlap + 1e-9
    assert scenes.render(scene).shape == (canvas, canvas)


def test_the_tightest_possible_layout_is_found():
    scenes = DigitScenes(n_images=20, digits=(9, 9), canvas=96, scale=(4, 4), overlap=0)
    for index in range(20):
        corners = {(p.top, p.left) for p in scenes.scene(index).placements}
        assert corners == {(top, left) for top in (0, 32, 64) for left in (0, 32, 64)}


@pytest.mark.parametrize("overlap", [0.1, 0.3, 0.5, 0.8])
def test_crowded_scenes_of_mixed_sizes_keep_to_the_overlap(overlap):
    probe = DigitScenes(n_images=1, digits=(1, 1), canvas=60, scale=(1.1, 3.3), overlap=overlap)
    capacity = len(probe._slots())
    scenes = probe.model_copy(update={"digits": (capacity, capacity)})
    for index in range(10):
        placements = scenes.scene(index).placements
        assert len(placements) == capacity
        assert max(covered_share(a, b) for a, b in combinations(placements, 2)) <= overlap + 1e-9


def test_more_than_ten_digits_repeat_classes_evenly():
    scene = DigitScenes(n_images=1, digits=(15, 15), scale=(1.5, 2), overlap=0.5).scene(0)
    counts = np.bincount([p.digit for p in scene.placements], minlength=10)
    assert counts.sum() == 15
    assert set(counts) == {1, 2}


# --- displacement and pairs ------------------------------------------------------------------------------

SMALL = {"scale": (2.0, 2.75), "canvas": 96}


def centres(scene):
    return {p.digit: (p.top + p.size / 2, p.left + p.size / 2) for p in scene.placements}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**40), indices=st.lists(st.integers(0, 10**6), min_size=2, max_size=6))
def test_without_displacement_each_class_is_at_its_home(seed, indices):
    """Homes are the same in all scenes and for all seeds, up to the pixel that centring an odd box costs."""
    home = {}
    for scenes in (DigitScenes(n_images=1, displacement=0, seed=s, **SMALL) for s in (seed, 0)):
        for index in indices:
            for digit, (top, left) in centres(scenes.scene(index)).items():
                first = home.setdefault(digit, (top, left))
                assert abs(first[0] - top) <= 0.5 and abs(first[1] - left) <= 0.5
    assert len({(round(top), round(left)) for top, left in home.values()}) == len(home)


@settings(max_examples=60, deadline=None)
@given(
    displacement=st.floats(0, 1),
    seed=st.integers(0, 2**40),
    index=st.integers(0, 10**6),
    overlap=st.floats(0, 1),
)
def test_displacement_bounds_how_far_digits_are_from_home(displacement, seed, index, overlap):
    scenes = DigitScenes(n_images=1, overlap=overlap, displacement=displacement, seed=seed, **SMALL)
    home = scenes.model_copy(update={"displacement": 0.0})
    everywhere = {}
    for k in range(200):
        everywhere |= centres(home.scene(k))
    scene = scenes.scene(index)
    for p in scene.placements:
        assert 0 <= p.top <= 96 - p.size and 0 <= p.left <= 96 - p.size
        reach = displacement * (96 - p.size) + 1.0  # rounding of the reach and of centring
        for at, of in zip(centres(scene)[p.digit], everywhere[p.digit], strict=True):
            assert abs(at - of) <= reach
    for a, b in combinations(scene.placements, 2):
        assert covered_share(a, b) <= overlap + 1e-9


def test_digits_are_somewhere_between_home_and_anywhere():
    spread = []
    for displacement in (0.0, 0.2, 0.5, 1.0):
        scenes = DigitScenes(n_images=1, displacement=displacement, digits=(1, 4), **SMALL)
        threes = [centres(scenes.scene(k))[3] for k in range(300) if 3 in centres(scenes.scene(k))]
        spread.append(np.std(threes, axis=0).mean())
    assert spread[0] < 0.5
    assert np.all(np.diff(spread) > 1)


def test_displacement_keeps_digits_sizes_and_background():
    base = DigitScenes(n_images=1, **SMALL)
    for displacement in (0.0, 0.5):
        moved = base.model_copy(update={"displacement": displacement})
        for index in range(10):
            ours, theirs = (
                [(p.digit, p.source, p.size) for p in s.scene(index).placements] for s in (moved, base)
            )
            assert ours == theirs
        empty = Scene(3, ())
        assert (moved.render(empty) == base.render(empty)).all()


@pytest.mark.parametrize("displacement", [0.0, 0.3, 1.0])
def test_pairs_are_labelled_with_the_half_that_each_digit_is_in(displacement):
    scenes = DigitScenes(n_images=80, digits=(2, 2), arrangement="pair", displacement=displacement)
    larger_is_left = []
    for index, record in enumerate(scenes.entries()):
        a, b = sorted(scenes.scene(index).placements, key=lambda p: p.left)
        assert a.left + a.size <= 48 <= b.left
        assert record.labels == (f"left:{a.digit}", f"right:{b.digit}")
        assert a.digit != b.digit
        larger_is_left.append(a.size > b.size)
        if displacement == 0:
            for p, middle in ((a, 24), (b, 72)):
                assert abs(p.top + p.size / 2 - 48) <= 0.5
                assert abs(p.left + p.size / 2 - middle) <= 0.5
    assert 0.3 < np.mean(larger_is_left) < 0.7


def test_digits_are_drawn_by_maximal_brightness():
    scenes = DigitScenes(n_images=1, canvas=32, digits=(1, 2), overlap=1)
    one, two = Placement(3, 3, 2, 2, 24), Placement(4, 4, 6, 6, 24)
    alone = [scenes.render(Scene(0, (p,))) for p in (one, two)]
    both = scenes.render(Scene(0, (one, two)))
    assert (both == np.maximum(*alone)).all()


def test_a_digit_can_be_moved_with_everything_else_kept():
    scenes = DigitScenes(n_images=1, digits=(1, 1))
    scene = scenes.scene(0)
    (p,) = scene.placements
    moved = replace(p, top=(p.top + 40) % (96 - p.size))
    empty = scenes.render(replace(scene, placements=()))
    stroke = scenes.render(scene)[p.top : p.top + p.size, p.left : p.left + p.size]
    after = scenes.render(replace(scene, placements=(moved,)))
    box = after[moved.top : moved.top + p.size, p.left : p.left + p.size]
    strong = stroke > 100
    assert strong.any()
    assert (box[strong] == stroke[strong]).all()
    outside = np.ones_like(after, dtype=bool)
    outside[moved.top : moved.top + p.size, p.left : p.left + p.size] = False
    assert (after[outside] == empty[outside]).all()


@pytest.mark.parametrize(("top", "left"), [(-10, 5), (5, -10), (80, 80), (-200, 0), (0, 200)])
def test_what_leaves_the_canvas_is_cut_off(top, left):
    scenes = DigitScenes(n_images=1)
    image = scenes.render(Scene(0, (Placement(8, 8, top, left, 24),)))
    inside = max(0, min(top + 24, 96) - max(top, 0)) * max(0, min(left + 24, 96) - max(left, 0))
    changed = (image != scenes.render(Scene(0, ()))).sum()
    assert changed <= inside
    assert (changed > 0) == (inside > 0)


@pytest.mark.parametrize(
    ("controls", "words"),
    [
        ({"digits": (10, 10), "scale": (4, 4), "overlap": 0.0}, ["10 digits", "32 px", "96 px", "only 9"]),
        ({"scale": (2, 13)}, ["104 px", "only 0", "smaller scale"]),
        ({"split": "eval"}, ["did you mean 'evaluation'"]),
        ({"n_images": 0}, ["n_images: 0"]),
        ({"digits": (3, 2)}, ["digits: (3, 2)"]),
        ({"digits": (0, 2)}, ["digits.0: 0"]),
        ({"digits": (1, 2, 3)}, ["digits: (1, 2, 3)"]),
        ({"scale": (0, 2)}, ["scale: (0, 2)"]),
        ({"scale": (2, float("inf"))}, ["scale"]),
        ({"scale": (float("nan"), 2)}, ["scale"]),
        ({"overlap": 1.5}, ["overlap: 1.5"]),
        ({"canvas": 4}, ["canvas: 4"]),
        ({"seed": -1}, ["seed: -1"]),
        ({"displacement": 1.5}, ["displacement: 1.5"]),
        ({"displacement": 0.5}, ["home for each of 10 classes", "room for 9 boxes", "smaller scale"]),
        ({"displacement": 0.5, "digits": (2, 12), "scale": (1, 1)}, ["at most 10 digits"]),
        ({"arrangement": "pairs"}, ["did you mean 'pair'"]),
        ({"arrangement": "pair"}, ["digits is (1, 4)", "digits [2, 2]"]),
        ({"arrangement": "pair", "digits": (2, 2), "scale": (4, 6.5), "overlap": 0.6}, ["52 px", "48 px"]),
    ],
)
def test_impossible_requests_are_refused_with_the_numbers(controls, words):
    with pytest.raises(ConfigError) as caught:
        DigitScenes(**controls)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("image_id", ["training-000000", "evaluation-000007", "cat.png", "evaluation-x"])
def test_records_of_another_set_are_refused(image_id):
    with pytest.raises(InputError, match="not one of these 5 evaluation scenes"):
        DigitScenes(n_images=5).read(ImageEntry(image_id, ""))


def test_a_source_is_rebuilt_from_its_fields():
    scenes = DigitScenes(n_images=7, digits=[2, 3], scale=[2, 3], overlap=0.2, seed=5)
    fields = json.loads(scenes.model_dump_json())
    assert DigitScenes(**fields) == scenes
    assert hash(scenes) == hash(DigitScenes(**fields))


def test_the_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    images = load_digits().images
    for source in (0, 5, 1000, 1796):
        expected = np.rint((images[source] * (255 / 16)).astype(np.float32)).astype(np.uint8)
        np.testing.assert_array_equal(enlarge(source, 8), expected)
