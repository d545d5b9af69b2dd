"""Extraction in a run: its memory, its devices, and images or models that are not what the run began with."""

from __future__ import annotations

import contextlib
import pickle
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import semrsm_dist as srs
from semrsm_dist.engine.engines.local import LocalEngine
from semrsm_dist.engine.protocol import Receipt, Resources, Task
from semrsm_dist.errors import ConfigError, InputError, ResumeError, WorkError
from semrsm_dist.features import extractor
from semrsm_dist.features.extractor import Extractor
from semrsm_dist.features.models import ModelSpec
from semrsm_dist.pipeline import inputs
from semrsm_dist.pipeline.stages.extraction_worker import ExtractorFactory, choose_device
from semrsm_dist.store.features import FeatureStore


@pytest.mark.timeout(120)
def test_a_worker_holds_few_images_of_full_size(shop):
    size = (3000, 2000)
    first = shop.image("large/0.jpg", size=size).read_bytes()
    for k in range(1, 32):
        (shop.path / "large" / f"{k}.jpg").write_bytes(first)
    for k in range(2):
        shop.image(f"small/{k}.png", seed=k)
    options = {"matching": {"matcher": "greedy"}, "workers": 1}
    documents = [shop.of_images(name, shop.path / name, **options) for name in ("small", "large")]
    for document in documents:
        document["run"] += "-run"
    grown = shop.measure_memory(*documents)
    decoded = size[0] * size[1] * 3
    assert grown < 16 * decoded  # four readers, and what decoding and resizing take; never 32


class AtStage:
    """A reporter that does something when a stage begins."""

    def __init__(self, stage, action):
        self._stage, self._action = stage, action

    @contextlib.contextmanager
    def stage(self, name, *_, **__):
        if name == self._stage:
            self._action()
        yield self

    def advance(self, *_):
        pass

    def tick(self):
        pass

    def note(self, message):
        pass


def test_an_image_replaced_after_the_scan_gives_no_features_under_the_old_hash(shop):
    folder = shop.images(n=4)
    victim = folder / "class1" / "001.png"
    old, other = victim.read_bytes(), shop.image("elsewhere/other.png", seed=9).read_bytes()
    document = shop.of_images("run", folder)
    with pytest.raises(
        WorkError, match=r"class1/001\.png' is no longer the one .* were not taken.* put the old content back"
    ):
        shop.run(document, reporter=AtStage("extraction", lambda: victim.write_bytes(other)))
    assert not any(shop.chunks(shop.path / "run", "features.zarr"))
    victim.write_bytes(old)
    shop.run(document)


def test_queries_and_database_share_the_actors(shop, monkeypatch):
    document = shop.of_images("run", shop.images(n=7), workers=1)
    document["queries"] = {"source": "folder", "path": str(shop.images("queries", n=5))}
    made = []
    make = ExtractorFactory.__call__
    monkeypatch.setattr(ExtractorFactory, "__call__", lambda factory: (made.append(1), make(factory))[1])
    summary = shop.run(document)
    assert len(made) == 1
    assert summary["work"]["extraction"] == {"found": 0, "computed": 2}
    for side, n in (("images", 7), ("queries", 5)):  # each as it is alone
        alone = shop.of_images(f"{side} alone", shop.path / side)
        shop.run(alone)
        for layer in srs.open_run(shop.path / "run").layers:
            together = FeatureStore(shop.path / "run/features.zarr", side, layer)
            apart = FeatureStore(shop.path / f"{side} alone/features.zarr", "images", layer)
            np.testing.assert_array_equal(together.read(slice(0, n)), apart.read(slice(0, n)))
            np.testing.assert_array_equal(together.read_squared_norms(), apart.read_squared_norms())


def with_model(document, **options):
    return document | {"model": document["model"] | options}


def test_a_resume_keeps_the_batches_that_the_run_was_begun_with(shop, monkeypatch):
    folder = shop.images(n=200)  # some chunks more than are done by the time of an interrupt
    document = with_model(shop.of_images("run", folder, workers=1), batch_size=3)
    assert shop.interrupt(document, "extraction", 1)
    used = []
    make = Extractor.__init__

    def spy(self, *args, batch_size, **options):
        used.append(batch_size)
        make(self, *args, batch_size=batch_size, **options)

    monkeypatch.setattr(Extractor, "__init__", spy)
    summary = shop.run(with_model(document, batch_size=7))
    assert set(used) == {3}
    assert any("model.batch_size: 7" in line and "batches of 3" in line for line in summary["warnings"])


def test_a_run_keeps_to_a_compiled_network_or_to_one_that_is_not(shop, monkeypatch):
    monkeypatch.setattr(extractor, "compile_network", lambda read, _device: read)
    document = with_model(shop.of_images("run", shop.images(n=4)), compile=True)
    shop.run(document)
    assert srs.open_run(shop.path / "run").record.fingerprint["model.compile"] is True
    with pytest.raises(ResumeError, match=r"model\.compile"):
        shop.run(with_model(document, compile=False))


