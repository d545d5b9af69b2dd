"""The images of trials: from all over a run's own, and none twice."""

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from semrsm_dist.data.source import list_entries, load_image
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.pipeline.forecast.samples import Sample, spread


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 9))
def test_samples_are_different_images_from_all_over(total, wanted, seed):
    chosen = spread(total, wanted, seed)
    assert len(chosen) == min(total, wanted)
    assert chosen == sorted(set(chosen))
    for part, index in enumerate(chosen):
        assert part * total // len(chosen) <= index < (part + 1) * total // len(chosen)


def test_samples_are_drafted_as_the_source_does(tmp_path):
    Image.new("RGB", (90, 70)).save(tmp_path / "a.jpg")
    for source, size in ((FolderImages(path=tmp_path), (12, 9)), (DigitScenes(n_images=1), (96, 96))):
        sample = Sample.of(source, list_entries(source))
        assert sample.has_drafts == source.has_drafts
        assert load_image(sample, sample.entries()[0], lambda _: (1, 1)).image.size == size
