"""The gain of permutation invariance: recomputed from the scenes, with one control varied at a time."""

from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment

from semrsm_dist.config.schema import parse_config
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.errors import ConfigError
from semrsm_dist.experiments.conditions import grid as conditions_grid
from semrsm_dist.experiments.conditions.grid import FACTORS, list_conditions
from semrsm_dist.experiments.evaluating import compute
from semrsm_dist.results.run import Run

evaluate = partial(compute, "conditions")

MODEL = {"name": "test_resnet", "weights": "digits", "layers": ["layer4"]}
DATA = {"source": "digits", "seed": 3}
BASE = DigitScenes(n_images=2, **DATA)
N = 24


def config(run, **sections):
    document = {"run": str(run), "data": DATA, "model": MODEL, "matching": {"matcher": "hungarian"}}
    return parse_config({**document, **sections})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    run = tmp_path_factory.mktemp("conditions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditions_grid, "DISPLACEMENTS", (0.0,))
        patch.setattr(conditions_grid, "SCALES", (1.0,))
        evidence = evaluate(config(run), images=N, factors=["scale", "pair"], resamples=30)
    return run, evidence


def f1_by_hand(scenes, labels):
    """Return each query's F1@1 before and after matching, from the pixels."""
    from semrsm_dist.features.extractor import Extractor
    from semrsm_dist.features.models import ModelSpec

    images = [Image.fromarray(scenes.render(scenes.scene(k))).convert("RGB") for k in range(N)]
    spec = ModelSpec("test_resnet", "digits")
    extractor = Extractor(spec, ["layer4"], precision="float32", device="cpu", batch_size=N)
    z = extractor([extractor.transform(image) for image in images])["layer4"].astype(float)
    affinity = np.einsum("isc,jtc->ijst", z, z)
    matched = np.array([[a[linear_sum_assignment(-a)].sum() for a in row] for row in affinity])
    norms = np.linalg.norm(z, axis=(1, 2))
    found = {}
    for method, inner in (("spatio-semantic", np.einsum("ijss->ij", affinity)), ("semantic", matched)):
        similarity = inner / np.outer(norms, norms)
        np.fill_diagonal(similarity, -np.inf)
        found[method] = np.array(
            [
                2 * len(labels[i] & labels[j]) / (len(labels[i]) + len(labels[j]))
                for i, j in enumerate(similarity.argmax(axis=1))
            ]
        )
    return found


@pytest.mark.parametrize(
    ("factor", "controls"),
    [("scale", {}), ("pair", {"digits": (2, 2), "arrangement": "pair", "displacement": 0.0})],
)
def test_gains_are_those_of_scenes_matched_by_hand(found, factor, controls):
    scenes = DigitScenes(n_images=N, seed=3, **controls)
    labels = []
    for k in range(N):
        placements = sorted(scenes.scene(k).placements, key=lambda p: p.left)
        sides = ("left:", "right:") if factor == "pair" else ("",) * len(placements)
        labels.append({f"{side}{p.digit}" for side, p in zip(sides, placements, strict=True)})
    expected = f1_by_hand(scenes, labels)
    rows = found[1].table.query("factor == @factor").set_index("method")
    for method, f1 in expected.items():
        assert rows["f1"][method] == pytest.approx(f1.mean())
    gain = expected["semantic"] - expected["spatio-semantic"]
    assert rows["gain"]["semantic"] == pytest.approx(gain.mean())
    chance = np.mean(
        [
            2 * len(a & b) / (len(a) + len(b))
            for i, a in enumerate(labels)
            for j, b in enumerate(labels)
            if i != j
        ]
    )
    assert rows["f1"]["chance"] == pytest.approx(chance)
    assert set(rows["n"]) == {N} and set(rows["scene_seed"]) == {3}


def test_the_base_serves_every_condition_that_is_the_same(found):
    run, evidence = found
    assert dict(zip(evidence.table["factor"], evidence.table["run"], strict=True)) == {
        "scale": "base",
        "pair": "pair-0",
    }
    folders = sorted(p.name for p in (run / "evaluation" / "conditions" / f"{N}-images").iterdir())
    assert folders == ["base", "pair-0"]


def test_runs_from_before_the_new_controls_can_go_on(found):
    """Only what is used is a fact of a run, so that the records of older runs still fit."""
    folder = found[0] / "evaluation" / "conditions" / f"{N}-images"
    base, pair = (Run(folder / name).record.fingerprint for name in ("base", "pair-0"))
    added = {"images.displacement", "images.arrangement"}
    assert not added & base.keys()
    assert added <= pair.keys()


def test_intervals_hold_the_gain_and_that_over_itself_is_nothing(found):
    table = found[1].table
    assert ((table["low"] <= table["gain"]) & (table["gain"] <= table["high"])).all()
    itself = table[table["method"] == "spatio-semantic"]
    assert (itself[["gain", "low", "high"]] == 0).all(axis=None)


def test_evidence_is_written_and_drawn(found, small):
    small.draw(found[1])
    run, evidence = found
    for path in evidence.save(run / "out"):
        assert path.stat().st_size > 0
    assert "position carries the label" in evidence.text
    assert "better in" in evidence.text


def test_each_condition_changes_its_control_alone():
    conditions, left_out = list_conditions(BASE, (96, 96))
    assert not left_out
    assert {c.factor for c in conditions} == set(FACTORS)
    allowed = {
        "scale": {"scale"},
        "digits": {"digits"},
        "overlap": {"overlap"},
        "displacement": {"displacement", "scale"},
        "canvas": {"canvas"},
        "resolution": set(),
        "pair": {"digits", "arrangement", "displacement"},
    }
    for condition in conditions:
        changed = {
            name for name, value in condition.data.model_dump().items() if value != getattr(BASE, name)
        }
        assert changed <= allowed[condition.factor]
        assert (condition.input_size != (96, 96)) <= (condition.factor in ("canvas", "resolution"))
        condition.data.entries()[:1]
    for factor in FACTORS:
        mine = [c for c in conditions if c.factor == factor]
        assert len({c.level for c in mine}) == len({c.name for c in mine}) == len(mine) >= 3
        if factor != "pair":
            scales = {c.data.scale for c in mine}
            assert (len(scales) == 1) == (factor != "scale")
    assert {c.input_size[0] == c.data.canvas for c in conditions if c.factor == "canvas"} == {True}


def test_what_a_base_does_not_allow_is_reported():
    conditions, left_out = list_conditions(BASE.model_copy(update={"scale": (5.0, 6.0)}), (96, 96))
    assert any(item.startswith("digits 6: DigitScenes: 6 digits of up to 48 px") for item in left_out)
    assert all(c.level < 5 for c in conditions if c.factor == "digits")
    assert any(c.factor == "displacement" for c in conditions)


def test_conditions_that_are_all_impossible_are_reported(tmp_path):
    wide = {"source": "digits", "n_images": 6, "scale": [7.0, 9.0], "digits": [1, 1]}
    with pytest.raises(ConfigError, match=r"none of the conditions.*\n  .*digit"):
        evaluate(
            config(tmp_path / "r", data=wide),
            images=6,
            factors=["pair"],
            layers=["layer4"],
        )


def test_other_images_are_refused(tmp_path):
    folder = config(tmp_path / "r", data={"source": "folder", "path": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"data\.source: digits"):
        evaluate(folder)
    assert not (tmp_path / "r").exists()
