"""Retrieval scores as a table, as words and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from semrsm_dist.evaluation.bootstrap import mean_interval
from semrsm_dist.evaluation.retrieval import CHANCE, POOLED, SEMANTIC, SPATIAL
from semrsm_dist.experiments.retrieval.search import EFFORT
from semrsm_dist.experiments.tables import write_grid, write_interval, write_range
from semrsm_dist.plot.looks import share_legend, style_names
from semrsm_dist.plot.scores import retrieval, select_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from semrsm_dist.evaluation.retrieval import Hits


class Key(NamedTuple):
    """What a score belongs to: layer, method, kernel, and what was done with near-duplicates."""

    layer: str
    method: str
    kernel: str
    groups: str


Scores = dict[Key, NDArray[np.float64]]
"""F1@k of each query, (N, number of k), by what it belongs to."""


def tabulate(scores: Scores, ks: Sequence[int], *, resamples: int, seed: int) -> pd.DataFrame:
    """Return one row for each mean F1@k and for each paired difference, with bootstrap intervals.

    `against` is None in rows of F1 itself; otherwise `f1` is the mean, over queries, of the method's F1 less that of
    the method `against` (average pooling and other baselines: by cosine).
    """
    rows = []
    for key, against, values in _list_quantities(scores):
        for position, k in enumerate(ks):
            interval = mean_interval(values[:, position], resamples=resamples, seed=seed)
            judged = int(np.count_nonzero(~np.isnan(values[:, position])))
            rows.append(
                {
                    **key._asdict(),
                    "against": against,
                    "k": k,
                    **interval.columns("f1"),
                    "n_queries": judged,
                    "n_left_out": len(values) - judged,
                    "resamples": resamples,
                    "seed": seed,
                }
            )
    return pd.DataFrame(rows)


def _list_quantities(scores: Scores) -> Iterator[tuple[Key, str | None, NDArray[np.float64]]]:
    for key, values in scores.items():
        yield key, None, values
    for key, values in scores.items():
        if key.method != SEMANTIC:
            continue
        yield key, SPATIAL, values - scores[key._replace(method=SPATIAL)]
        for other, baseline in scores.items():
            is_same_place = (other.layer, other.groups) == (key.layer, key.groups)
            is_wanted = other.method == POOLED or key.kernel == "cosine"
            if other.method not in (SEMANTIC, SPATIAL) and is_same_place and is_wanted:
                yield key, other.method, values - baseline


def write_text(table: pd.DataFrame, notes: Sequence[str]) -> str:
    """Return F1 of the fewest hits by layer and method, where matching wins and where not, and what to know."""
    k = int(table["k"].min())
    parts = []
    for groups, part in table[table["k"] == k].groupby("groups", sort=False):
        handling = "" if groups == "none" else f", near-duplicates {groups}"
        weights = table["weights"].iloc[0]
        handling += "" if weights == "none" else f", labels weighed by {weights}"
        scores = part[part["against"].isna()]
        count, left_out = (write_range(scores[name]) for name in ("n_queries", "n_left_out"))
        differs = " depending on the method" if "to" in left_out else ""
        parts.append(
            f"F1@{k}{handling} ({count} queries, {left_out} left out{differs}; "
            "kernel in brackets where it is not cosine):\n"
            + write_grid(_named(scores), "f1", "method", "layer")
        )
        parts.append("\n".join(_compare(part[part["kernel"] == "cosine"], k)))
    return "\n\n".join([*parts, "\n".join(f"note: {note}" for note in notes)]).strip()


def _named(scores: pd.DataFrame) -> pd.DataFrame:
    kernel = scores["kernel"]
    return scores.assign(
        method=scores["method"].where(kernel.isin(["cosine", "-"]), scores["method"] + " (" + kernel + ")")
    )


def _compare(part: pd.DataFrame, k: int) -> Iterator[str]:
    yield f"semantic (cosine) less the others, F1@{k}, mean over queries [interval]:"
    for other, rows in part[part["against"].notna()].groupby("against", sort=False):
        if other == CHANCE:
            continue
        verdicts: dict[str, list[str]] = {"better": [], "worse": [], "undecided": [], "undefined": []}
        for row in rows.to_dict("records"):
            if np.isnan(row["f1"]):
                verdicts["undefined"].append(str(row["layer"]))
                continue
            verdict = "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "undecided"
            verdicts[verdict].append(f"{row['layer']} {write_interval(row, 'f1')}")
        listed = "; ".join(f"{name}: {', '.join(layers)}" for name, layers in verdicts.items() if layers)
        yield f"  {other}: {listed}"


def add_doubts(table: pd.DataFrame, hits: Mapping[Key, Hits]) -> None:
    """Add what is doubtful about hits, in the rows of F1 itself; NaN in all others.

    `n_tied` counts queries at which the last of the best k hits ties with an image that is left out, `n_undefined` the
    pairs, of `n_pairs`, that have no similarity.
    """
    table[["n_tied", "n_undefined", "n_pairs"]] = np.nan
    for key, found in hits.items():
        rows = table["against"].isna()
        for name, value in key._asdict().items():
            rows &= table[name] == value
        table.loc[rows, "n_tied"] = [_count_tied(found, k) for k in table.loc[rows, "k"]]
        table.loc[rows, ["n_undefined", "n_pairs"]] = found.n_undefined.sum(), found.n_candidates.sum()


def _count_tied(found: Hits, k: int) -> int:
    """Return at how many queries the best k hits leave out an image that is as similar as the last of them."""
    return int(found.tied[:, k - 1].sum()) if k <= found.tied.shape[1] else 0


def write_doubts(hits: Mapping[Key, Hits], ks: Sequence[int]) -> Iterator[str]:
    """Yield what to know about hits that are missing or tie with others, one line per layer."""
    undefined: dict[tuple[str, str], list[str]] = {}
    tied: dict[tuple[str, str], list[str]] = {}
    few: dict[str, str] = {}
    for key, found in hits.items():
        name = key.method if key.kernel in ("cosine", "-") else f"{key.method} ({key.kernel})"
        place = key.layer, "" if key.groups == "none" else f", near-duplicates {key.groups}"
        if found.n_undefined.any():
            undefined.setdefault(place, []).append(
                f"{found.n_undefined.sum()} of {found.n_candidates.sum()} by {name}"
            )
        n_tied = _count_tied(found, min(ks))
        if n_tied:
            tied.setdefault(place, []).append(f"{n_tied} by {name}")
        judged = found.n_candidates[found.n_candidates > 0]
        if judged.size and judged.min() < max(ks):
            few[place[1]] = (
                f"{np.count_nonzero(judged < max(ks))} of {judged.size} queries{place[1]} have fewer than {max(ks)} "
                f"images to find, the fewest {judged.min()}: they are judged on those there are"
            )
    yield from few.values()
    for (layer, handling), names in undefined.items():
        yield (
            f"{layer}{handling}: pairs without a similarity (a norm of zero, or numbers of tokens that differ), which "
            f"are never hits, so that methods choose from different images: {', '.join(names)}"
        )
    for (layer, handling), names in tied.items():
        yield (
            f"{layer}{handling}: ties at hit {min(ks)} (another image is as similar; the first in the data counts), "
            f"number of queries: {', '.join(names)}"
        )


def add_effort(table: pd.DataFrame, effort: Sequence[Mapping[str, Any]]) -> None:
    """Add the shares of `EFFORT` as columns, in the rows of F1 by semantic cosine; NaN in all others."""
    table[list(EFFORT)] = np.nan
    for row in effort:
        found = (table["layer"] == row["layer"]) & (table["groups"] == row["groups"])
        found &= (table["method"] == SEMANTIC) & (table["kernel"] == "cosine") & table["against"].isna()
        table.loc[found, list(EFFORT)] = [row[name] for name in EFFORT]


def write_effort(effort: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what progressive search took, one line per layer: the shares of pairs decided at each step."""
    for row in effort:
        same = {
            True: "the hits of the matrix",
            False: "NOT the hits of the matrix",
            None: "hits not compared",
        }
        handling = "" if row["groups"] == "none" else f", near-duplicates {row['groups']}"
        yield (
            f"{row['layer']}{handling}: progressive search: {row['without_product']:.1%} of the pairs without a "
            f"product, {row['sketched']:.1%} with that of a few channels, {row['with_product']:.1%} with the product, "
            f"{row['solved']:.1%} solved; {same[row['identical']]}"
        )


