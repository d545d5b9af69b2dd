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
from importlib import metadata
from pathlib import Path
from typing import Any

from semrsm_dist.cli.interrupts import INTERRUPTED, stopping_in_order
from semrsm_dist.engine import logs
from semrsm_dist.errors import ConfigError, SemrsmError, StorageError, printable
from semrsm_dist.progress import ConsoleReporter, NoteHandler
from semrsm_dist.results.export import OF_MATRICES, OF_NEIGHBOURS

INCOMPLETE = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # never end for a character that it cannot write
    options = make_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    with _reporting(options) as complain:
        try:
            return command(options)
        except SemrsmError as error:
            complain(str(error))
            return error.exit_code
        except MemoryError:
            complain(
                "the memory does not suffice; what was finished is kept: use fewer workers (--workers) or lower "
                "matching.worker_memory, then start the same command"
            )
            return 1
        except KeyboardInterrupt:
            complain("interrupted; what was finished is kept, the same command continues")
            return INTERRUPTED


@contextlib.contextmanager
def _reporting(options: argparse.Namespace) -> Iterator[Callable[[str], None]]:
    """Set `options.reporter`, show what is logged, and yield what shows an error: all in the chosen format."""
    complain: Callable[[str], None] = _complain
    handler: logging.Handler
    if getattr(options, "log_format", None) == "json":
        os.environ[logs.VARIABLE] = "json"  # for workers
        options.reporter, handler = logs.LogReporter(), logs.log_json()
        complain = logging.getLogger(__name__).error
    else:
        options.reporter = ConsoleReporter()
        handler = NoteHandler(options.reporter)
        handler.setLevel(logging.WARNING)
        logging.getLogger().addHandler(handler)
    try:
        yield complain
    finally:
        logging.getLogger().removeHandler(handler)


def _print(text: str) -> None:
    """Write a result on standard output. That nobody reads it does not make the command fail."""
    try:
        print(printable(text), flush=True)
    except OSError as error:
        # Give the interpreter nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise StorageError(
                f"standard output cannot be written ({error.strerror}); what was computed is kept"
            ) from error


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads standard error any more
        print(printable(f"semrsm: {message}"), file=sys.stderr, flush=True)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _Parser(
        prog="semrsm",
        description="Semantic representational similarity matrices of vision models, at any scale.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], text: str, add_help: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, add_help=add_help)
        sub.set_defaults(command=command)
        return sub

    for name, command, text in (
        ("run", _run, "compute a run, or what is missing of it"),
        ("plan", _plan, "estimate the cost of a run, from a calibration on its own images"),
        ("validate", _validate, "print the resolved configuration, or its mistakes"),
    ):
        sub = add(name, command, text)
        sub.add_argument("config", metavar="CONFIG", help="a YAML file")
        _add_set(sub)
        if name != "validate":
            _add_engine(sub)
        if name != "run":
            sub.add_argument("--json", action="store_true", help="for programs")
        else:
            sub.add_argument(
                "--max-core-hours",
                type=float,
                metavar="HOURS",
                help="calibrate first, and compute nothing if the run is estimated to take more",
            )

    evaluate = add("evaluate", _evaluate, "run an experiment: what are the matrices worth?", add_help=False)
    _add_evaluate_options(evaluate)

    status = add("status", _status, "show progress, rate, time left and failed tiles of a run")
    status.add_argument("run", metavar="RUN", help="the run directory")
    status.add_argument("--json", action="store_true", help="for programs; with --watch, an object a line")
    status.add_argument(
        "--watch",
        action="store_true",
        help="again and again, in place on a terminal, until no driver is at work",
    )

    report = add("report", _report, "write a page that shows the results of a run in any browser")
    report.add_argument(
        "run", metavar="RUN", help="the run directory; of an unfinished run, what there is is shown"
    )
    report.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="the HTML file to write; RUN/report.html by default"
    )
    _add_view_options(add("view", _view, "show the results of a run of any size in a browser"))
    verify = add("verify", _verify, "check all that is stored of a run, and repair what is broken")
    _add_verify_options(verify)

    models = add("models", _models, "list models by name, with their available weights")
    models.add_argument("pattern", nargs="?", default="*", help="a glob such as 'resnet*'")
    models.add_argument(
        "--weights",
        choices=("digits", "package", "pretrained", "random"),
        help="only models with these weights",
    )

    layers = add("layers", _layers, "list the layers of a model, with their tokens (S) and channels (C)")
    layers.add_argument("model", metavar="MODEL")
    layers.add_argument(
        "--modules", action="store_true", help="every module that can be read, not only the stages"
    )
    layers.add_argument(
        "--weights",
        choices=("random", "digits"),
        default="random",
        help="digits: the network as shipped, whose patches may differ from timm's",
    )
    layers.add_argument("--input-size", type=int, metavar="PIXELS", help="side of the input image, in pixels")

    export = add("export", _export, "write similarity matrices, or neighbours, in another format")
    export.add_argument("run", metavar="RUN", help="the run directory")
    export.add_argument(
        "--to",
        choices=(*OF_MATRICES, *OF_NEIGHBOURS),
        default="npy",
        help="; ".join(
            f"of {kept}, {', '.join(f'{name} ({about})' for name, about in formats.items())}"
            for kept, formats in (("matrices", OF_MATRICES), ("neighbours", OF_NEIGHBOURS))
        ),
    )
    export.add_argument(
        "--layer", action="append", help="a layer; by default, those that the last session requested"
    )
    export.add_argument(
        "--kernel", action="append", help="linear, cosine or rbf; by default, those of the configuration"
    )
    export.add_argument("--kind", action="append", help="semantic or spatio-semantic; by default, both")
    export.add_argument("--out", type=Path, metavar="FOLDER", help="output folder; RUN/export by default")
    return parser


