"""Whole runs with `matching.device: cuda`, on a GPU that the CPU emulates, or on one that is there."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import semrsm_dist as srs
from semrsm_dist.config.schema import parse_config
from semrsm_dist.data.manifest import Manifest
from semrsm_dist.engine.engines import local
from semrsm_dist.errors import ResumeError, WorkError
from semrsm_dist.matching.device import cuda
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.pipeline.inputs import RunInputs
from semrsm_dist.pipeline.memory import allowed_memory
from semrsm_dist.pipeline.sizing import choose_sizes
from semrsm_dist.results.pair import PairMatcher
from semrsm_dist.store.record import LayerSizes
from tests.matching.device.conftest import EmulatedDevice

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return EmulatedDevice(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    if request.param == "cuda":
        reason = cuda.why_no_gpu()
        if reason:
            pytest.skip(reason)
        return
    program = request.getfixturevalue("program")
    monkeypatch.setattr(cuda, "why_no_package", lambda: "")
    monkeypatch.setattr(cuda, "own_device", lambda: program)
    monkeypatch.setattr(local, "available_gpus", lambda: 1)


def document_of(shop, run, *, keep="stored", **matching):
    shop.features(shape=(14, 9, 5))
    output = {"neighbours": 3} if keep == "neighbours" else {"matrices": keep}
    return shop.of_features(run, shop.path / "z.npy", matching={"tile": 4, **matching}, output=output)


def test_a_run_on_a_device_agrees_with_one_on_the_cpu_within_the_certificate(shop, device):
    shop.run(document_of(shop, "cpu"))
    summary = shop.run(document_of(shop, "cuda", device="cuda"))
    runs = [srs.open_run(shop.path / name) for name in ("cpu", "cuda")]
    cpu, gpu = (run.similarity("last").values for run in runs)
    np.testing.assert_allclose(gpu, cpu, rtol=0, atol=1e-3 + 2.0**-23)
    assert [run.record.fingerprint["matching.device"] for run in runs] == ["cpu", "cuda"]
    assert not summary["warnings"]


@pytest.mark.parametrize("against", ["images", "queries"])
def test_neighbours_are_those_of_the_cpu_to_the_last_bit(shop, device, against):
    documents = [document_of(shop, name, keep="neighbours", device=name) for name in ("cpu", "cuda")]
    if against == "queries":
        queries = {"source": "features", "layers": {"last": str(shop.features("q.npy", (6, 9, 5), seed=1))}}
        documents = [document | {"queries": queries} for document in documents]
    shop.run(documents[0])
    assert shop.interrupt(documents[1], "matching", 40)
    summary = shop.run(documents[1])
    assert summary["work"]["matching"]["found"] > 0
    runs = [srs.open_run(shop.path / name) for name in ("cpu", "cuda")]
    cpu, gpu = (run.neighbours("last") for run in runs)
    for name in cpu.data_vars:
        np.testing.assert_array_equal(gpu[name].values, cpu[name].values, err_msg=name)
    assert runs[1].verify(sample=5, seed=0).exit_code == 0


def test_a_gpu_has_four_workers_and_cpus_do_not_join_in(shop, device, monkeypatch):
    started, start = [], local.LocalEngine.start_actors

    def spy(engine, factory, count, resources):
        started.append((count, resources.gpus))
        return start(engine, factory, count, resources)

    monkeypatch.setattr(local.LocalEngine, "start_actors", spy)
    shop.run(document_of(shop, "run", device="cuda"))
    assert started == [(4 * local.available_gpus(), 0.25)]


def config_of(**matching):
    data = {"source": "features", "layers": {"last": "z.npy"}}
    return parse_config({"run": "run", "data": data, "matching": matching})


@pytest.mark.parametrize(
    ("gib_per_gpu", "matching", "gib"),
    [
        (128, {"device": "cuda"}, 16),
        (64, {"device": "cuda"}, 8),  # four workers take half of the memory
        (4, {"device": "cuda"}, 1),
        (0, {"device": "cuda"}, 1),  # not known, as where a cluster has yet to grow
        (128, {"device": "cpu"}, 1),
        (128, {"device": "cuda", "worker_memory": "2GiB"}, 2),
    ],
)
def test_a_worker_on_a_gpu_takes_its_share_of_half_the_memory(device, gib_per_gpu, matching, gib):
    matcher = make_matcher("auction", device=matching["device"])
    machine = {"memory_per_gpu": gib_per_gpu * 2**30}
    assert allowed_memory(config_of(**matching), matcher, machine) == gib * 2**30


@pytest.mark.parametrize(("n_tokens", "n_channels"), [(49, 512), (196, 1024), (1024, 256)])
def test_tiles_grow_until_one_takes_about_a_second(device, n_tokens, n_channels):
    config, matcher = config_of(device="cuda"), make_matcher("auction", device="cuda")
    allowed = allowed_memory(config, matcher, {"memory_per_gpu": 128 * 2**30})
    manifests = {"images": Manifest.from_ids(map(str, range(50_000)))}
    sizes = {"last": LayerSizes(n_tokens=n_tokens, n_channels=n_channels)}
    inputs = RunInputs(manifests, sizes, {})
    layers, _ = choose_sizes(config, matcher, inputs, {}, workers=4, allowed=allowed)
    seconds = matcher.pair_seconds(n_tokens, n_channels) * layers["last"].tile_size ** 2
    assert 0.2 < seconds <= 1.0


def test_the_plan_counts_gpu_hours(shop, device):
    document = shop.of_features("run", shop.features("few.npy", (6, 3, 2)), matching={"device": "cuda"})
    config = shop.write(document)
    done = shop.command("plan", config, "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["gpu_hours"] == pytest.approx(plan["layers"]["last"]["gpu_seconds"] / 3600)
    assert plan["gpu_hours"] > 0


def test_tiles_that_a_gpu_fails_at_are_tried_again(shop, device, monkeypatch):
    shop.run(document_of(shop, "whole", device="cuda"))
    owner, failures = type(cuda.own_device()), [WorkError("GPU 0 failed while computing")] * 2
    launch = owner.launch

    def fail_twice(self, kernel, *arguments):
        if kernel == "match_pairs" and failures:
            raise failures.pop()
        launch(self, kernel, *arguments)

    monkeypatch.setattr(owner, "launch", fail_twice)
    shop.run(document_of(shop, "run", device="cuda"))
    assert not failures
    tiles = [srs.open_run(shop.path / name).similarity("last").values for name in ("whole", "run")]
    np.testing.assert_array_equal(*tiles)


def test_pairs_of_a_run_on_a_device_are_matched_again_without_it(shop, device, monkeypatch):
    shop.run(document_of(shop, "run", device="cuda"))
    monkeypatch.setattr(cuda, "own_device", lambda: pytest.fail("there is no GPU where results are read"))
    run = srs.open_run(shop.path / "run")
    cosines, matcher = run.similarity("last").values, PairMatcher(run, "last")
    assert all(matcher.match(0, column).agrees_with(cosines[0, column]) for column in range(14))


def test_an_interrupted_run_on_a_device_ends_with_the_same_bytes(shop, device):
    document = document_of(shop, "run", device="cuda")
    shop.run(document)
    whole = shop.tree(shop.path / "run" / "tiles.zarr")
    shutil.rmtree(shop.path / "run")
    assert shop.interrupt(document, "matching", 40)
    done = shop.tiles(shop.path / "run")
    assert 0 < len(done) < 10
    shop.run(document)
    assert shop.tree(shop.path / "run" / "tiles.zarr") == whole


def test_a_run_is_not_continued_on_another_device(shop, device):
    shop.run(document_of(shop, "run", device="cuda"))
    with pytest.raises(ResumeError, match=r"matching\.device"):
        shop.run(document_of(shop, "run"))


def test_the_job_that_checks_a_gpu_fails_where_results_are_wrong(device, monkeypatch, capsys):
    job = load_job()
    monkeypatch.setattr(cuda, "why_no_gpu", lambda: "")
    for name in ("describe", "compile_all", "check_product"):
        monkeypatch.setattr(job, name, lambda: ("ok", ""))
    monkeypatch.setattr(job, "agrees_with_scipy", lambda *_: False)
    assert job.main(["--sizes", "9x6", "--images", "2", "--runs", "--skip-tests"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert sum("OFF" in line and "results contradict scipy" in line for line in out) == 3
    assert out[-1] == "something is off"


def test_the_job_that_checks_a_gpu_begins_nothing_when_its_time_is_over(monkeypatch, capsys):
    job = load_job()
    monkeypatch.setattr(cuda, "why_no_gpu", lambda: "")
    monkeypatch.setattr(job, "MOST_SECONDS", 0)
    assert job.main([]) == 3
    *rows, last = capsys.readouterr().out.splitlines()
    assert all("skipped" in row for row in rows)
    assert last == "nothing is off, but not all was checked"


def test_the_job_that_checks_a_gpu_says_why_there_is_none(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert load_job().main([]) == 2
    assert "nothing was checked: this machine has no NVIDIA GPU" in capsys.readouterr().out


def test_the_job_that_checks_a_gpu_names_what_is_not_installed(monkeypatch, capsys):
    job = load_job()
    monkeypatch.setitem(job.NEEDED, "no_such_module", "some-package")
    assert job.main([]) == 2
    assert "pip install some-package" in capsys.readouterr().out


def test_what_tiles_of_a_gpu_cost_the_cpus_is_measured_without_a_gpu():
    measured = load_job("bench_driver").measure_device((9, 4, 40), tile=16, threads=2)
    assert (measured["threads"], measured["tile"]) == (2, 16)
    assert all(cost > 0 for cost in measured.values())


def load_job(name="gpu_check"):
    spec = importlib.util.spec_from_file_location(name, JOBS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