def test_features_of_large_jpegs_are_those_of_pillows_drafts(shop):
    folder = shop.images(n=1)
    for name, size in {"a.jpg": (720, 540), "b.jpg": (520, 301), "c.jpg": (255, 257)}.items():
        shop.image(f"images/{name}", size=size)
    document = with_model(shop.of_images("run", folder), jpeg_draft=True)
    shop.run(document)
    run = srs.open_run(shop.path / "run")
    assert run.record.fingerprint["model.jpeg_draft"] is True

    network = Extractor(ModelSpec("test_resnet", "random", 64), ["layer4"], device="cpu")
    resized_to = int(64 / network.model.data_config["crop_pct"])
    pictures = []
    for path, factor in zip(sorted(folder.glob("*.jpg")), (4, 2, 1), strict=True):
        picture = Image.open(path)
        assert max(f for f in (1, 2, 4, 8) if min(picture.size) >= 2 * resized_to * f) == factor
        picture.draft("RGB", tuple(length // factor for length in picture.size))
        pictures.append(picture)
    pictures.append(Image.open(folder / "class0/000.png"))
    stored = FeatureStore(shop.path / "run/features.zarr", "images", "layer4").read(slice(0, 4))
    np.testing.assert_array_equal(stored, network(pictures)["layer4"])
    whole = srs.extract(
        "test_resnet", sorted(folder.glob("*.jpg")), "layer4", weights="random", input_size=64
    )
    assert [bool((z == own).all()) for z, own in zip(stored, whole["layer4"], strict=False)] == [
        False,
        False,
        True,
    ]

    assert shop.command("verify", "--images", shop.path / "run").returncode == 0
    with pytest.raises(ResumeError, match=r"model\.jpeg_draft"):
        shop.run(with_model(document, jpeg_draft=False))


def test_batches_larger_than_a_chunk_are_reported(shop):
    summary = shop.run(with_model(shop.of_images("run", shop.images(n=4)), batch_size=64))
    assert any("batches of 32, as chunks of 32" in line for line in summary["warnings"])
    assert srs.open_run(shop.path / "run").record.batch_size == 32


def test_batches_that_a_gpu_could_not_hold_are_reported_in_the_summary(shop, request):
    def limited(module, inputs):
        if isinstance(module, torch.nn.Conv2d) and len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(limited)
    request.addfinalizer(handle.remove)
    summary = shop.run(with_model(shop.of_images("run", shop.images(n=9)), batch_size=8))
    assert any(
        "was too small for batches of 8" in line and "down to 2" in line for line in summary["warnings"]
    )


def test_what_a_worker_is_given_does_not_grow_with_the_number_of_images(shop, monkeypatch):
    sent = []
    start_actors = LocalEngine.start_actors

    def measured(engine, factory, count, resources):
        pool = start_actors(engine, factory, count, resources)
        submit = pool.submit
        sent.append(len(pickle.dumps(factory)))

        def measured_submit(task):
            sent.append(len(pickle.dumps(task)))
            submit(task)

        monkeypatch.setattr(pool, "submit", measured_submit)
        return pool

    monkeypatch.setattr(LocalEngine, "start_actors", measured)
    largest = []
    for n in (32, 96):  # one chunk, and three
        sent.clear()
        shop.run(shop.of_images(f"run-{n}", shop.images(f"images-{n}", n=n), workers=1))
        assert len(sent) == 1 + n // 32
        largest.append([sent[0], max(sent[1:])])
    np.testing.assert_allclose(largest[1], largest[0], atol=200)  # digits of numbers and names


def test_a_gpu_that_torch_cannot_use_is_not_replaced_by_the_cpu(shop, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(LocalEngine, "gpus", property(lambda self: 1))
    with pytest.raises(
        ConfigError, match=r"torch sees no GPU .* nothing was extracted.*CUDA_VISIBLE_DEVICES"
    ):
        shop.run(shop.of_images("run", shop.images(n=4)))


def test_without_a_gpu_for_it_an_actor_takes_the_cpu_even_where_torch_sees_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(0) == "cpu"


def test_local_actors_take_turns_over_the_gpus(monkeypatch):
    monkeypatch.setattr(LocalEngine, "gpus", 3)
    engine = LocalEngine(4)
    all_there = threading.Barrier(5)

    def make():
        device = choose_device(1)

        def tell(units):
            all_there.wait(10)  # every actor has one task
            yield Receipt(units[0], value=device)

        return tell

    pool = engine.start_actors(make, 4, Resources(gpus=1))
    for unit in range(4):
        pool.submit(Task((unit,)))
    all_there.wait(10)
    pool.close()
    told = [event.receipt.value for event in pool.collect(1) if hasattr(event, "receipt")]
    assert sorted(told) == ["cuda:0", "cuda:0", "cuda:1", "cuda:2"]
    assert choose_device(1) == "cuda:0"  # as in an actor of Ray, which sees its own GPU alone


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda facts: facts.update(weights_sha256="0" * 64), "model.weights_sha256"),
        (lambda facts: facts["preprocessing"].update(crop_pct=0.5), "model.preprocessing.crop_pct"),
        (lambda facts: facts.update(n_prefix_tokens=1), "model.n_prefix_tokens"),
        (None, "layers.layer3.n_tokens"),
    ],
)
def test_a_node_with_another_model_is_refused(shop, change, key):
    shop.run(shop.of_images("run", shop.images(n=3)))
    record = srs.open_run(shop.path / "run").record
    layers = dict(record.model.layers)
    factory = ExtractorFactory(
        run=shop.path / "run",
        record=record,
        sources={},
        layers=layers,
        spec=ModelSpec("test_resnet", "random", (64, 64), seed=0),
        gpus=0,
    )
    factory()
    if change:
        change(record.model.facts)
    else:
        layers["layer3"] = layers["layer3"].model_copy(update={"n_tokens": 17})
    with pytest.raises(ResumeError, match=rf"is not the run's: {key} is .* give all nodes"):
        factory()