def _add_view_options(view: argparse.ArgumentParser) -> None:
    view.add_argument(
        "run", metavar="RUN", help="the run directory; of an unfinished run, what there is is shown"
    )
    view.add_argument(
        "--host",
        default="127.0.0.1",
        help="name or address to listen at; by default, only this machine can connect",
    )
    view.add_argument("--port", type=int, default=0, help="any that is free by default")
    view.add_argument(
        "--no-browser", action="store_true", help="only print the address, and open no browser at it"
    )
    view.add_argument(
        "--bundle", type=Path, metavar="FOLDER", help="serve nothing; write a static site for any web server"
    )


def _add_verify_options(verify: argparse.ArgumentParser) -> None:
    verify.add_argument("run", metavar="RUN", help="the run directory")
    verify.add_argument("--fast", action="store_true", help="only list and decode all chunks")
    verify.add_argument(
        "--images", action="store_true", help="read the images, or ready-made features, and compare them too"
    )
    verify.add_argument(
        "--sample", type=int, default=1000, metavar="N", help="pairs of each layer that are solved again"
    )
    verify.add_argument("--seed", type=int, help="of the sample; another one each time by default")
    verify.add_argument(
        "--repair",
        action="store_true",
        help="remove what is broken, and compute it again as the last session would have",
    )
    verify.add_argument("--json", action="store_true", help="for programs")
    _add_engine(verify)


def _add_set(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the configuration, by dotted key",
    )


def _add_engine(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--log-format",
        choices=logs.FORMATS,
        default=os.environ.get(logs.VARIABLE, "text"),
        help=f"of progress, warnings and errors; json is an object a line, of workers, too ({logs.VARIABLE})",
    )
    sub.add_argument(
        "--engine", metavar="NAME", help="where the work runs: local, ray or one that is installed"
    )
    sub.add_argument(
        "--address", help="cluster that the engine joins; without it Ray starts one on this machine"
    )
    sub.add_argument("--workers", type=int, metavar="N", help="maximum CPU slots; all by default")


class _Parser(argparse.ArgumentParser):
    """Shows what was given with control characters as escapes: arguments may be names of files."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message), file)


class _Version(argparse.Action):
    """Shows the version, which is looked up for it alone."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        _print(f"semrsm {metadata.version('semrsm-dist')}")
        parser.exit()


