"""In a notebook a run shows its progress and itself; run there, by a real kernel."""

import json

import numpy as np
import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

RUN = "run = srs.run({**document, 'run': document['run'] + '%s'}%s)"
CELLS = {
    "setup": "import json, sys\nimport semrsm_dist as srs\ndocument = json.loads(%r)",
    "bars": RUN % ("1", ""),
    "shown": "run",
    "silent": RUN % ("2", ", reporter=srs.SilentReporter()"),
    "text": "sys.modules['ipywidgets'] = None\n" + RUN % ("3", ""),
    "lines": "with open(document['run'] + '.txt', 'w') as file:\n    "
    + RUN % ("4", ", reporter=srs.ConsoleReporter(file)"),
    "drawn": "srs.plot.rsm(run.similarity('a'));",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    np.save(folder / "z.npy", np.random.default_rng(0).normal(size=(12, 4, 3)))
    data = {"source": "features", "layers": {"a": str(folder / "z.npy")}}
    document = json.dumps({"run": str(folder / "run"), "data": data, "matching": {"matcher": "identity"}})
    cells = [nbformat.v4.new_code_cell(text % document if "%r" in text else text) for text in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    found = {name: cell.outputs for name, cell in zip(CELLS, notebook.cells, strict=True)}
    found["widgets"] = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"].state
    found["file"] = (folder / "run.txt").read_text()
    return found


def printed(outputs):
    return "".join(output.get("text", "") for output in outputs)


def test_a_bar_is_shown_for_each_stage(outputs):
    pytest.importorskip("ipywidgets")
    shown = [output.data for output in outputs["bars"] if output.output_type == "display_data"]
    assert all("application/vnd.jupyter.widget-view+json" in data for data in shown)
    texts = " ".join(data["text/plain"] for data in shown)
    assert "matching" in texts
    bars = [one.state for one in outputs["widgets"].values() if one.model_name == "FloatProgressModel"]
    assert len(bars) == len(shown)
    assert all(bar.value == bar.max and bar.bar_style == "success" for bar in bars)


def test_without_widgets_it_is_text(outputs):
    assert all(output.output_type == "stream" for output in outputs["text"])
    assert "matching" in printed(outputs["text"])
    assert "100%|" in printed(outputs["text"])


def test_a_reporter_that_is_given_reports_instead(outputs):
    assert outputs["silent"] == outputs["lines"] == []
    assert "matching: " in outputs["file"]
    assert "%|" not in outputs["file"]


def test_a_run_shows_what_it_has(outputs):
    (shown,) = outputs["shown"]
    assert "S = 4, C = 3" in shown.data["text/html"]
    assert shown.data["text/plain"].startswith("Run(")


def test_a_figure_is_shown_beneath_its_cell(outputs):
    (drawn,) = outputs["drawn"]
    assert "image/png" in drawn.data
