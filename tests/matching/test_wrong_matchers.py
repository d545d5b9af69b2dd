"""What a matcher returns, declares and takes is checked: one that is wrong is named, and never believed."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from semrsm_dist.errors import ConfigError, WorkError
from semrsm_dist.matching.matcher import MATCHERS, Matcher
from semrsm_dist.matching.matchers.hungarian import Hungarian
from semrsm_dist.matching.similarity import match, similarity_matrix

Z = np.random.default_rng(0).normal(size=(4, 5, 3))


class Reversing(Matcher):
    """Match each token with the one at the same place from the other end."""

    name: ClassVar[str] = "reversing"
    changes: ClassVar[Any] = staticmethod(lambda value, bound, permutation: (value, bound, permutation))

    def match_prepared(self, rows, r, columns, c):
        permutation = np.arange(rows.n_tokens)[::-1]
        value = float(np.vdot(rows.raw[r], columns.raw[c][::-1]))
        bound = float(np.sqrt(rows.squared_norms[r] * columns.squared_norms[c]))
        return self.changes(value, bound, permutation)

    def pair_seconds(self, n_tokens, n_channels):
        return 1e-6

    def workspace_bytes(self, n_tokens, n_channels):
        return 8


@pytest.fixture
def install(monkeypatch):
    """Replace a matcher that ships by another class; loading checks it like one of another distribution."""

    def install(kind):
        monkeypatch.setattr(MATCHERS, "_loaded", {})
        monkeypatch.setattr(MATCHERS, "_installed", lambda: {kind.name: [Point(kind)]})

    class Point:
        value, dist = "toys:Mine", None

        def __init__(self, kind):
            self.kind = kind

        def load(self):
            return self.kind

    return install


def changed(**attributes):
    return type("Changed", (Reversing,), {"__module__": __name__, **attributes})


def test_a_matcher_that_keeps_its_promises_is_believed(install):
    install(Reversing)
    expected = np.einsum("isc,jsc->ij", Z, Z[:, ::-1])
    np.fill_diagonal(expected, np.einsum("isc,isc->i", Z, Z))
    np.testing.assert_allclose(similarity_matrix(Z, kernel="linear", matcher="reversing"), expected)
    assert match(Z[0], Z[1], "reversing").value == pytest.approx(expected[0, 1])


WRONG = {
    "NaN": (lambda v, b, p: (np.nan, b, p), "a value that is not finite"),
    "infinite bound": (lambda v, b, p: (v, np.inf, p), "an upper bound that is not finite"),
    "above its bound": (lambda v, b, p: (v, v - 1.0, p), "a value above its upper bound"),
    "above the norms": (lambda v, b, p: (3 * b, 4 * b, p), "a value that is not finite, or above the norms"),
    "bound below the identity": (
        lambda v, b, p: (-b, -b, p),
        "an upper bound below the value of the identity",
    ),
    "bound above the norms": (lambda v, b, p: (v, 1.1 * b, p), "an upper bound above its norms"),
    "two numbers": (lambda v, b, p: (v, b), "not \\(value, upper bound, permutation\\)"),
    "nothing": (lambda v, b, p: None, "None for a pair of images"),
    "text": (lambda v, b, p: ("high", b, p), "'high'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_values_and_bounds_that_cannot_be_are_refused(what, install):
    change, message = WRONG[what]
    install(changed(changes=staticmethod(change)))
    with pytest.raises(WorkError, match=rf"matcher 'reversing' returned .*{message}.*Correct it"):
        similarity_matrix(Z, matcher="reversing")


PERMUTATIONS = {
    "twice": [0, 0, 1, 2, 3],
    "too short": [0, 1, 2, 3],
    "beyond": [1, 2, 3, 4, 5],
    "missing": [-1, 0, 1, 2, 3],
    "negative": [-2, 0, 1, 2, 3],
    "real": [0.0, 1.0, 2.0, 3.0, 4.0],
    "nothing": None,
}


@pytest.mark.parametrize("what", PERMUTATIONS)
def test_what_is_no_permutation_is_refused(what, install):
    install(changed(changes=staticmethod(lambda value, bound, _: (value, bound, PERMUTATIONS[what]))))
    with pytest.raises(
        WorkError, match=r"matcher 'reversing' returned the permutation .* partner of its own"
    ):
        match(Z[0], Z[1], "reversing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, b, p: (v + 1e-3, b, p), "the value .* with a permutation of value"),
        (lambda v, b, p: (np.nan, b, p), "the value nan with a permutation of value"),
        (lambda v, b, p: (v, v - 1e-3, p), "a value above its upper bound"),
        (lambda v, b, p: (v, 1e300, p), "an upper bound above its norms"),
        (lambda v, b, p: (v, np.nan, p), "an upper bound that is not finite"),
        (lambda v, b, p: (v, b), "not \\(value, upper bound, permutation\\)"),
    ],
)
def test_a_match_must_agree_with_its_permutation(change, message, install):
    install(changed(changes=staticmethod(change)))
    with pytest.raises(WorkError, match=message):
        match(Z[0], Z[1], "reversing")


@pytest.mark.parametrize("array", [np.zeros((1, 1)), np.zeros((4, 4), np.float32), None])
def test_tiles_of_another_form_are_refused(array):
    panel = Hungarian().prepare(Z)
    tile = Hungarian().solve_tile(panel, panel)
    Hungarian().check_tile(tile, panel, panel)
    with pytest.raises(WorkError, match=r"as the array 'identity' of a tile, not float64 \(4, 4\)"):
        Hungarian().check_tile(tile._replace(identity=array), panel, panel)


@pytest.mark.parametrize("certified", [False, True])
def test_the_bound_of_a_match_is_not_below_the_identity(certified, install):
    install(changed(certified=certified, changes=staticmethod(lambda v, b, p: (v, v, p))))
    with pytest.raises(
        WorkError, match=r"an upper bound below the value of the identity.* identity \d+\.\d+ and"
    ):
        match(Z[0], Z[0], "reversing")


def test_a_certified_bound_keeps_its_tolerance(install):
    def close(value, bound, permutation):
        return value, value + 0.6 * bound, permutation

    promise = {"__annotations__": {"tolerance": float}, "tolerance": 0.5}
    install(changed(changes=staticmethod(close), **promise))  # nothing is promised: it is no certificate
    z = np.stack([Z[0], Z[0][::-1]])
    with pytest.raises(WorkError, match="an upper bound above its norms"):
        similarity_matrix(z, matcher="reversing")
    install(changed(changes=staticmethod(close), certified=True, **promise))
    for compute in (lambda m: similarity_matrix(z, matcher=m), lambda m: match(*z, m)):
        with pytest.raises(WorkError, match="an upper bound above its tolerance"):
            compute("reversing")
    assert match(*z, "reversing", tolerance=0.7).gap == pytest.approx(0.6 * np.vdot(Z[0], Z[0]))


def test_the_identity_of_a_tile_is_checked():
    counts = [5, 3, 5, 5]
    panel = Hungarian().prepare(Z, counts)
    tile = Hungarian().solve_tile(panel, panel)
    Hungarian().check_tile(tile, panel, panel)
    assert np.isnan(tile.identity[0, 1])
    with pytest.raises(
        WorkError, match="a value of the identity although numbers of tokens differ, for 6 of 16"
    ):
        Hungarian().check_tile(tile._replace(identity=np.nan_to_num(tile.identity)), panel, panel)
    with pytest.raises(WorkError, match="a wrong value of the identity"):
        Hungarian().check_tile(tile._replace(identity=0.9 * tile.identity), panel, panel)


@pytest.mark.parametrize("seconds", ["x", np.nan, -1.0, np.inf, None, True])
@pytest.mark.parametrize("name", ["products", "solving"])
def test_seconds_of_a_tile_are_checked(name, seconds):
    panel = Hungarian().prepare(Z)
    tile = Hungarian().solve_tile(panel, panel)._replace(**{name: seconds})
    with pytest.raises(WorkError, match=f"{seconds!r} as '{name}' of a tile, not a number of seconds"):
        Hungarian().check_tile(tile, panel, panel)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"pair_seconds": lambda self, s, c: 0}, "its pair_seconds, of 196 tokens .*is 0, not a positive"),
        ({"pair_seconds": lambda self, s, c: "1 s"}, "its pair_seconds, of 196 tokens .*is '1 s'"),
        ({"workspace_bytes": lambda self, s, c: -1}, "its workspace_bytes, of 196 tokens .*is -1"),
        ({"panel_bytes": lambda self, n, s, c: np.nan}, "its panel_bytes, of 196 tokens .*is nan"),
        ({"workspace_bytes": lambda self, s, c: 1 / 0}, "with its defaults it fails .ZeroDivisionError"),
        ({"cpus": "two"}, "its cpus is 'two', not a number from 0 on"),
        ({"gpus": -1}, "its gpus is -1, not a number from 0 on"),
        ({"version": True}, "its version is True, not a number from 1 on"),
        ({"certified": "no"}, "its certified is 'no', not True or False"),
        ({"match_prepared": Matcher.match_prepared}, "it does not define match_prepared"),
        ({"match_prepared": lambda self, rows, columns: None}, "its match_prepared does not take"),
        ({"__annotations__": {"order": int}}, "a parameter has no default"),
        ({"__annotations__": {"most": float}, "most": np.inf}, "most: .*inf, which JSON lacks"),
        ({"__annotations__": {"names": set}, "names": {"a"}}, "names: .*a set, whose order differs"),
        (
            {"__annotations__": {"any": Any}, "any": object()},
            "cannot hold the parameters .Unable to serialize",
        ),
    ],
)
def test_incomplete_declarations_are_refused_when_loaded(attributes, message, install):
    install(changed(**attributes))
    with pytest.raises(ConfigError, match=r"'reversing' \(toys:Mine of the .*cannot be used: .*" + message):
        match(Z[0], Z[1], "reversing")


def test_parameters_that_no_record_can_hold_are_refused(install):
    install(changed(__annotations__={"most": Any}, most=1.0))
    assert match(Z[0], Z[1], "reversing", most=[2.0, None]).value < np.inf
    for value in (np.inf, [1.0, np.nan], {"a": {"b"}}, object()):
        with pytest.raises(ConfigError, match=r"matcher 'reversing': .*the run's record cannot hold"):
            match(Z[0], Z[1], "reversing", most=value)


def test_a_matcher_runs_in_memory_only_where_its_gpus_are(install, monkeypatch):
    install(changed(gpus=1))
    monkeypatch.setattr("semrsm_dist.matching.similarity.available_gpus", lambda: 0)
    for compute in (
        lambda: match(Z[0], Z[1], "reversing"),
        lambda: similarity_matrix(Z, matcher="reversing"),
    ):
        with pytest.raises(ConfigError, match="matcher 'reversing' needs 1 GPU, but this machine has 0"):
            compute()
    monkeypatch.setattr("semrsm_dist.matching.similarity.available_gpus", lambda: 1)
    assert match(Z[0], Z[1], "reversing").matcher == "reversing"
