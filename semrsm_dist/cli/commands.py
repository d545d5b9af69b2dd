"""The command `semrsm`. Results go to standard output, everything else to standard error.

Exit status: 0 done, 1 some work failed, 2 usage, configuration or a refused resume, 3 incomplete, 130
interrupted. What a command needs is imported when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semrsm_dist.cli.interrupts import INTERRUPTED, stopping_in_order
from semrsm_dist.cli.options import make_parser
from semrsm_dist.cli.output import complain, show
from semrsm_dist.engine import logs
from semrsm_dist.errors import ConfigError, SemrsmError
from semrsm_dist.progress import ConsoleReporter, NoteHandler

if TYPE_CHECKING:
    from semrsm_dist.results.run import Run

INCOMPLETE = 3
_RESUMABLE = ("run", "evaluate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # never end for a character that it cannot write
    options = make_parser().parse_args(arguments)
    with _reporting(options) as report_error:
        try:
            return _execute(options)
        except SemrsmError as error:
            report_error(str(error))
            return error.exit_code
        except (MemoryError, SystemError) as error:
            if not _is_out_of_memory(error):
                raise
            report_error(
                "the memory does not suffice; what was finished is kept: use fewer workers (--workers) or lower "
                "matching.worker_memory, then start the same command"
            )
            return 1
        except KeyboardInterrupt as error:
            by = f" by {error}" if error.args else ""
            # A repair that is started again may find no fault any more.
            repairs = getattr(options, "repair", False)
            command = "the run's" if repairs else "the same"
            kept = f"; what was finished is kept, {command} command continues"
            report_error(f"interrupted{by}{kept if repairs or options.command in _RESUMABLE else ''}")
            return INTERRUPTED


def _execute(options: argparse.Namespace) -> int:
    """Run a subcommand and return its exit status; where it ends for lack of a temporary folder, say so."""
    try:
        return _COMMANDS[options.command](options)
    except FileNotFoundError:
        from semrsm_dist.machine import require_temporary_folder

        require_temporary_folder()
        raise


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a MemoryError, or what Python makes of one that an extension did not pass on."""
    cause: BaseException | None = error
    while isinstance(cause, SystemError):
        cause = cause.__cause__
    return isinstance(cause, MemoryError)


@contextlib.contextmanager
def _reporting(options: argparse.Namespace) -> Iterator[Callable[[str], None]]:
    """Set `options.reporter`, show what is logged, and yield what shows an error: all in the chosen format."""
    report_error: Callable[[str], None] = complain
    handler: logging.Handler
    if getattr(options, "log_format", None) == "json":
        os.environ[logs.VARIABLE] = "json"  # for workers
        options.reporter, handler = logs.LogReporter(), logs.log_json()
        report_error = logging.getLogger(__name__).error
    else:
        options.reporter = ConsoleReporter()
        handler = NoteHandler(options.reporter)
        handler.setLevel(logging.WARNING)
        logging.getLogger().addHandler(handler)
    try:
        yield report_error
    finally:
        logging.getLogger().removeHandler(handler)


def _load(options: argparse.Namespace) -> Any:
    from semrsm_dist.config.schema import load_config

    return load_config(options.config, _overrides(options))


def _overrides(options: argparse.Namespace) -> list[str]:
    overrides = list(options.set)
    for name in ("engine", "address", "workers"):
        value = getattr(options, name, None)
        if value is not None:
            overrides.append(f"--{name}={json.dumps(value)}")
    return overrides


def _folder(options: argparse.Namespace, default: Path) -> Path:
    """Return the output folder, before anything is computed for it."""
    folder: Path = options.out or default
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{folder}: {path} is a file, not a folder; choose another folder with --out")
    return folder


