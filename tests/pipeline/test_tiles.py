"""How a run is cut into tiles: few files whatever is requested, and tiles larger than a worker's memory."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

import semrsm_dist as srs
from semrsm_dist.config.schema import parse_config
from semrsm_dist.errors import LimitError
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.pipeline import sizing
from semrsm_dist.pipeline.memory import WorkerMemory, allowed_memory
from semrsm_dist.plan import tiling
from semrsm_dist.store.record import LayerRecord

KERNELS = ["cosine", "linear"]


def values(run):
    opened = srs.open_run(run)
    return [
        opened.similarity("last", kernel=kernel, kind=kind).values.tobytes()
        for kernel in ("cosine", "rbf")
        for kind in ("semantic", "spatio-semantic")
    ] + [opened.gap("last").values.tobytes()]


def documents(shop, run, z, queries, **matching):
    document = shop.of_features(run, z, kernels=KERNELS, matching=matching)
    sides = {"queries": {"source": "features", "layers": {"last": str(queries)}}}
    return document, document | sides | {"run": str(shop.path / f"{run}-queries")}


def test_tiles_larger_than_memory_are_solved_in_parts_to_the_same_bits(shop):
    z, queries = shop.features("z.npy", (70, 64, 256)), shop.features("q.npy", (30, 64, 256))
    plain = documents(shop, "plain", z, queries, tile=50)
    little = documents(shop, "little", z, queries, tile=50, worker_memory="16MiB")
    for whole, parts in zip(plain, little, strict=True):
        shop.run(whole)
        shop.run(parts)
        expected, found = (shop.path / document["run"] for document in (whole, parts))
        assert values(found) == values(expected)
        assert len(shop.tiles(found)) == len(shop.tiles(expected)) <= 3
        assert shop.tree(found / "tiles.zarr") == shop.tree(expected / "tiles.zarr")


def test_requested_tiles_that_would_make_too_many_files_are_grouped(shop, monkeypatch):
    z = shop.features("z.npy", (21, 4, 3))
    shop.run(shop.of_features("plain", z, kernels=KERNELS, matching={"tile": 2}))
    assert len(shop.tiles(shop.path / "plain")) == 11 * 12 // 2
    monkeypatch.setattr(tiling, "MOST_TILES", 30)
    document = shop.of_features("few", z, kernels=KERNELS, matching={"tile": 2})
    summary = shop.run(document)
    assert len(shop.tiles(shop.path / "few")) == 6 * 7 // 2
    assert any("tiles of 4 x 4 are written" in warning for warning in summary["warnings"])
    assert values(shop.path / "few") == values(shop.path / "plain")
    shop.tiles(shop.path / "few")[5].unlink()
    assert shop.run(document)["work"]["matching"]["computed"] == 1


def test_very_many_images_make_larger_feature_chunks(shop, monkeypatch):
    monkeypatch.setattr(sizing, "MOST_PANELS", 3)
    shop.run(shop.of_features("run", shop.features(shape=(200, 4, 3))))
    assert {path.name for path in (shop.path / "run/features.zarr/images/last").glob("*/c/*")} <= set("012")
    assert srs.open_run(shop.path / "run").record.chunk_size == 128


def test_a_panel_is_a_power_of_two_where_a_whole_one_does_not_fit(shop):
    layer = LayerRecord(n_tokens=64, n_channels=256, tile_size=50, pair_seconds=1e-5)

    def size(memory):
        config = parse_config(
            shop.of_features("-", shop.features("z.npy"), matching={"worker_memory": memory})
        )
        matcher, counts = make_matcher("auction"), {"images": 100}
        return WorkerMemory(config, matcher, counts, allowed_memory(config, matcher, {})).panel_size(layer)

    assert size("1GiB") == 50
    assert size("16MiB") in {1, 2, 4, 8, 16, 32}


def test_a_tile_larger_than_the_matrix_takes_no_memory_for_what_lies_beyond(shop):
    z = shop.features("wide.npy", (60, 4, 4))
    matching = {"tile": 5000, "worker_memory": "16MiB"}
    shop.run(shop.of_features("wide", z, matching=matching))
    assert shop.run(shop.of_features("wide", z, matching=matching))["work"]["matching"]["computed"] == 0
    np.testing.assert_allclose(
        srs.open_run(shop.path / "wide").similarity("last").values,
        srs.similarity_matrix(np.load(z), kernel="cosine"),
        rtol=1e-6,
    )


def test_a_tile_of_few_queries_takes_the_memory_of_its_pairs_alone(shop):
    z, queries = shop.features("long.npy", (1500, 2, 2)), shop.features("short.npy", (3, 2, 2))
    _, document = documents(shop, "long", z, queries, tile=2000, worker_memory="16MiB", matcher="greedy")
    shop.run(document)  # 1500 x 1500 pairs would take 150 MiB
    np.testing.assert_allclose(
        srs.open_run(document["run"]).similarity("last").values,
        srs.similarity_matrix(np.load(queries), np.load(z), kernel="cosine", matcher="greedy"),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("nodes", "memory", "refused"),
    [
        (1, 2**20, True),
        (1, 2**40, False),
        (1, 0, False),  # not known
        (0, 0, False),  # the bare head of a cluster that grows
        (3, 2**20, False),  # as may one of several nodes
    ],
)
def test_memory_is_compared_with_that_of_one_machine_alone(shop, nodes, memory, refused):
    document = shop.of_features("run", shop.features())
    shop.run(document)
    engine = SimpleNamespace(describe=lambda: {"nodes": nodes, "memory": memory})
    session = SimpleNamespace(config=parse_config(document), engine=engine)
    with pytest.raises(LimitError, match=r"lower matching\.worker_memory") if refused else nullcontext():
        sizing.require_memory(session, make_matcher("auction"), srs.open_run(document["run"]).record)