class _ExperimentsHelp(argparse.Action):
    """Shows help with all experiments, which are loaded for it alone."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from semrsm_dist.experiments.evaluating import describe_experiments

        parser.epilog = describe_experiments()
        parser.print_help()
        parser.exit()


def _add_evaluate_options(evaluate: argparse.ArgumentParser) -> None:
    evaluate.formatter_class = argparse.RawDescriptionHelpFormatter
    evaluate.add_argument(
        "-h", "--help", action=_ExperimentsHelp, nargs=0, help="show this help message and exit"
    )
    evaluate.add_argument("experiment", metavar="EXPERIMENT", help="one of the experiments below")
    evaluate.add_argument(
        "config", metavar="CONFIG", nargs="?", help="the run it uses; digit scenes by default"
    )
    _add_set(evaluate)
    evaluate.add_argument(
        "--with",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="parameters",
        help="a parameter of the experiment, such as seed=1 or 'k=[1, 5]'",
    )
    evaluate.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for table and figure; RUN/evaluation by default"
    )
    _add_engine(evaluate)


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

    with stopping_in_order() as stop:
        if options.max_core_hours is not None:
            from semrsm_dist.pipeline.forecast.plan import require_core_hours

            require_core_hours(config, options.max_core_hours)
        finished = run(config, reporter=options.reporter, stop=stop)
        _print(format_summary(finished.summary()))
        keeps_matrices = finished.record.neighbours is None
        figure = draw_overview(finished) if keeps_matrices else None
    opened = f"semrsm_dist.open_run({str(config.run)!r})"
    if keeps_matrices:
        _print(f"\nmatrices: {opened}, or semrsm export; picture: {figure}")
    else:
        _print(f"\nneighbours: {opened}.neighbours(LAYER), or semrsm export --to edges, csr or atlas")
    _print(f"a page to explore them: semrsm report {shlex.quote(str(config.run))}")
    return 0


def _plan(options: argparse.Namespace) -> int:
    config = _load(options)
    from semrsm_dist.pipeline.forecast.plan import plan_run
    from semrsm_dist.pipeline.forecast.text import format_plan

    with stopping_in_order():
        plan = plan_run(config)
    _print(json.dumps(plan, indent=1) if options.json else format_plan(plan))
    return 0 if plan["fits"] else 1


def _validate(options: argparse.Namespace) -> int:
    config = _load(options)
    from semrsm_dist.matching.matchers import make_matcher
    from semrsm_dist.pipeline.checking import check_run

    with stopping_in_order():
        check_run(config)
    document = config.model_dump(mode="json")
    document["matching"] |= make_matcher(config.matching.matcher, **config.matching.parameters).parameters
    if options.json:
        _print(json.dumps(document, indent=1))
    else:
        import yaml

        _print(yaml.safe_dump(document, sort_keys=False).rstrip())
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
    _print("\n\n".join(filter(None, (evidence.about, evidence.text))))
    _print(f"\ntable and figure: {folder / options.experiment}.parquet, .png")
    return 0


def _status(options: argparse.Namespace) -> int:
    from semrsm_dist.cli.watching import follow
    from semrsm_dist.results.status import read_status, watch_status
    from semrsm_dist.results.status_text import format_status

    if options.watch:
        status = follow(watch_status(options.run), _print, as_json=options.json)
    else:
        status = read_status(options.run)
        _print(json.dumps(status, indent=1) if options.json else format_status(status))
    return 0 if status["complete"] else INCOMPLETE


def _report(options: argparse.Namespace) -> int:
    from semrsm_dist.report.page import write_report
    from semrsm_dist.results.run import Run

    with stopping_in_order():
        path = write_report(Run(options.run), options.out, reporter=options.reporter)
    _print(f"report: {path} ({path.stat().st_size / 2**20:.1f} MiB), which any browser opens")
    return 0


def _view(options: argparse.Namespace) -> int:
    from semrsm_dist.results.run import Run

    run = Run(options.run)
    with stopping_in_order():
        if options.bundle is not None:
            from semrsm_dist.report.view.site import write_site

            page = write_site(run, options.bundle, options.reporter)
            _print(f"site: {page}; any web server shows it, such as python -m http.server -d {page.parent}")
            return 0
        from semrsm_dist.report.view.live import LiveRun
        from semrsm_dist.report.view.server import serve

        live = LiveRun(run)
        try:
            serve(live, options.host, options.port, lambda address: _announce(address, options))
        finally:
            live.close()
    return 0


def _announce(address: str, options: argparse.Namespace) -> None:
    """Print the address of the page, and open it where there is a screen."""
    import webbrowser

    _print(f"{options.run}: {address} (until it is interrupted with Ctrl-C)")
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
    _print(json.dumps(report.to_json(), indent=1) if options.json else format_report(report))
    return report.exit_code


def _models(options: argparse.Namespace) -> int:
    from semrsm_dist.features.registry import list_models

    rows = list_models(options.pattern, weights=options.weights)
    if not rows:
        others = sorted({row.weights for row in list_models(options.pattern)})
        _complain(
            f"models match {options.pattern!r}, but none has the weights {options.weights}, only "
            f"{' or '.join(others)}; list those that have: semrsm models --weights {options.weights}"
            if others
            else f"no model matches {options.pattern!r}; try 'semrsm models' for all (those of the Hugging Face hub "
            "are not listed: semrsm layers hf-hub:owner/name shows one)"
        )
        return 2
    lines = [f"{row.name:<56} {row.weights:<11} {row.input_size[0]} x {row.input_size[1]}" for row in rows]
    _print("\n".join(lines))
    return 0


def _layers(options: argparse.Namespace) -> int:
    from semrsm_dist.features.layers import describe_layers
    from semrsm_dist.features.models import ModelSpec, load_model

    # Names and sizes do not depend on pretrained weights, so none are fetched.
    model = load_model(ModelSpec(name=options.model, weights=options.weights, input_size=options.input_size))
    _print(f"{'layer':<40} {'S':>6} {'C':>6}  grid      kind")
    for layer in describe_layers(model, modules=options.modules):
        grid = f"{layer.grid[0]} x {layer.grid[1]}" if layer.grid else "-"
        _print(f"{layer.name:<40} {layer.n_tokens:>6} {layer.n_channels:>6}  {grid:<9} {layer.kind}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from semrsm_dist.results.run import Run

    run = Run(options.run)
    folder = None if options.out is None else _folder(options, options.out)
    chosen = {"layers": options.layer, "kernels": options.kernel, "kinds": options.kind}
    with stopping_in_order():
        written = run.export(options.to, folder, **chosen)
    _print("\n".join(map(str, written)))
    return 0
