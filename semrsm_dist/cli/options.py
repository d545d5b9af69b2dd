"""The subcommands of `semrsm` and their options: one function for each."""

from __future__ import annotations

import argparse
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from semrsm_dist.cli.output import show
from semrsm_dist.engine import logs
from semrsm_dist.errors import ConfigError, printable
from semrsm_dist.results.export import OF_MATRICES, OF_NEIGHBOURS

Parser = argparse.ArgumentParser


def make_parser() -> Parser:
    """Return the parser of the command line; the name of the subcommand becomes the option `command`."""
    parser = _Parser(
        prog="semrsm",
        description="Semantic representational similarity matrices of vision models, at any scale.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, (text, *options) in _COMMANDS.items():
        # The experiments are loaded for the help of `evaluate` alone, so it brings its own.
        sub = commands.add_parser(name, help=text, description=text, add_help=name != "evaluate")
        for add in options:
            add(sub)
    return parser


def _add_run(parser: Parser) -> None:
    parser.add_argument(
        "--max-core-hours",
        type=float,
        metavar="HOURS",
        help="calibrate first, and compute nothing if the run is estimated to take more",
    )


def _add_evaluate(parser: Parser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "-h", "--help", action=_ExperimentsHelp, nargs=0, help="show this help message and exit"
    )
    parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="name of the experiment; semrsm evaluate --help lists them"
    )
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="configuration of the run to judge; digit scenes by default",
    )
    _add_set(parser)
    parser.add_argument(
        "--with",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="parameters",
        help="a parameter of the experiment, such as seed=1 or 'k=[1, 5]'; may be repeated",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder for the table and the figure; RUN/evaluation by default",
    )


def _add_status(parser: Parser) -> None:
    _add_directory(parser)
    _add_json(parser, "print JSON, for programs; with --watch, one object per line")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="repeat until no driver is at work: in place on a terminal, else a line for each change",
    )


def _add_report(parser: Parser) -> None:
    _add_directory(parser, "the run directory; the page of an unfinished run shows what there is")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="the HTML file to write; RUN/report.html by default"
    )


def _add_view(parser: Parser) -> None:
    _add_directory(parser, "the run directory; the page of an unfinished run shows what there is")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="name or address to listen on; by default, only this machine can connect",
    )
    parser.add_argument(
        "--port", type=int, default=0, metavar="N", help="port to listen on; by default, any free one"
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, but open no browser")
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="FOLDER",
        help="write a static site for any web server, and serve nothing",
    )


def _add_verify(parser: Parser) -> None:
    parser.add_argument(
        "--fast", action="store_true", help="list and decode all chunks, and check nothing else"
    )
    parser.add_argument(
        "--images", action="store_true", help="read and compare the images, or ready-made features, too"
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=1000,
        metavar="N",
        help="number of pairs of each layer to solve again; 1000 by default",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="seed of the sample; by default, a new one each time"
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="remove what is broken, and compute it again with the configuration of the last session",
    )


def _add_models(parser: Parser) -> None:
    parser.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        default="*",
        help="a glob, such as 'resnet*'; by default, all",
    )
    parser.add_argument(
        "--weights",
        choices=("digits", "package", "pretrained", "random"),
        help="list only models with these weights",
    )


def _add_layers(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name of a model, as semrsm models lists it")
    parser.add_argument(
        "--modules", action="store_true", help="list every module that can be read, not only the stages"
    )
    parser.add_argument(
        "--weights",
        choices=("random", "digits"),
        default="random",
        help="digits: the network that ships with the package, whose patches may differ from timm's; random by default",
    )
    parser.add_argument("--input-size", type=int, metavar="PIXELS", help="side of the input image, in pixels")


def _add_export(parser: Parser) -> None:
    parser.add_argument(
        "--to",
        choices=(*OF_MATRICES, *OF_NEIGHBOURS),
        default="npy",
        help="output format, npy by default: "
        + "; ".join(
            f"for {kept}, {', '.join(f'{name} ({about})' for name, about in formats.items())}"
            for kept, formats in (("matrices", OF_MATRICES), ("neighbours", OF_NEIGHBOURS))
        ),
    )
    parser.add_argument(
        "--layer",
        action="append",
        help="a layer; may be repeated; by default, those that the last session requested",
    )
    parser.add_argument(
        "--kernel",
        action="append",
        help="linear, cosine or rbf; may be repeated; by default, those of the configuration that the format can hold",
    )
    parser.add_argument("--kind", action="append", help="semantic or spatio-semantic; by default, both")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="output folder; RUN/export by default"
    )


# --- options that several subcommands have ---------------------------------------------------------------


def _add_config(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    _add_set(parser)


def _add_directory(parser: Parser, text: str = "the run directory") -> None:
    parser.add_argument("run", metavar="RUN", help=text)


def _add_json(parser: Parser, text: str = "print JSON, for programs") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _add_set(parser: Parser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the configuration, named by its dotted key; may be repeated",
    )


def _add_engine(parser: Parser) -> None:
    parser.add_argument(
        "--log-format",
        choices=logs.FORMATS,
        default=os.environ.get(logs.VARIABLE, "text"),
        help=f"format of progress, warnings and errors; json: one object per line, on workers too ({logs.VARIABLE})",
    )
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="where the work runs: local, ray, or an engine of an installed plugin",
    )
    parser.add_argument(
        "--address", help="cluster that the engine joins; without it, ray starts one on this machine"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="use at most this many CPU slots; by default, all"
    )


_COMMANDS: dict[str, tuple[Any, ...]] = {
    "run": ("compute a run, or what is missing of it", _add_config, _add_engine, _add_run),
    "plan": (
        "estimate the cost of a run, from a calibration on its own images",
        _add_config,
        _add_engine,
        _add_json,
    ),
    "validate": ("print the configuration with all defaults, or list its mistakes", _add_config, _add_json),
    "evaluate": ("run an experiment: what are the matrices worth?", _add_evaluate, _add_engine),
    "status": ("show progress, rate, time left and failed tiles of a run", _add_status),
    "report": ("write a page that shows the results of a run in any browser", _add_report),
    "view": ("show the results of a run of any size in a browser", _add_view),
    "verify": (
        "check everything that is stored of a run, and repair what is broken",
        _add_directory,
        _add_verify,
        _add_json,
        _add_engine,
    ),
    "models": ("list models by name, with their available weights", _add_models),
    "layers": ("list the layers of a model, with their tokens (S) and channels (C)", _add_layers),
    "export": ("write similarity matrices, or neighbours, in another format", _add_directory, _add_export),
}
"""What each subcommand is for, and what adds its options; in the order in which help lists them."""


# --- what argparse lacks -----------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Shows what was given with control characters as escapes: arguments may be names of files."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message), file)


class _Version(argparse.Action):
    """Shows the version, which is looked up for it alone."""

    def __call__(self, parser: Parser, *_: Any) -> None:
        show(f"semrsm {metadata.version('semrsm-dist')}")
        parser.exit()


class _ExperimentsHelp(argparse.Action):
    """Shows help with the experiment that is named before it, or with all; they are loaded for it alone."""

    def __call__(self, parser: Parser, namespace: argparse.Namespace, *_: Any) -> None:
        from semrsm_dist.experiments.evaluating import describe_experiments

        try:
            parser.epilog = describe_experiments(getattr(namespace, "experiment", None))
        except ConfigError as error:
            parser.error(str(error))
        parser.print_help()
        parser.exit()
