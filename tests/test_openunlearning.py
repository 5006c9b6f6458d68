"""Our metrics beside the values that OpenUnlearning's own code gave, recorded by benchmarks/openunlearning."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / "openunlearning" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare = script("compare")


@pytest.fixture(scope="module")
def ours():
    return script("ours").run()


@pytest.fixture(scope="module")
def theirs():
    return json.loads((RESULTS / "openunlearning_theirs.json").read_text(encoding="utf-8"))


def test_where_the_definitions_are_the_same_the_values_are(ours, theirs):
    result = compare.compare(ours, theirs)
    assert compare.disagreements(result) == []
    same = [line for lines in result["tables"].values() for line in lines if line["same_definition"]]
    assert len(same) == 22 and all(line["n"] == 96 for line in same)


@pytest.mark.parametrize("metric", ["extraction_strength_openunlearning", "exact_memorization", "min_k", "zlib"])
def test_one_value_that_is_off_is_found(ours, theirs, metric):
    changed = copy.deepcopy(ours)
    changed["forms"]["prompt"]["scores"]["forget"][metric][3] += 1e-3
    assert len(compare.disagreements(compare.compare(changed, theirs))) == 1


def test_an_auc_that_is_off_is_found(ours, theirs):
    changed = copy.deepcopy(ours)
    changed["forms"]["prompt"]["auc"]["min_k_40"] -= 1e-3
    assert len(compare.disagreements(compare.compare(changed, theirs))) == 1


def test_the_page_is_made_of_the_recorded_result():
    result = json.loads((RESULTS / "openunlearning.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "openunlearning.md").read_text(encoding="utf-8") == compare.page(result)
