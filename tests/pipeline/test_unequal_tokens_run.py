"""Ready-made features of images that differ in their number of tokens, as a user meets them."""

import numpy as np
import pytest

import semrsm_dist as srs
from semrsm_dist.errors import ConfigError, InputError, ResumeError


@pytest.fixture
def document(shop):
    """Nine images of 3 to 8 tokens, with whatever lies beyond them in the file."""
    rng = np.random.default_rng(0)
    document = shop.of_features("run", shop.save("z.npy", rng.normal(size=(9, 8, 5)).astype(np.float32)))
    counts = shop.save("counts.npy", np.array([8, 3, 3, 5, 8, 4, 6, 7, 3]))
    document["data"]["token_counts"] = {"last": str(counts)}
    return document


def read(document):
    z = np.load(document["data"]["layers"]["last"])
    return [
        image[:count]
        for image, count in zip(z, np.load(document["data"]["token_counts"]["last"]), strict=True)
    ]


def test_the_run_holds_what_the_images_alone_give(shop, document):
    summary = shop.run(document)
    run = srs.open_run(document["run"])
    in_memory = srs.similarity_matrix(read(document), kernel="cosine")
    np.testing.assert_allclose(
        run.similarity("last").values, in_memory, rtol=0, atol=2.0**-23
    )  # float32 tiles
    spatial = run.similarity("last", kind="spatio-semantic").values
    counts = np.array([len(image) for image in read(document)])
    assert np.array_equal(np.isnan(spatial), np.not_equal.outer(counts, counts))
    assert any("differ in their number of tokens" in warning for warning in summary["warnings"])


def test_other_counts_are_another_run(shop, document):
    shop.run(document)
    np.save(document["data"]["token_counts"]["last"], np.array([8, 3, 3, 5, 8, 4, 6, 7, 4]))
    with pytest.raises(ResumeError, match="token_counts_sha256"):
        shop.run(document)


def test_what_lies_beyond_an_images_tokens_is_no_part_of_the_run(shop, document):
    shop.run(document)
    z = np.load(document["data"]["layers"]["last"])
    counts = np.load(document["data"]["token_counts"]["last"])
    z[np.arange(8) >= counts[:, None]] = np.nan
    shop.save("z.npy", z)
    summary = shop.run(document)
    assert all(count["computed"] == 0 for count in summary["work"].values())
    z[1, 2] += 1
    shop.save("z.npy", z)
    with pytest.raises(ResumeError, match=r"images\.last\.sha256"):
        shop.run(document)


def test_token_counts_that_change_while_they_are_imported_are_refused(shop, document):
    counts = np.load(document["data"]["token_counts"]["last"])

    def change():
        shop.save("counts.npy", np.full(9, 8))

    with pytest.raises(InputError, match=r"changed while it was imported, or its token counts did"):
        shop.run(document, before=("import", change))
    assert not shop.chunks(shop.path / "run")
    shop.save("counts.npy", counts)
    assert shop.run(document)["work"]["import"] == {"found": 0, "computed": 1}


def test_a_matcher_that_needs_equal_numbers_refuses_before_anything_is_computed(shop, document):
    document["matching"] = {"matcher": "topk-greedy"}
    with pytest.raises(ConfigError, match=r"token_counts.*'topk-greedy' cannot match"):
        shop.run(document)
    assert not (shop.path / "run" / "features.zarr").exists()


def test_values_within_an_images_tokens_must_be_finite(shop, document):
    z = np.load(document["data"]["layers"]["last"])
    z[3, 5:] = np.nan  # beyond its five tokens
    z[6, 5, 0] = np.nan  # the last of its six
    shop.save("z.npy", z)
    with pytest.raises(InputError, match=r"index 6, layer last\) are NaN") as error:
        shop.run(document)
    assert "index 3" not in str(error.value)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.array([8, 3]), r"counts\.npy: expected the token counts of 9 images"),
        (np.full(9, 9), r"counts\.npy: image 0 is said to have 9 tokens"),
        (np.full(9, 2.0), r"counts\.npy: expected the token counts"),
    ],
)
def test_counts_that_cannot_be_are_refused(shop, document, counts, message):
    shop.save("counts.npy", counts)
    with pytest.raises(InputError, match=message):
        shop.run(document)


def test_counts_of_a_layer_that_is_not_there_are_refused(shop, document):
    document["data"]["token_counts"]["first"] = document["data"]["token_counts"]["last"]
    with pytest.raises(ConfigError, match=r"names unknown layers: first;"):
        shop.run(document)
