"""The page as a file: complete without a network or scripts, and safe whatever the names in it."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from semrsm_dist.cli.commands import main
from semrsm_dist.errors import ConfigError, StorageError
from semrsm_dist.report import facts
from semrsm_dist.report.bundle import MODULES, bundle, colour_scale, read_asset
from semrsm_dist.report.page import write_report
from semrsm_dist.report.page_data import Data
from semrsm_dist.store.tiles import TileStore

from .conftest import HOSTILE, make_run


class Page(HTMLParser):
    """The elements of a page, and its text without that of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.scripts, self._inside = [], "", [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside is None:
            self.text += data


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    path = write_report(run, tmp_path_factory.mktemp("page") / "report.html")
    return Page(path.read_text())


def test_the_page_requests_nothing(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data"):
            link = attributes.get(name) or "#"
            assert link.startswith(("data:", "#")), (tag, link[:80])
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_names_with_markup_are_text(page):
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]
    data = Data.model_validate_json(page.scripts[0])
    assert data.images["images"].ids[0] == HOSTILE
    assert data.labels[0] == "<b>bold</b>"
    assert len(page.scripts) == 2


def test_the_page_says_what_was_run_without_scripts(page, run):
    for fact in ("auction", "0.0001", *run.layers, "spatio-semantic", "numpy", "pairs/s", "24", "certified"):
        assert fact in page.text
    pictures = [a for t, a in page.elements if t == "img"]
    assert len(pictures) == 3 * len(run.layers)


def test_scores_say_how_many_queries_they_are_of():
    score = {"layer": "late", "k": 1, "method": "semantic", "f1": 0.5, "n_queries": 21, "n_left_out": 1}
    assert "Mean F1@k of 21 of 22 queries: 1 without labels" in facts.scores_table({"retrieval": [score]})


def test_experiments_are_shown_with_their_tables(copy, tmp_path):
    folder = copy.directory.path / "evaluation"
    folder.mkdir()
    pd.DataFrame({"layer": ["<i>a", "b"], "f1": [0.123456, np.nan]}).to_parquet(folder / "retrieval.parquet")
    (folder / "broken.parquet").write_text("no table")
    (folder / "retrieval.png").write_bytes(b"png")
    found = Page(write_report(copy, tmp_path / "page.html").read_text())
    assert "0.1235" in found.text
    assert "<i>a" in found.text
    assert "cannot be read" in found.text
    assert not [tag for tag, _ in found.elements if tag == "i"]


def test_the_command_writes_the_page_into_the_run_or_where_it_is_told(copy, tmp_path, capsys):
    assert main(["report", str(copy.directory.path)]) == 0
    assert str(copy.directory.path / "report.html") in capsys.readouterr().out
    assert main(["report", str(copy.directory.path), "-o", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").read_text() == (copy.directory.path / "report.html").read_text()


def test_the_run_names_the_command(tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(4, 4, 3)))
    (tmp_path / "my.yaml").write_text("run: 'my run'\ndata: {source: features, layers: {a: z.npy}}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(tmp_path / "my.yaml"), "--set", f"run={tmp_path}/my run"]) == 0
    assert f"semrsm report '{tmp_path}/my run'" in capsys.readouterr().out


def test_an_unfinished_run_shows_what_there_is(copy, tmp_path):
    store = TileStore(copy.directory.tiles, "late")
    store.begin()
    next(path for path in (store.group / "tiles" / "c").rglob("*") if path.is_file()).unlink()
    (copy.directory.path / "summary.json").unlink()
    found = Page(write_report(copy, tmp_path / "page.html").read_text())
    data = Data.model_validate_json(found.scripts[0])
    assert [layer.name for layer in data.layers] == ["early"]
    assert "late is not complete yet" in found.text
    assert "start the run's command again" in found.text
    assert "No session has finished yet" in found.text


def test_a_run_of_another_version_is_refused(copy, tmp_path, capsys):
    for name in ("run.json", "run.copy.json"):
        path = copy.directory.path / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    assert main(["report", str(copy.directory.path), "-o", str(tmp_path / "page.html")]) == 1
    assert "format 99" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(run, tmp_path, monkeypatch):
    monkeypatch.setattr("semrsm_dist.report.page.gather", pytest.fail)
    with pytest.raises(ConfigError, match="is a folder"):
        write_report(run, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="not a folder"):
        write_report(run, tmp_path / "file" / "page.html")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(StorageError, match=r"read-only.*-o"):
        write_report(run)


def test_the_size_does_not_grow_with_the_number_of_pairs(tmp_path, monkeypatch):
    for name, n_bytes in (
        ("maps.MAP_BYTES", 50_000),
        ("gathering.MATCH_BYTES", 20_000),
        ("retrieval.QUERY_BYTES", 50_000),
    ):
        monkeypatch.setattr(f"semrsm_dist.report.{name}", n_bytes)
    run = make_run(tmp_path, n_images=300, layers=("one",), pictures=False, matching={"matcher": "identity"})
    text = write_report(run, tmp_path / "page.html").read_text()
    data = Page(text).scripts[0]
    smallest_maps = 3 * 14 * 64 * 65 / 2  # in three orders
    assert len(data) < 4 / 3 * (smallest_maps + 20_000 + 50_000) + 100 * 300


def test_labels_by_the_thousand_are_shown(tmp_path):
    run = make_run(tmp_path, n_images=40, layers=("one",), pictures=False, matching={"matcher": "identity"})
    manifest = pd.read_parquet(run.directory.path / "images.parquet")
    manifest["labels"] = [[f"label {index}-{n}" for n in range(50)] for index in range(40)]
    run.directory.write_manifest("images", manifest)
    data = Data.model_validate_json(Page(write_report(run).read_text()).scripts[0])
    assert len(data.labels) == 2000
    assert len(data.images["images"].labels[7]) == 50


def test_the_modules_of_the_script_fit_together():
    script = bundle()
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", script, re.MULTILINE)
    assert len(names) == len(set(names)), "two modules declare the same name"
    assert len(MODULES) == len(set(MODULES))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_small_text_can_be_read(scheme):
    def luminance(name):
        colour = re.findall(rf"--{name}: #(\w{{6}})", read_asset("page.css"))[scheme]
        channels = np.frombuffer(bytes.fromhex(colour), np.uint8) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    for ground in ("paper", "panel"):
        low, high = sorted((luminance("muted"), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # as WCAG 2.2 asks of text


def test_the_colours_are_viridis():
    mpl = pytest.importorskip("matplotlib")
    expected = mpl.colormaps["viridis"](np.arange(256), bytes=True)[:, :3]
    np.testing.assert_array_equal(
        np.frombuffer(bytes.fromhex(colour_scale()), np.uint8).reshape(256, 3), expected
    )