def _run(options: argparse.Namespace) -> int:
    config = _load(options)
    from semrsm_dist.pipeline.driver import run
    from semrsm_dist.pipeline.summary import format_summary
    from semrsm_dist.plot.overview import draw_overview
    from semrsm_dist.store.paths import as_run_path

    with stopping_in_order() as stop:
        if options.max_core_hours is not None:
            from semrsm_dist.pipeline.forecast.plan import require_core_hours

            require_core_hours(config, options.max_core_hours, options.reporter)
        finished = run(config, reporter=options.reporter, stop=stop)
        keeps_matrices = finished.record.neighbours is None
        # This reads results, before anything is said of them.
        figure = draw_overview(finished) if keeps_matrices else None
    show(format_summary(finished.summary()))
    opened = f"semrsm_dist.open_run({str(config.run)!r})"
    if keeps_matrices:
        show(f"\nmatrices: {opened}, or semrsm export; picture: {figure}")
    else:
        show(f"\nneighbours: {opened}.neighbours(LAYER), or semrsm export --to edges, csr or atlas")
    # No page goes into an object store.
    out = "" if isinstance(as_run_path(config.run), Path) else " -o report.html"
    show(f"a page to explore them: semrsm report {shlex.quote(str(config.run))}{out}")
    return 0


def _plan(options: argparse.Namespace) -> int:
    config = _load(options)
    from semrsm_dist.pipeline.forecast.plan import plan_run
    from semrsm_dist.pipeline.forecast.text import format_plan

    with stopping_in_order():
        plan = plan_run(config, options.reporter)
    show(json.dumps(plan, indent=1) if options.json else format_plan(plan))
    return 0 if plan["fits"] else 1


def _validate(options: argparse.Namespace) -> int:
    config = _load(options)
    from semrsm_dist.pipeline.checking import check_run

    with stopping_in_order():
        check_run(config)
    document = config.model_dump(mode="json")
    document["matching"] |= config.matching.make_matcher().parameters
    if options.json:
        show(json.dumps(document, indent=1))
    else:
        import yaml

        show(yaml.safe_dump(document, sort_keys=False).rstrip())
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from semrsm_dist.config.reading import parse_settings
    from semrsm_dist.experiments import EXPERIMENTS
    from semrsm_dist.experiments.evaluating import default_run, evaluate
    from semrsm_dist.experiments.runs import evaluation_folder

    experiment = EXPERIMENTS.load(options.experiment)
    config = _load(options) if options.config else default_run(options.experiment, _overrides(options))
    parameters = parse_settings(options.parameters, "--with")
    folder = _folder(options, evaluation_folder(config))
    experiment.load()  # what it needs, before interrupts are taken over
    with stopping_in_order():
        evidence = evaluate(
            options.experiment, config, reporter=options.reporter, folder=folder, **parameters
        )
    show("\n\n".join(filter(None, (evidence.about, evidence.text))))
    show(f"\ntable and figure: {folder / options.experiment}.parquet, .png")
    return 0


def _status(options: argparse.Namespace) -> int:
    from semrsm_dist.cli.watching import follow
    from semrsm_dist.results.status import read_status, watch_status
    from semrsm_dist.results.status_text import format_status

    if options.watch:
        status = follow(watch_status(options.run), show, as_json=options.json)
    else:
        status = read_status(options.run)
        show(json.dumps(status, indent=1) if options.json else format_status(status))
    return 0 if status["complete"] else INCOMPLETE


def _report(options: argparse.Namespace) -> int:
    from semrsm_dist.report.page import write_report
    from semrsm_dist.results.run import Run

    with stopping_in_order():
        path = write_report(Run(options.run), options.out, reporter=options.reporter)
    show(f"report: {path} ({path.stat().st_size / 2**20:.1f} MiB), which any browser opens")
    return 0


def _view(options: argparse.Namespace) -> int:
    from semrsm_dist.results.run import Run

    run = Run(options.run)
    with stopping_in_order():
        if options.bundle is not None:
            from semrsm_dist.report.view.site import write_site

            page = write_site(run, options.bundle, options.reporter)
            show(f"site: {page}; any web server shows it, such as python -m http.server -d {page.parent}")
        else:
            _serve(run, options)
    return 0