def draw_scores(figure: Figure, table: pd.DataFrame) -> None:
    """Draw F1 of the fewest hits over the layers, and F1@k in the layer where semantic similarity does best."""
    groups = table["groups"].iloc[0]
    scores = select_scores(table)
    first = scores[scores["k"] == scores["k"].min()]
    semantic = first[first["method"] == SEMANTIC]
    best = semantic.loc[semantic["f1"].fillna(-1).idxmax(), "layer"]
    layers = list(dict.fromkeys(scores["layer"]))
    figure.set_size_inches(min(max(10.0, 1.5 * len(layers) + 5), 18.0), 4.8)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    retrieval(scores, legend=False, ax=left)
    for method, look in style_names(scores["method"]).items():
        curve = scores[(scores["method"] == method) & (scores["layer"] == best)]
        line = {"linestyle": "--", "color": "grey", "marker": ""} if method == CHANCE else look
        right.plot(
            curve["k"], curve["f1"], markersize=4, linewidth=2.5 if method == SEMANTIC else 1.2, **line
        )
    handling = "" if groups == "none" else f", near-duplicates {groups}"
    k, confidence = first["k"].iloc[0], first["confidence"].iloc[0]
    left.set(ylabel="F1@k", title=f"F1@{k} with {confidence:.0%} intervals over queries{handling}")
    right.set(xlabel="k, hits per query", title=f"F1@k in {best}", xticks=sorted(set(scores["k"])))
    right.grid(axis="y", alpha=0.3)
    share_legend(figure, [left], ncols=6)
