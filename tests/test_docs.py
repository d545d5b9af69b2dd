"""What the documentation says can be followed: links lead somewhere, commands parse, code compiles."""

import doctest
import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from semrsm_dist.cli.options import make_parser
from semrsm_dist.data.sources import SOURCES

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/results").glob("*.md")),
    ROOT / "jobs/paper/README.md",
    ROOT / "jobs/real/README.md",
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE = re.compile(r"`(semrsm [^`]+)`")

WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "semrsm_dist").rglob("*.py"))
    if ">>> " in path.read_text()
]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page, *languages):
    return [body for language, body in BLOCK.findall(page.read_text()) if language in languages]


def commands(page):
    """Return every command line of `semrsm` on a page: in blocks, joined where it is continued, and in sentences."""
    lines = [line for body in blocks(page, "", "bash") for line in body.replace("\\\n", " ").splitlines()]
    text = BLOCK.sub("", page.read_text())
    return [line.strip() for line in (*lines, *INLINE.findall(text)) if line.strip().startswith("semrsm ")]


def anchors(page):
    """Return the names that the headings of a page can be linked by."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pages
def test_links_lead_to_something(page):
    for link in LINK.findall(BLOCK.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pages
def test_commands_parse(page, capsys):
    for command in commands(page):
        words = shlex.split(command, comments=True)[1:]
        if len(words) == 1:  # the subject of a sentence
            words.append("--help")
        try:
            make_parser().parse_args(words)
        except SystemExit as end:
            assert end.code == 0, f"{command}: {capsys.readouterr().err}"


@pages
def test_python_compiles(page):
    for number, body in enumerate(blocks(page, "python")):
        compile(body, f"{page.name}, block {number}", "exec")


@pages
def test_yaml_examples_are_yaml(page):
    for body in blocks(page, "yaml"):
        assert yaml.safe_load(body)


@pages
def test_data_sources_in_examples_take_what_they_are_given(page):
    for body in blocks(page, "yaml"):
        document = yaml.safe_load(body)
        if "source" in (document.get("data") or {}):
            assert SOURCES.load(document["data"]["source"]).model_validate(document["data"])


def test_every_data_source_is_documented():
    text = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    examples = re.findall(r"source: ([\w-]+)", text) + re.findall(r"`([\w-]+)`", text)
    assert set(SOURCES.names()) <= set(examples)


def test_the_readme_leads_and_the_pages_go_deep():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert all(f"(docs/{page.name})" in text for page in (ROOT / "docs").glob("*.md"))


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (block,) = blocks(ROOT / "README.md", "python")
    settings = yaml.safe_load((ROOT / "jobs/digits.yaml").read_text())
    settings["data"]["n_images"] = 12
    settings["model"]["layers"] = ["layer3"]
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/digits.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (12, 96, 96, 3), dtype=np.uint8)
    names = {"images": images}
    exec(block, names)
    assert names["z"].shape == (12, 36, 192)
    assert names["K"].shape == (3, 12)
    assert names["m"].value <= names["m"].upper_bound
    assert names["found"].indices.shape == (12, 10)
    assert names["run"].similarity("layer3").shape == (12, 12)


def test_the_architecture_takes_two_screens():
    assert len((ROOT / "docs/architecture.md").read_text().splitlines()) <= 80


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_of_docstrings_have_the_results_they_show(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testmod(importlib.import_module(module))
    assert attempted > 0
    assert failed == 0
