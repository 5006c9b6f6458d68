"""A matrix of experiments, as a file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from adapter_unlearn import cli
from adapter_unlearn.pipeline import experiments, unlearning_run

TWO_SETS = """
base: {model: {name: m}, method: {name: ga}}
experiments: {a: {data: {forget: f}}, b: {data: {forget: g}}}
"""


def test_an_experiment_stores_only_its_deviations(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "model: {name: m}\ndata: {forget: f.jsonl}\nseed: 7\nmethod: {name: sga, threshold: 0.5}"
    )
    matrix = {
        "recipe": str(tmp_path / "r.yaml"),
        "base": {"training": {"max_epochs": 3, "batch_size": 2}, "method": {"retain_sequences": 4}},
        "experiments": {
            "plain": None,
            "higher": {"method": {"threshold": 0.9}, "training": {"learning_rate": "1e-3"}},
            "npo": {"method": {"name": "npo"}, "seeds": [1, 2]},
        },
    }
    planned = experiments.plan(matrix, tmp_path / "runs")
    assert [(one.experiment, one.seed) for one in planned] == [("plain", 7), ("higher", 7), ("npo", 1), ("npo", 2)]
    plain, higher, npo, _ = (one.recipe for one in planned)
    assert plain.method == {"name": "sga", "threshold": 0.5, "retain_sequences": 4} and plain.seed == 7
    assert higher.method["threshold"] == 0.9 and higher.training.learning_rate == 1e-3
    assert higher.training.max_epochs == 3 and higher.training.batch_size == 2
    assert npo.method == {"name": "npo"}, "another method takes none of the shared method's parameters"
    assert (npo.seed, npo.output_dir) == (1, str(tmp_path / "runs" / "npo-seed1"))
    assert set(experiments.differing(plain, higher)) == {"method.threshold", "training.learning_rate"}
    assert experiments.differing(npo, replace(npo, output_dir="x", tracking="wandb")) == []


def test_an_experiment_that_names_no_method_is_the_default_recipe(tmp_path):
    base = {"model": {"name": "m"}, "data": {"forget": "f", "retain": "r", "holdout": "u"}}
    matrix = {"base": base, "experiments": {"default": {}, "sga": {"method": {"name": "sga"}}}}
    default, sga = (one.recipe for one in experiments.plan(matrix, tmp_path))
    assert default.method["name"] == "match" and default.data.synthetic and not default.stop.early
    assert sga.method == {"name": "sga"} and not sga.data.synthetic and sga.stop.early


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("experiments: {a: {}}", "base is missing"),
        ("base: {}\nexperiments: {}", "experiments"),
        ("base: {}\nexperiment: {a: {}}", "'experiment'"),
        ("base: {}\nexperiments: {a: {}, a: {}}", "line 2: 'a' stands twice"),
        ("base: [1]\nexperiments: {a: {}}", "base: expected keys"),
        ("base: {model: {name: m}, data: {forget: f}}\nexperiments: {a: {training: {speed: 3}}}", "'a'.*speed"),
        ("base: {model: {name: m}, data: {forget: f}}\nexperiments: {../a: {}}", "experiment .../a.*letters"),
        ("base: {model: {name: m}, data: {forget: f}}\nexperiments: {a: {seed: 3}}", "seeds: .3."),
        ("base: {output_dir: x}\nexperiments: {a: {}}", "output_dir"),
        ("base: {}\nseeds: [0, 0]\nexperiments: {a: {}}", "seeds"),
        ("base: {}\nseeds: 3\nexperiments: {a: {}}", "seeds"),
        ("recipe: none.yaml\nexperiments: {a: {}}", "none.yaml"),
        (TWO_SETS, "'a' and 'b'"),
        ("base: {model: {name: m}, data: {forget: f}}\nexperiments: {a: {method: {name: magic}}}", "'a'.*magic"),
        ("base: {", "line"),
    ],
)  # fmt: skip
def test_a_bad_matrix_is_one_line_and_nothing_is_run(text, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_text(text)
    monkeypatch.setattr(unlearning_run, "unlearn", lambda *_, **__: pytest.fail("a run was started"))
    assert cli.main(["compare", "--config", "m.yaml", "--output_dir", "out"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and re.search(named, lines[0]), lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.yaml"]
