"""Whole runs in an object store: the bytes of one on a disk, whatever fails on the way."""

import itertools
import json
import logging
import random

import numpy as np
import pytest

import semrsm_dist as srs
from semrsm_dist.cli import commands as cli
from semrsm_dist.errors import StorageError
from semrsm_dist.progress import SilentReporter
from semrsm_dist.results.status import read_status
from semrsm_dist.store.objects import ObjectPath
from semrsm_dist.store.paths import list_files, list_names

OWN = {
    "lock",
    "progress.json",
    "events.jsonl",
    "run.json",
    "run.copy.json",
    "summary.json",
    "inventory.parquet",
    "figures/overview.png",
}
"""Names the place of the run, or times."""


def is_own(name):
    """Return whether a file may differ: candidates depend on which tile came first."""
    return name in OWN or name.startswith("candidates.zarr")


def features(tmp_path, **sections):
    path = tmp_path / "z.npy"
    if not path.exists():
        np.save(path, np.random.default_rng(0).normal(size=(30, 6, 4)).astype(np.float32))
    return {
        "data": {"source": "features", "layers": {"a b#%": str(path)}},
        "matching": {"tile": 8},
        "workers": 2,
        **sections,
    }


def images(tmp_path):
    model = {"name": "test_resnet", "weights": "digits", "layers": ["layer3", "layer4"]}
    scenes = {"source": "digits", "n_images": 10}
    return {"data": scenes, "queries": {**scenes, "n_images": 4}, "model": model, "workers": 2}


def stored(tmp_path):
    return features(tmp_path, output={"matrices": "stored"})


def neighbours(tmp_path):
    return features(tmp_path, output={"neighbours": 3})


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """The files of a run on disk, by the function that describes it."""
    done = {}

    def files(make):
        if make not in done:
            path = tmp_path_factory.mktemp("disk")
            srs.run({**make(path), "run": str(path / "run")})
            names = [file for file in (path / "run").rglob("*") if file.is_file()]
            done[make] = {file.relative_to(path / "run").as_posix(): file.read_bytes() for file in names}
        return {name: content for name, content in done[make].items() if not is_own(name)}

    return files


def objects(uri):
    folder = ObjectPath(uri)
    return {name: (folder / name).read_bytes() for name in list_files(folder) if not is_own(name)}


ONE_STORE = pytest.mark.parametrize("server", ["s3"], indirect=True)
"""For what is the same in all stores."""


@pytest.mark.parametrize(
    ("server", "make"),
    [*(("s3", make) for make in (features, images, stored, neighbours)), ("gs", features), ("az", images)],
    indirect=["server"],
)
def test_a_run_has_the_bytes_of_one_on_disk(bucket, tmp_path, on_disk, make):
    srs.run({**make(tmp_path), "run": f"{bucket}/runs/one"})
    assert objects(f"{bucket}/runs/one") == on_disk(make)
    own = OWN - {"figures/overview.png"}
    assert set(list_names(ObjectPath(bucket))) == {"runs"}
    found = {name for name in list_files(ObjectPath(f"{bucket}/runs/one")) if "candidates" not in name}
    assert found == on_disk(make).keys() | own


@ONE_STORE
def test_a_run_on_ray_has_them_too(bucket, tmp_path, on_disk):
    srs.run({**features(tmp_path), "run": f"{bucket}/runs/one", "engine": "ray"})
    assert objects(f"{bucket}/runs/one") == on_disk(features)


def test_a_run_goes_on_through_faults(proxy, bucket, tmp_path, on_disk):
    draw, kinds = random.Random(0), itertools.cycle([500, "lose", 503, "drop"])
    hung = itertools.count()

    def fail(method, path):
        if method == "PUT" and "/tiles.zarr/" in path and next(hung) == 3:
            return "hang"
        return next(kinds) if draw.random() < 0.2 else None

    proxy.choose = fail
    srs.run({**features(tmp_path), "run": f"{bucket}/runs/one"})
    assert set(proxy.failed) == {500, 503, "drop", "lose", "hang"}
    proxy.choose = lambda method, path: None
    assert objects(f"{bucket}/runs/one") == on_disk(features)


@ONE_STORE
def test_what_is_lost_or_damaged_is_computed_again_and_nothing_else(bucket, tmp_path, on_disk):
    document = {**features(tmp_path), "run": f"{bucket}/runs/one"}
    srs.run(document)
    run = ObjectPath(document["run"])
    tiles = [name for name in list_files(run) if name.startswith("tiles.zarr/a b#%/tiles/c/")]
    (run / tiles[0]).remove()
    (run / tiles[1]).write((run / tiles[1]).read_bytes()[:-3])
    (run / "run.json").remove()
    (run / "summary.json").remove()
    computed = srs.run(document).summary()["work"]["matching"]["computed"]
    assert computed == 2
    assert objects(document["run"]) == on_disk(features)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write(bytes(content))


