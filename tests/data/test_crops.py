"""Shifted crops: the right pixels of the right image, wherever it comes from."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from semrsm_dist.data.entries import ImageEntry, UnreadableImageError
from semrsm_dist.data.sources.crops import ShiftedCrops, crop_box, crop_id, largest_shift
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.errors import ConfigError, InputError


def test_the_papers_crops_share_44_of_64_rows():
    top, bottom = crop_box((84, 84), 64 / 84, 0), crop_box((84, 84), 64 / 84, largest_shift(64 / 84))
    assert top == (10, 0, 74, 64)
    assert bottom == (10, 20, 74, 84)


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    share=st.floats(0.01, 1),
    where=st.floats(0, 1),
)
def test_a_crop_is_a_square_within_the_central_square(width, height, share, where):
    left, top, right, bottom = crop_box((width, height), share, where * largest_shift(share))
    square = min(width, height)
    assert right - left == bottom - top == max(1, round(share * square))
    assert (width - square) // 2 <= left and right <= (width - square) // 2 + square
    assert (height - square) // 2 <= top and bottom <= (height - square) // 2 + square


def test_crops_are_the_pixels_of_their_images_in_the_order_of_shifts():
    scenes = DigitScenes(n_images=3, canvas=84)
    crops = ShiftedCrops(of=scenes, shifts=(0.0, 0.25))
    records = crops.entries()
    assert [r.image_id for r in records] == [
        crop_id(f"evaluation-00000{index}", shift) for shift in (0, 0.25) for index in range(3)
    ]
    assert [r.labels for r in records] == 2 * [r.labels for r in scenes.entries()]
    for record, original in zip(records, 2 * scenes.entries(), strict=True):
        whole, crop = (np.asarray(s.read(r)) for s, r in ((scenes, original), (crops, record)))
        first = 16 if record.image_id.endswith("0.2500") else 0
        np.testing.assert_array_equal(crop, whole[first : first + 64, 10:74])


def test_hashes_tell_images_and_places_apart_and_survive_a_journey():
    crops = ShiftedCrops(of=DigitScenes(n_images=4, canvas=84), shifts=(0.0, 0.1, 0.2))
    records = crops.entries()
    hashes = [crops.load(record).sha256 for record in records]
    assert len(set(hashes)) == len(records)
    travelled = pickle.loads(pickle.dumps(crops))
    assert [travelled.load(record).sha256 for record in records] == hashes
    again = ShiftedCrops(of=DigitScenes(n_images=4, canvas=84), shifts=(0.1,))
    assert again.load(again.entries()[2]).sha256 == hashes[4 + 2]


def test_a_sample_keeps_the_order_and_depends_on_its_seed():
    scenes = DigitScenes(n_images=50, canvas=84)
    names = [record.image_id for record in scenes.entries()]

    def drawn(seed, n=10):
        return [r.image_id.split("@")[0] for r in ShiftedCrops(of=scenes, sample=n, seed=seed).entries()]

    assert len(set(drawn(0))) == 10
    assert sorted(drawn(0), key=names.index) == drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert drawn(0, 50) == drawn(0, 80) == names


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cat").mkdir()
    for index, size in enumerate([(30, 50), (50, 30)]):
        pixels = np.random.default_rng(index).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "cat" / f"{index}@x.png")
    (tmp_path / "cat" / "z.png").write_bytes(b"none")
    return FolderImages(path=tmp_path)


def test_files_of_any_shape_are_cropped_and_stamped(folder):
    crops = ShiftedCrops(of=folder, share=0.5, shifts=(0.0, 1.0))
    records = crops.entries()
    for record, original in zip(records[:2], folder.entries(), strict=False):
        loaded = crops.load(record)
        assert loaded.image.size == (15, 15)
        assert crops.stamp(record) == folder.stamp(original)
        assert loaded.n_bytes == folder.stamp(original)[0]
        assert record.labels == ("cat",)
    tall = np.asarray(folder.read(folder.entries()[0]))
    np.testing.assert_array_equal(np.asarray(crops.read(records[3])), tall[25:40, 7:22])


def test_an_unreadable_file_is_reported_by_its_own_name(folder):
    crops = ShiftedCrops(of=folder)
    with pytest.raises(UnreadableImageError, match=r"cat/z\.png"):
        crops.read(crops.entries()[2])


@pytest.mark.parametrize(
    ("controls", "words"),
    [
        ({"share": 0}, "share: 0"),
        ({"share": 1.2}, "share: 1.2"),
        ({"shifts": (0, 0.4)}, "0 to 0.3125"),
        ({"shifts": (-0.1,)}, "shifts.0: -0.1"),
        ({"shifts": ()}, "at least 1"),
        ({"shifts": (float("nan"),)}, "shifts.0: nan"),
        ({"shifts": (0.1, 0.10000001)}, "each once"),
        ({"sample": 0}, "sample: 0"),
    ],
)
def test_impossible_crops_are_refused(controls, words):
    with pytest.raises(ConfigError, match=words):
        ShiftedCrops(of=DigitScenes(n_images=2), **controls)


@pytest.mark.parametrize("image_id", ["evaluation-000000", "evaluation-000000@0.3000"])
def test_records_of_other_crops_are_refused(image_id):
    with pytest.raises(InputError, match="not one of these crops"):
        ShiftedCrops(of=DigitScenes(n_images=2)).load(ImageEntry(image_id, ""))
