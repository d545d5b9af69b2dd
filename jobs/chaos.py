"""Disturb small runs with a seeded sequence of faults, and check after each what a run promises.

    python jobs/chaos.py [--seed 0] [--faults 200] [--engine local ray cluster] [--folder FOLDER] [--table FILE]

A *round* is one run, of ready-made features or of scenes of digits. It is started again and again (a *session*), each
time with files damaged before and with one disturbance at a random moment, until it is finished, and a few times more.
`local` and `ray` start what they need themselves; `cluster` joins several nodes of Ray on this machine.

Checked after each session: it completed, or stopped with a known status and a message with reason and remedy; no
process, lock, shared memory or temporary file is left; no finished chunk was written again, unless it was damaged. And
after each round: every file of the results has the bytes of an undisturbed run, where files that were damaged since the
run had read them last may first need `semrsm verify --repair`. The status is 1 if anything was violated.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")

import yaml
from disturb import damages, machine, nodes, processes
from disturb.runs import SHARES, hash_results, make_documents
from disturb.scene import ENGINES, FEATURES, Fault, Scene, stamps
from disturb.session import Session

FAULTS = (*damages.FAULTS, *machine.FAULTS, *processes.FAULTS, *nodes.FAULTS)


@dataclass
class Tally:
    """What came of the faults, by their names."""

    done: Counter[str] = field(default_factory=Counter)
    of_finished: Counter[str] = field(default_factory=Counter)
    completed: Counter[str] = field(default_factory=Counter)
    violated: Counter[str] = field(default_factory=Counter)
    by_engine: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    n_sessions: int = 0
    n_violations: int = 0

    def table(self) -> str:
        """Return the table in Markdown: a row for the faults of each part of a run, and one for each other fault."""
        counters = (
            *(self.by_engine[engine] for engine in ENGINES),
            self.of_finished,
            self.completed,
            self.violated,
        )
        rows = [
            f"| fault | {' | '.join(ENGINES)} | of a finished run | then completed | violations |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        kinds: dict[str, list[str]] = defaultdict(list)
        for name in (fault.name for fault in FAULTS if self.done[fault.name]):
            kinds[name.partition(": ")[0]].append(name)
        for kind, names in kinds.items():
            ways = ", ".join(f"{way} {self.done[name]}" for name in names if (way := name.partition(": ")[2]))
            cells = [str(sum(counter[name] for name in names)) for counter in counters]
            rows.append(f"| {kind}{f': {ways}' if ways else ''} | {' | '.join(cells)} |")
        totals = [str(counter.total()) for counter in counters[:-1]]
        rows.append(
            f"| all {self.done.total()}, in {self.n_sessions} sessions | {' | '.join(totals)} | {self.n_violations} |"
        )
        return "\n".join(rows)


class Chaos:
    """The whole job; see the module."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.n_faults, self.engines, self.data = options.faults, options.engine, options.data
        self.folder = folder
        self.faults = [fault for fault in FAULTS if re.search(options.kinds, fault.name)]
        self.rng = random.Random(options.seed)
        self.tally = Tally()
        self.documents = make_documents(folder)
        self.truth: dict[str, dict[str, str]] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.cluster: nodes.Cluster | None = None

    def run(self) -> None:
        """Do rounds until there were enough faults."""
        number = 0
        try:
            while self.tally.done.total() < self.n_faults:
                engine = self.engines[number % len(self.engines)]
                name = self.rng.choices(self.data, [SHARES[name] for name in self.data])[0]
                self._round(f"round-{number}", name, engine)
                number += 1
        finally:
            if self.cluster is not None:
                self.cluster.close()

    def _round(self, folder: str, name: str, engine: str) -> None:
        if engine == "cluster" and self.cluster is None:
            self.cluster = nodes.Cluster()
        if name not in self.truth:
            self._prepare(name)
        (self.folder / folder).mkdir()
        scene = Scene(self.rng, self.folder / folder / "run", engine, self.cluster)
        happened: list[str] = []
        for _ in range(self.rng.randint(2, 5)):
            faults = self._choose(scene, name)
            status = self._start(scene, name, faults)
            happened += [fault.name for fault in faults]
            if status == 0 and self.rng.random() < 0.5:
                break
        problems = list(self._finish(scene, name))
        for problem in problems:
            self._violate(happened, f"{folder}: {problem}")
        if not problems:
            shutil.rmtree(self.folder / folder)

    def _prepare(self, name: str) -> None:
        """Do an undisturbed run, and one with other numbers, of which a tile can get lost into others."""
        scene = Scene(self.rng, self.folder / f"whole-{name}", "local")
        self._start(scene, name, [])
        self.truth[name] = hash_results(scene.run)
        found = stamps(scene.run)
        self.sizes[name] = len([path for path in found if "features.zarr" in path.parts]), len(found)
        if name == "features":
            other = Scene(self.rng, self.folder / "foreign", "local")
            self._start(other, name, [], ["--set", "features.dtype=float16"])

    def _finish(self, scene: Scene, name: str) -> list[str]:
        """Start the run without faults until it is complete, repair it if needed, and return what is wrong then."""
        problems = []
        if all(self._start(scene, name, []) != 0 for _ in range(3)):
            problems.append("the run does not complete when it is left alone")
        if wrong := self._differing(scene, name):
            damaged = {path.relative_to(scene.run).as_posix() for path in scene.damaged}
            problems += [f"{file} differs, and was not damaged" for file in wrong if file not in damaged]
            command = [sys.executable, "-m", "semrsm_dist", "verify", str(scene.run), "--repair"]
            done = subprocess.run(
                [*command, "--engine", "local"], capture_output=True, text=True, check=False
            )
            if done.returncode:
                problems.append(f"not repaired: {done.stdout[-500:]} {done.stderr[-500:]}")
            problems += [f"{file} differs after a repair" for file in self._differing(scene, name)]
        strays = [path for path in scene.run.rglob("*") if ".partial" in path.name or ".tmp" in path.name]
        return [*problems, *(f"a temporary file is left: {path}" for path in strays)]

    def _differing(self, scene: Scene, name: str) -> list[str]:
        """Return the files of the results that are not those of an undisturbed run."""
        found, truth = hash_results(scene.run), self.truth[name]
        return sorted(file for file in truth.keys() | found.keys() if found.get(file) != truth.get(file))

    def _choose(self, scene: Scene, name: str) -> list[Fault]:
        """Return faults before a session, and one during it; rare ones more likely."""
        chosen = []
        moments = ["during", "launch"]
        if name == "digits" and len(scene.find(FEATURES)) < self.sizes[name][0] and self.rng.random() < 0.7:
            moments = ["extraction"]
        for wanted, count in ((["before"], self.rng.randint(2, 4)), (moments, 1)):
            known = [f for f in self.faults if f.moment in wanted and scene.engine in f.engines]
            weights = [1 / (1 + 4 * self.tally.done[fault.name]) for fault in known]
            if known and (scene.run.exists() or "before" not in wanted):
                chosen += self.rng.choices(known, weights, k=count)
        return list(dict.fromkeys(chosen))

    def _start(self, scene: Scene, name: str, faults: list[Fault], more: list[str] | None = None) -> int:
        """Do a session, count its faults and what they violated, and return its exit status."""
        self.tally.n_sessions += 1
        was_finished = scene.is_finished
        session = Session(
            scene, [*self._command(scene, name), *(more or [])], self.folder, self.tally.n_sessions
        )
        status = session.run(faults, *self.sizes.get(name, (0, 0)))
        names = [fault.name for fault in session.happened]
        for problem in session.problems:
            self._violate(names, f"session {self.tally.n_sessions} ({scene.run}): {problem}")
        self.tally.done.update(names)
        self.tally.by_engine[scene.engine].update(names)
        self.tally.of_finished.update(names if was_finished else [])
        self.tally.completed.update(names if status == 0 else [])
        print(
            f"{self.tally.n_sessions}: {name} on {scene.engine}: {', '.join(names) or '-'}: {status}",
            flush=True,
        )
        return status

    def _command(self, scene: Scene, name: str) -> list[str]:
        document = self.folder / f"{name}.yaml"
        document.write_text(yaml.safe_dump(self.documents[name]))
        command = [sys.executable, "-m", "semrsm_dist", "run", str(document), "--set", f"run={scene.run}"]
        engine = "local" if scene.engine == "local" else "ray"
        command += ["--engine", engine, "--workers", "2"]
        return [*command, "--address", self.cluster.address] if scene.engine == "cluster" else command

    def _violate(self, names: list[str], what: str) -> None:
        print(f"VIOLATION after {', '.join(names) or 'nothing'}: {what}", flush=True)
        self.tally.n_violations += 1
        self.tally.violated.update(set(names))


def main() -> int:
    """Run the job and return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=["local"])
    parser.add_argument("--data", nargs="+", choices=tuple(SHARES), default=list(SHARES))
    parser.add_argument("--kinds", default="", help="a regular expression: only faults whose names it finds")
    parser.add_argument("--folder", type=Path, help="kept; a temporary one by default")
    parser.add_argument("--table", type=Path, help="file that the table is written to, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        chaos = Chaos(options, folder.absolute())
        with contextlib.suppress(KeyboardInterrupt):  # the table so far is worth something
            chaos.run()
    table = chaos.tally.table()
    print(f"\nseed {options.seed}, engines {', '.join(options.engine)}\n\n{table}")
    if options.table:
        options.table.write_text(f"{table}\n")
    is_whole = chaos.tally.done.total() >= options.faults
    return 0 if is_whole and not chaos.tally.n_violations else 1


if __name__ == "__main__":
    sys.exit(main())
