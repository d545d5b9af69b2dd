"""Distributions with plugins, installed for a test, and commands in a process that finds them."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

IN_TURN = """
import contextlib, io, json, os, sys
from semrsm_dist.cli.commands import main

for folder, arguments in json.loads(sys.argv[1]):
    os.chdir(folder)
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            status = main(arguments)
        except SystemExit as end:  # after its help
            status = end.code
    print(json.dumps([status, out.getvalue(), errors.getvalue()]))
"""


def install(site, name, entry_points, module=None):
    """Write a distribution, and the module of its own name if one is given, as an installer leaves them."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    if module is not None:
        (site / f"{name}.py").write_text(module)


def finding(*sites):
    """Return the environment of a process that finds the distributions in these folders."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*sites, ROOT]))}


def give(commands, *sites, more=""):
    """Return status, output and errors of commands, given each in its folder, with the libraries loaded once.

    `more` is code to run after them.
    """
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN + more, json.dumps([[str(folder), a] for folder, a in commands])],
        env=finding(*sites),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