@pytest.mark.parametrize(("server", "make"), [("s3", neighbours), ("az", stored)], indirect=["server"])
def test_a_verification_finds_what_is_broken_and_a_repair_mends_it(bucket, tmp_path, on_disk, make, capsys):
    uri = f"{bucket}/runs/one"
    srs.run({**make(tmp_path), "run": uri})
    assert srs.open_run(uri).verify(images=True, seed=0).exit_code == 0
    run, layer = ObjectPath(uri), "a b#%"
    results = f"tiles.zarr/{layer}/tiles" if make is stored else f"neighbours.zarr/{layer}/indices"
    one, two = [name for name in list_files(run) if name.startswith(f"{results}/c/")][:2]
    features = f"features.zarr/images/{layer}"
    flip(run / one)
    (run / two).remove()
    flip(run / f"{features}/features/c/0/0/0")
    (run / f"{features}/pooled/zarr.json").write(b"{")
    (run / "run.copy.json").remove()
    expected = {
        (results, "damaged"),
        (results, "missing"),
        (f"{features}/features", "damaged"),
        (f"{features}/pooled", "description"),
        ("run.copy.json", "missing"),
    }
    if make is stored:
        flip(run / f"rsm.zarr/{layer}/matched/c/0/0")
        expected.add((f"rsm.zarr/{layer}/matched", "damaged"))
    found = {(fault.array, str(fault.kind)) for fault in srs.open_run(uri).verify(fast=True).faults}
    assert found >= expected - {(f"{features}/features", "damaged")}  # a feature chunk is read with its norms
    assert cli.main(["verify", uri, "--fast"]) == 1
    assert cli.main(["verify", uri, "--repair", "--seed", "0"]) == 0
    assert f"repaired: {results}" in capsys.readouterr().out
    assert srs.open_run(uri).verify(seed=0).exit_code == 0
    assert objects(uri) == on_disk(make)


class Robber(SilentReporter):
    """Takes the lease when matching begins."""

    def __init__(self, lock):
        self.lock = lock

    def stage(self, name, *arguments, **options):
        if name == "matching":
            self.lock.write(b'{"holder": "somebody else"}')
        return super().stage(name, *arguments, **options)


def test_a_run_whose_lease_was_taken_stops(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("semrsm_dist.store.lease.RENEWAL_SECONDS", 0.2)
    monkeypatch.setattr("semrsm_dist.store.lease.LEASE_SECONDS", 0.3)
    uri = f"{bucket}/runs/one"
    with pytest.raises(StorageError, match="another driver has taken over the lease"):
        srs.run({**features(tmp_path), "run": uri}, reporter=Robber(ObjectPath(f"{uri}/lock")))
    assert "summary.json" not in list_files(ObjectPath(uri))


@ONE_STORE
@pytest.mark.usefixtures("few_trials")
def test_commands_take_uris(bucket, tmp_path, capsys, caplog):
    uri = f"{bucket}/runs/one"
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**features(tmp_path), "run": uri}))

    def semrsm(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        said_all.append(said.out + said.err)
        return status, said.out, said.err

    said_all: list[str] = []
    with caplog.at_level(logging.DEBUG):
        status, out, _ = semrsm("plan", config)
        assert (status, "no limit" in out) == (0, True)
        assert list(list_files(ObjectPath(bucket))) == []  # of its trials nothing is left
        status, _, err = semrsm("status", uri)
        assert (status, "there is no run here" in err) == (2, True)
        status, out, _ = semrsm("run", config)
        assert (status, f"open_run('{uri}')" in out) == (0, True)
        assert f"semrsm report {uri} -o report.html\n" in out
        status, out, _ = semrsm("status", uri)
        assert (status, "10/10 tiles" in out) == (0, True)
        status, out, _ = semrsm("run", config)
        assert (status, "nothing was computed" in out) == (0, True)
        status, _, err = semrsm("export", uri, "--to", "npy")
        assert (status, "choose a folder with --out" in err) == (2, True)
        for kind in ("npy", "zarr"):
            assert semrsm("export", uri, "--to", kind, "--out", tmp_path / "out")[0] == 0
        status, _, err = semrsm("evaluate", "retrieval", config)
        assert (status, "experiments take a run on a file system" in err) == (2, True)
        status, _, err = semrsm("run", config, "--set", "run=s3://user:hunter2@bucket/run")
        assert (status, "hunter2" in err) == (2, False)
    run = srs.open_run(uri)
    exported = np.load(tmp_path / "out" / "a b#%.semantic.cosine.npy")
    np.testing.assert_array_equal(run.similarity("a b#%"), exported)
    assert read_status(uri)["complete"]
    everything = [ObjectPath(f"{uri}/{name}").read_bytes() for name in list_files(ObjectPath(uri))]
    assert not any(b"do-not-tell-anybody" in content for content in everything)
    assert "do-not-tell-anybody" not in "".join([*said_all, caplog.text])