def _serve(run: Run, options: argparse.Namespace) -> None:
    from semrsm_dist.report.view.listening import listen

    for side in run.record.sides:
        run.manifest(side)  # what makes the run unusable comes before the address
    with listen(options.host, options.port) as listener:
        _announce(listener.address, options)  # a browser starts while the rest is loaded
        from semrsm_dist.report.view.live import LiveRun
        from semrsm_dist.report.view.server import serve

        live = LiveRun(run)
        try:
            serve(live, listener)
        finally:
            live.close()


def _announce(address: str, options: argparse.Namespace) -> None:
    """Print the address of the page, and open it where there is a screen."""
    import webbrowser

    show(f"{options.run}: {address} (until it is interrupted with Ctrl-C)")
    has_screen = sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if has_screen and not options.no_browser:
        webbrowser.open(address)


def _verify(options: argparse.Namespace) -> int:
    from semrsm_dist.results.run import Run
    from semrsm_dist.results.verification.report import format_report

    chosen = {name: getattr(options, name) for name in ("fast", "images", "sample", "seed")}
    settings = {name: getattr(options, name) for name in ("engine", "address", "workers")}
    with stopping_in_order() as stop:
        if options.repair:
            from semrsm_dist.pipeline.repair import verify_and_repair

            given = {name: value for name, value in settings.items() if value is not None}
            report = verify_and_repair(
                options.run, reporter=options.reporter, stop=stop, settings=given, **chosen
            )
        else:
            report = Run(options.run).verify(**chosen, reporter=options.reporter)
    show(json.dumps(report.to_json(), indent=1) if options.json else format_report(report))
    return report.exit_code


def _models(options: argparse.Namespace) -> int:
    from semrsm_dist.features.registry import list_models

    rows = list_models(options.pattern, weights=options.weights)
    if not rows:
        others = sorted({row.weights for row in list_models(options.pattern)})
        complain(
            f"models match {options.pattern!r}, but none has the weights {options.weights}, only "
            f"{' or '.join(others)}; list those that have: semrsm models --weights {options.weights}"
            if others
            else f"no model matches {options.pattern!r}; try 'semrsm models' for all (those of the Hugging Face hub "
            "are not listed: semrsm layers hf-hub:owner/name shows one)"
        )
        return 2
    lines = [f"{row.name:<56} {row.weights:<11} {row.input_size[0]} x {row.input_size[1]}" for row in rows]
    show("\n".join(lines))
    return 0


def _layers(options: argparse.Namespace) -> int:
    from semrsm_dist.features.layers import class_token_layers, describe_layers
    from semrsm_dist.features.models import ModelSpec, load_model

    # Names and sizes do not depend on pretrained weights, so none are fetched.
    model = load_model(ModelSpec(name=options.model, weights=options.weights, input_size=options.input_size))
    show(f"{'layer':<40} {'S':>6} {'C':>6}  grid      kind")
    layers = describe_layers(model, modules=options.modules)
    for layer in layers:
        grid = f"{layer.grid[0]} x {layer.grid[1]}" if layer.grid else "-"
        show(f"{layer.name:<40} {layer.n_tokens:>6} {layer.n_channels:>6}  {grid:<9} {layer.kind}")
    listed = {layer.name for layer in layers}
    if names := [layer.name for layer in class_token_layers(model) if layer.module in listed]:
        show(
            f"\nclass tokens, as layers of one token: {', '.join(dict.fromkeys((names[0], '...', names[-1])))}"
        )
    return 0


def _export(options: argparse.Namespace) -> int:
    from semrsm_dist.results.run import Run

    run = Run(options.run)
    folder = None if options.out is None else _folder(options, options.out)
    chosen = {"layers": options.layer, "kernels": options.kernel, "kinds": options.kind}
    with stopping_in_order():
        written = run.export(options.to, folder, **chosen)
    show("\n".join(map(str, written)))
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "plan": _plan,
    "validate": _validate,
    "evaluate": _evaluate,
    "status": _status,
    "report": _report,
    "view": _view,
    "verify": _verify,
    "models": _models,
    "layers": _layers,
    "export": _export,
}