def test_another_timm_is_asked_again_what_the_model_is(shop, monkeypatch):
    document = shop.of_images("run", shop.images(n=3))
    shop.run(document)
    version = inputs.metadata.version
    monkeypatch.setattr(inputs.metadata, "version", lambda name: version(name) + "+other")
    describe = inputs.describe_model

    def other(model, layers):
        facts, sizes = describe(model, layers)
        return facts | {"preprocessing": facts["preprocessing"] | {"crop_pct": 0.5}}, sizes

    monkeypatch.setattr(inputs, "describe_model", other)
    with pytest.raises(ResumeError, match=r"crop_pct"):
        shop.run(document)


def damage_a_chunk_of_an_unfinished_run(shop, name):
    """Spoil one chunk of features, and take away a tile and the matrix that would need it."""
    run = shop.path / "run"
    chunk = next(path for path in sorted(run.glob(f"features.zarr/images/*/{name}/c/**/0")) if path.is_file())
    chunk.write_bytes(b"spoilt" + chunk.read_bytes()[6:])
    for tile in shop.tiles(run):
        tile.unlink()


@pytest.mark.parametrize("name", ["features", "pooled", "squared_norm"])
def test_damaged_features_of_an_unfinished_run_are_extracted_again(shop, name):
    document = shop.of_images("run", shop.images(n=5))
    shop.run(document)
    before = shop.tree(shop.path / "run" / "features.zarr")
    damage_a_chunk_of_an_unfinished_run(shop, name)
    summary = shop.run(document)
    assert shop.tree(shop.path / "run" / "features.zarr") == before
    assert summary["work"]["extraction"]["computed"] == 1
    assert any("damaged features of images were removed (chunks: 1)" in line for line in summary["warnings"])


def test_tensors_of_one_file_give_the_same_features_as_arrays(shop):
    array = shop.features(shape=(5, 6, 4))
    shop.run(shop.of_features("of-array", array))
    tensors = {"layer": torch.from_numpy(np.load(array)), "other": torch.ones(5, 2, 2)}
    torch.save(tensors, shop.path / "z.pt")
    document = shop.of_features("of-tensors", shop.path / "z.pt" / "layer")
    for _ in range(2):
        summary = shop.run(document)
    assert not any("gone" in line for line in summary["warnings"])
    trees = [shop.tree(shop.path / name / "features.zarr") for name in ("of-array", "of-tensors")]
    assert trees[0] == trees[1]


def test_a_run_that_holds_all_its_ready_made_features_does_not_need_their_source(shop):
    source = shop.features()
    document = shop.of_features("run", source)
    shop.run(document)
    source.rename(shop.path / "moved.npy")
    summary = shop.run(document)
    assert any("no longer needed: " in line and str(source) in line for line in summary["warnings"])
    misspelt = shop.of_features("run", shop.path / "zz.npy")
    with pytest.raises(InputError, match="no such file"):  # never was the run's source
        shop.run(misspelt)
    next((shop.path / "run").glob("features.zarr/images/*/features/c/0/0/0")).unlink()
    with pytest.raises(
        InputError, match=r"no longer there: .*features .* are missing \(images/last\).*put it back"
    ):
        shop.run(document)


def test_a_run_that_holds_its_features_does_not_need_the_table_of_their_images_either(shop):
    def document(table):
        document = shop.of_features("run", shop.features(shape=(3, 6, 4)))
        return document | {"data": document["data"] | {"table": str(shop.path / table)}}

    (shop.path / "table.csv").write_text("image_id,labels\na,x\nb,x\nc,y\n")
    scores = shop.run(document("table.csv"))["retrieval"]
    (shop.path / "table.csv").rename(shop.path / "moved.csv")
    summary = shop.run(document("table.csv"))
    assert any(
        "no longer needed: " in line and "table.csv" in line and "its own copy" in line
        for line in summary["warnings"]
    )
    assert summary["retrieval"] == scores
    with pytest.raises(InputError, match="does not exist"):  # never was the run's table
        shop.run(document("tabel.csv"))
