"""The comparison that guards a resume: whatever differs is named, whatever is equal passes, through JSON and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.errors import ResumeError
from semrsm_dist.store.fingerprint import SHOWN, differences, flatten, require_same

names = st.text("abcxyz_", min_size=1, max_size=6)
values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=99)
leaves = values | st.lists(values, max_size=3) | st.tuples(values, values)
nested = st.recursive(
    st.dictionaries(names, leaves, min_size=1, max_size=4),
    lambda children: st.dictionaries(names, leaves | children, min_size=1, max_size=4),
    max_leaves=12,
)
flat = st.dictionaries(names, values, max_size=8)


def leaves_of(tree):
    return sum(leaves_of(item) if isinstance(item, dict) else 1 for item in tree.values())


@given(nested)
def test_flattening_keeps_every_leaf_under_its_dotted_name(tree):
    flattened = flatten(tree)
    assert len(flattened) == leaves_of(tree)
    for name, value in flattened.items():
        item = tree
        for part in name.split("."):
            item = item[part]
        assert json.dumps(item) == json.dumps(value)


@given(nested)
def test_what_was_recorded_equals_itself(tree):
    """Tuples become lists on the way through the record."""
    recorded = json.loads(json.dumps(flatten(tree)))
    assert differences(recorded, flatten(tree)) == []
    require_same(recorded, flatten(tree), "run")


@given(flat, flat)
def test_differences_are_exactly_the_fields_that_differ(old, new):
    found = differences(old, new)
    assert [name for name, _, _ in found] == sorted(
        name
        for name in old.keys() | new.keys()
        if name not in old or name not in new or old[name] != new[name]
    )
    for name, before, after in found:
        assert before == old.get(name, "(absent)")
        assert after == new.get(name, "(absent)")


@given(flat, flat)
def test_a_refusal_names_every_field_and_shows_its_difference(old, new):
    changed = differences(old, new)
    if not changed:
        require_same(old, new, "run")
        return
    with pytest.raises(ResumeError) as caught:
        require_same(old, new, "runs/mine")
    message = str(caught.value)
    assert message.startswith("runs/mine: the run was begun with another configuration; ")
    assert "nothing was changed" in message
    assert message.endswith("a directory of its own (--set run=...).")
    for name, _, _ in changed:
        assert f"\n  {name} " in message


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("auction", "hungarian", "auction -> hungarian"),
        (1e-3, 1e-4, "0.001 -> 0.0001"),
        ([96, 96], None, "[96, 96] -> null"),
        ("1", 1, '"1" -> 1'),
        ("null", None, '"null" -> null'),
        (True, "true", 'true -> "true"'),
    ],
)
def test_values_are_shown_so_that_they_can_be_told_apart(old, new, line):
    with pytest.raises(ResumeError) as caught:
        require_same({"field": old, "same": 1}, {"field": new, "same": 1}, "run")
    assert f"\n  field  {line}\n" in str(caught.value)
    assert "same" not in str(caught.value)


def test_a_refusal_says_what_other_images_are():
    with pytest.raises(ResumeError, match=r"images\.sha256  aa -> bb  \(other ids, contents or order\)"):
        require_same({"images.sha256": "aa"}, {"images.sha256": "bb"}, "run")


@given(st.text("ab", max_size=200), st.text("ab", max_size=100), st.text("ab", max_size=100))
def test_long_values_are_cut_where_they_differ(same, old, new):
    if old == new:
        return
    with pytest.raises(ResumeError) as caught:
        require_same({"f": same + old}, {"f": same + new}, "run")
    before, after = str(caught.value).split("\n")[1].removeprefix("  f  ").split(" -> ")
    assert before != after
    assert max(len(before), len(after)) <= SHOWN + 6


def test_a_field_that_came_or_went_is_absent_on_one_side():
    with pytest.raises(
        ResumeError, match=r"  tolerance  0\.001 -> \(absent\)\n  window     \(absent\) -> 8\n"
    ):
        require_same({"tolerance": 1e-3}, {"window": 8}, "run")
