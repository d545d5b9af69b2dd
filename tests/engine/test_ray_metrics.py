"""Metrics and logs of a run on a real Ray, as its metrics endpoint and its log files have them."""

import json
import subprocess
import sys

import numpy as np

RUN = """
import json, os, pathlib, sys, time, urllib.request
os.environ["SEMRSM_LOG_FORMAT"] = "json"
import semrsm_dist as srs
from semrsm_dist.engine import make_engine

folder = sys.argv[1]
engine = make_engine("ray", workers=1)
import ray

data = {"source": "features", "layers": {"last": folder + "/z.npy"}}
config = {"run": folder + "/run", "data": data, "matching": {"tile": 4, "attempts": 1}}
srs.run(config, engine=engine)
from semrsm_dist.pipeline.faults import attempt_each
from semrsm_dist.engine import Resources, Task, run_tasks

class Failing:
    def __call__(self, units):
        def fail(unit):
            raise ValueError("broken on purpose")
        return attempt_each(units, fail, pathlib.Path(folder) / "run")

pool = engine.start_tasks(Failing(), Resources())
failures = run_tasks(pool, [Task((0,))], attempts=2, on_receipt=lambda receipt: None)
node = ray.nodes()[0]
url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
found, deadline = {}, time.monotonic() + 60
while "failures" not in found and time.monotonic() < deadline:
    time.sleep(1)
    for line in urllib.request.urlopen(url, timeout=10).read().decode().splitlines():
        if line.startswith("ray_semrsm_") and "_bucket" not in line:
            name, labels = line.split("{", 1)
            work = labels.split('work="')[1].split('"')[0]
            name = name.removeprefix("ray_semrsm_").removesuffix("_total")
            found.setdefault(name, {})[work] = float(line.split()[-1])
logs = pathlib.Path(ray._private.worker._global_node.get_logs_dir_path())
lines = [line for path in logs.glob("worker-*.err") for line in path.read_text().splitlines() if line.startswith("{")]
engine.close()
print(json.dumps({"found": found, "failures": len(failures), "lines": lines}))
"""


def test_the_metrics_endpoint_has_the_work_and_the_workers_log_json(tmp_path):
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(12, 4, 3)))
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["found"]["tiles"]["MatchingWorker"] == 6
    assert told["found"]["pairs"]["MatchingWorker"] == 66
    assert told["found"]["images"]["ImportWorker"] == 12
    assert told["found"]["unit_seconds_count"]["MatchingWorker"] == 6
    assert told["found"]["busy_seconds"]["MatchingWorker"] > 0
    assert told["found"]["failures"]["Failing"] == 2
    assert told["failures"] == 1
    lines = [json.loads(line) for line in told["lines"]]
    assert any(
        "failed here" in line["message"] and "broken on purpose" in line["traceback"] for line in lines
    )
