"""The pages of the results book are what templates make of the stored tables, and write no number of their own."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("make_results", ROOT / "jobs/make_results.py")
make_results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_results)

PAGES = list(make_results.list_pages())
TABLE = pd.DataFrame(
    {
        "layer": ["a", "a", "b"],
        "against": ["x", None, None],
        "f1": [0.25, 1 / 3, 0.5],
        "low": [0.2, 0.3, 0.4],
        "high": [0.3, 0.4, 0.6],
        "seed": [0, 0, 0],
    }
)
SETTINGS = {
    "about": "a network",
    "text": "F1@1 is 0.333 of 928 queries",
    "version": "1",
    "config": {"run": "/secret"},
}


@pytest.fixture
def tables(tmp_path):
    make_results.write_table("voc/retrieval", TABLE, SETTINGS, tmp_path)
    return make_results.Tables(tmp_path)


@pytest.mark.parametrize(("template", "page"), PAGES, ids=lambda path: path.stem)
def test_a_page_is_what_its_template_makes_of_the_tables(template, page):
    tables = make_results.Tables()
    assert page.read_text() == make_results.render(template, tables), "run python jobs/make_results.py"
    assert make_results.find_strangers(template.read_text(), "\n".join(tables.used.values())) == []


def test_every_page_has_a_template_and_every_stored_output_a_page():
    assert {page.name for _, page in PAGES} == {path.name for path in make_results.BOOK.glob("*.md")}
    tables = make_results.Tables()
    for template, _ in PAGES:
        make_results.render(template, tables)
    stored = {
        path.relative_to(make_results.TABLES).with_suffix("").as_posix()
        for path in make_results.TABLES.glob("*/*.json")
    }
    assert set(tables.used) == stored


def test_a_table_is_read_as_it_was_written(tables):
    pd.testing.assert_frame_equal(tables.read("voc/retrieval")[list(TABLE)], TABLE, rtol=1e-5)
    assert "/secret" not in json.dumps(tables.facts("voc/retrieval"))


def test_numbers_come_from_the_one_row_that_is_meant(tables):
    assert tables.value("voc/retrieval", "f1", layer="a", against=None) == "0.333"
    assert tables.interval("voc/retrieval", "f1", layer="b") == "+0.500 [+0.400, +0.600]"
    with pytest.raises(LookupError, match=r"2 rows with {'layer': 'a'}, not one"):
        tables.value("voc/retrieval", "f1", layer="a")
    with pytest.raises(LookupError, match="0 rows"):
        tables.value("voc/retrieval", "f1", layer="c")


@pytest.mark.parametrize(
    ("template", "strangers"),
    [
        ("F1@1 is .33, of 928 queries, in layer4 of Lite0", []),
        ("a third is 0.34", ["0.34"]),
        ("from -.333 to +.334", ["+.334"]),
        ("`0.7`, {{ value(0.7) }} and [a page](0.7.md) do not count", []),
        ("33.3 % of 929 queries, not 33.9 %", ["33.9"]),
    ],
)
def test_a_number_that_no_output_of_the_page_has_is_found(template, strangers):
    assert make_results.find_strangers(template, SETTINGS["text"]) == strangers
