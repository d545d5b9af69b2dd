"""Build the similarity matrices of a configuration: what one submits to a Ray cluster.

    ray job submit --working-dir . -- python jobs/build_rsm.py jobs/digits.yaml --set run=/shared/runs/digits

Takes the arguments of `semrsm run`, with the engine `ray` unless told otherwise. The working directory of a
submitted job is a copy that is deleted, so the run directory must be an absolute path that all nodes share.
"""

from __future__ import annotations

import sys

from semrsm_dist.__main__ import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not any(argument.startswith("--engine") for argument in arguments):
        arguments += ["--engine", "ray"]
    sys.exit(main(["run", *arguments]))
