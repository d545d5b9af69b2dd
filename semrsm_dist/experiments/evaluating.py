"""Running an experiment by its name, with parameters that are checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from semrsm_dist.errors import ConfigError, did_you_mean
from semrsm_dist.experiments import EXPERIMENTS
from semrsm_dist.experiments.experiment import Parameters

if TYPE_CHECKING:
    from semrsm_dist.config.schema import RunConfig
    from semrsm_dist.experiments.evidence import Evidence
    from semrsm_dist.progress import Reporter

_NOUNS = {"integer": "whole number", "number": "number", "string": "text"}
_LIMITS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "of at most",
    "exclusiveMaximum": "below",
}
_MORE = {"too_short": ", at least one", "finite_number": ", finite"}


def evaluate(
    name: str,
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    reporter: Reporter | None = None,
    folder: str | Path | None = None,
    **parameters: Any,
) -> Evidence:
    """Run an experiment and save what it finds.

    Parameters
    ----------
    name
        Name of the experiment; `semrsm evaluate --help` lists them with their parameters.
    config
        The run that it judges, as in `semrsm_dist.run`, computed as far as it is missing; by default one on data that
        ships.
    reporter
        Where progress is reported; None shows a bar in a notebook, and nothing elsewhere.
    folder
        Where the table and the figure go; by default the folder `evaluation` of the run.
    **parameters
        Parameters of the experiment itself, such as `seed`.

    Returns
    -------
    Evidence
        Its `table` (a DataFrame), its `text`, and `draw`, which draws the figure into a `matplotlib.figure.Figure`.

    Raises
    ------
    ConfigError
        If there is no such experiment or parameter, a parameter is not what it must be, or the configuration does not
        go with the experiment.
    """
    from semrsm_dist.config.schema import as_config  # noqa: PLC0415 - slow to load
    from semrsm_dist.experiments.runs import evaluation_folder  # noqa: PLC0415

    config = default_run(name) if config is None else as_config(config)
    folder = evaluation_folder(config) if folder is None else Path(folder)
    evidence = compute(name, config, reporter=reporter, **parameters)
    evidence.save(folder)
    return evidence


def compute(name: str, config: RunConfig, *, reporter: Reporter | None = None, **parameters: Any) -> Evidence:
    """Run an experiment as `evaluate` does, without saving what it finds."""
    import pandas as pd  # noqa: PLC0415 - slow to load

    from semrsm_dist.experiments.evidence import Evidence, Findings  # noqa: PLC0415 - slow to load
    from semrsm_dist.experiments.runs import evaluation_folder  # noqa: PLC0415
    from semrsm_dist.progress import require_reporter  # noqa: PLC0415
    from semrsm_dist.store.directory import RunDirectory  # noqa: PLC0415

    checked = check_parameters(name, parameters)
    evaluation_folder(config)
    reporter = require_reporter(reporter)
    experiment = EXPERIMENTS.load(name)
    findings = experiment.load()(config, checked, reporter)
    if not isinstance(findings, Findings) or not isinstance(findings.table, pd.DataFrame):
        found = (
            f"Findings with the table {findings.table!r}"
            if isinstance(findings, Findings)
            else repr(findings)
        )
        raise ConfigError(
            f"experiment {name!r}: {experiment.computation} returned {found:.200}, but must return Findings with a "
            "pandas DataFrame; correct it, or update or remove the distribution that provides the experiment"
        )
    settings = {
        "config": config.model_dump(mode="json"),
        **checked.model_dump(mode="json"),
        **findings.settings,
    }
    summary = RunDirectory(settings["config"]["run"]).read_summary() or {}
    return Evidence(findings.table, findings.draw, findings.text, settings, name, summary.get("about", ""))


def default_run(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration that an experiment runs on by default, with overrides as in `load_config`."""
    from semrsm_dist.config.schema import default_config  # noqa: PLC0415 - slow to load

    return default_config(EXPERIMENTS.load(name).default, overrides, origin=f"experiment {name}")


def describe_experiments(name: str | None = None) -> str:
    """Return an experiment, or each, with its parameters and their defaults, for the help of the command line.

    Raises ConfigError if there is no such experiment.
    """
    chosen = EXPERIMENTS.usable() if name is None else [(name, EXPERIMENTS.load(name))]
    lines = [f"experiment{'s' * (name is None)}, and the parameters that --with sets:"]
    for each, experiment in chosen:
        lines += ["", f"  {each}: {experiment.summary}"]
        for parameter, field in experiment.parameters.model_fields.items():
            lines.append(f"    {parameter:<18} {field.description}{_format_default(field.default)}")
    return "\n".join(lines)


def _format_default(value: Any) -> str:
    shown = f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
    return "" if value is None else f" (default: {shown})"


def check_parameters(name: str, given: Mapping[str, Any]) -> Parameters:
    """Return the parameters of an experiment; None stands for the default.

    Raises ConfigError, with one line per problem, if there is no such experiment or parameter, or a value is not what
    it must be.
    """
    model = EXPERIMENTS.load(name).parameters
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = {problem["loc"][:1]: problem for problem in reversed(error.errors())}
        lines = [f"experiment {name!r}: {_explain(model, one, given)}" for one in reversed(first.values())]
        raise ConfigError("\n".join(lines)) from None


def _explain(model: type[Parameters], problem: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return what is wrong with the parameters in their own words, and what is expected."""
    message = problem["msg"].removeprefix("Value error, ").removeprefix("expected ")
    if not problem["loc"]:
        return f"{message}; nothing was computed"
    name, known = str(problem["loc"][0]), model.model_fields
    if name not in known:
        return f"no parameter {name!r}: it takes {', '.join(known)}{did_you_mean(name, known)}"
    expected = message if problem["type"] == "value_error" else _expected(model, name, problem)
    about = known[name].description
    return f"{name} is {given[name]!r}, but it must be {expected} ({about}); nothing was computed"


def _expected(model: type[Parameters], name: str, problem: Mapping[str, Any]) -> str:
    """Return what values a parameter takes, from its declaration."""
    schema = model.model_json_schema()["properties"][name]
    schema = next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)
    is_list = schema.get("type") == "array"
    item = schema["items"] if is_list else schema
    if "enum" in item:
        found = f"{'a list of some of' if is_list else 'one of'} {', '.join(map(str, item['enum']))}"
        return found + did_you_mean(str(problem["input"]), map(str, item["enum"]))
    noun = item.get("format") or _NOUNS.get(item.get("type"), "value")
    limits = " and ".join(f"{word} {item[limit]:.12g}" for limit, word in _LIMITS.items() if limit in item)
    found = f"a list of {noun}s {limits}" if is_list else f"a {noun} {limits}"
    return found.rstrip() + _MORE.get(problem["type"], "")
