"""One process or two, one batch or several: the same result. Under `accelerate launch`, as a user starts it.

A launch takes many seconds, so one serves all that is asked of two processes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import scoring_helpers
from helpers import TRIAL_STEPS, draw_no_figures, launch, random_rows, tiny_run, write_rows
from safetensors.torch import load_file

from adapter_unlearn import recipe, unlearn
from adapter_unlearn.unlearning import learning_rate_search


def sga(model: str, folder: Path, name: str, **training) -> dict:
    method = {"name": "sga", "threshold": 0.5, "retain_weight": 0.5, "retain_sequences": 2}
    return tiny_run(model, folder, name, method, **training)


def npo(model: str, folder: Path, name: str, **training) -> dict:
    """Weights and a mean over sequences, KL's second forward, and a band that selects fewer and fewer."""
    method = {"name": "compose", "select": "band", "high": 0.3, "low": 0.05, "loss": "npo"}
    method |= {"retain_loss": "kl", "retain_weight": 2.0, "retain_sequences": 3}
    return tiny_run(model, folder, name, method, max_epochs=22, **training)


def match(model: str, folder: Path, name: str, **training) -> dict:
    """Each row keeps its matched holdout sequence, in any process and batch; from the recipe on."""
    method = {"name": "match", "retain_weight": 2.0, "retain_sequences": 2}
    training |= {"learning_rate_decay": 0.5, "max_epochs": 6, "sequences_per_step": 5}
    run = tiny_run(model, folder, name, method, **training)
    run["data"]["holdout"] = write_rows(folder, "holdout.jsonl", random_rows(9, (30, 20, 25, 41, 1)))  # one: no score
    run["stop"] |= {"early": False, "mean_below": 0.9}
    return run | {"evaluation": {"bounds": "paper"}}


def search(model: str, folder: Path, name: str, **training) -> dict:
    """A search of the learning rate, then an epoch."""
    method = {"name": "undial", "retain_loss": "kl", "retain_weight": 2.0, "retain_sequences": 2}
    run = tiny_run(model, folder, name, method, learning_rate="auto", max_epochs=1, **training)
    return run | {"stop": {"mean_below": 0.02, "max_perplexity_increase": 0.2, "patience": 9}}


@pytest.fixture(scope="module")
def model(memorizers):
    return str(memorizers("llama"))


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """Train in this process; the run folder. By default all sequences are in one batch."""

    def train(case, batch_size: int = 8) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            draw_no_figures(patch)
            patch.setattr(learning_rate_search, "STEPS", TRIAL_STEPS)
            return unlearn(case(model, tmp_path_factory.mktemp(case.__name__), "run", batch_size=batch_size))

    return train


@pytest.fixture(scope="module")
def two(model, tmp_path_factory):
    """The folder of the runs of two processes, in batches smaller than a step, and what was printed."""
    folder = tmp_path_factory.mktemp("two")
    for case, batch_size in ((match, 3), (npo, 4), (search, 4), (sga, 4)):
        run = recipe.from_mapping(case(model, folder, case.__name__, batch_size=batch_size))
        (folder / f"{case.__name__}.yaml").write_text(recipe.to_yaml(run))
    write_rows(folder, "rows.jsonl", scoring_helpers.ROWS)
    return folder, launch(Path(__file__).with_name("two_processes.py"), str(folder), model, processes=2)


def lines(folder: Path, name: str = "train_log.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def manifest(folder: Path) -> dict:
    return json.loads((folder / "unlearning.json").read_text())


def assert_same_adapter(run: Path, expected: Path) -> None:
    tensors = load_file(expected / "adapter_model.safetensors")
    assert any(float(tensor.abs().max()) > 0 for name, tensor in tensors.items() if "lora_B" in name)
    for name, tensor in load_file(run / "adapter_model.safetensors").items():
        assert float((tensor - tensors[name]).abs().max()) < 1e-5, (str(run), name)


def assert_same_epochs(run: Path, expected: Path) -> None:
    for one, other in zip(lines(expected)[1:], lines(run)[1:], strict=True):
        assert one["n_selected"] == other["n_selected"] and one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_the_adapter_does_not_depend_on_batches_or_processes(trained, two):
    whole, shared = trained(sga), two[0] / "sga"
    assert two[1].count("Load it with plain PEFT") == 1, "only one process may speak"
    assert manifest(shared)["cost"]["processes"] == 2
    log = lines(whole)
    assert log[1]["n_selected"] > 2 and log[-1]["n_selected"] == 1, "the selection must shrink to one sequence"
    for run in (trained(sga, batch_size=4), shared):
        assert_same_adapter(run, whole)


def test_losses_over_sequences_and_references_are_exact_too(trained, two):
    whole, shared = trained(npo), two[0] / "npo"
    assert manifest(shared)["cost"]["processes"] == 2
    log = lines(whole)
    assert len(log) > 4 and log[-1]["n_selected"] < log[1]["n_selected"]
    assert_same_epochs(shared, whole)
    assert_same_adapter(shared, whole)


def test_matching_is_exact_too(trained, two):
    whole, shared = trained(match), two[0] / "match"
    assert manifest(shared)["cost"]["processes"] == 2
    log = lines(whole)
    assert len(log) == 7, "all epochs are trained"
    assert log[-1]["memorization_accuracy_mean"] < log[0]["memorization_accuracy_mean"], (
        "(the loss itself grows with its rows' weights)"
    )
    for run in (trained(match, batch_size=3), shared):
        assert_same_epochs(run, whole)
        assert_same_adapter(run, whole)


def test_two_processes_take_the_same_learning_rate(trained, two):
    one, shared = trained(search, batch_size=4), two[0] / "search"
    assert [manifest(folder)["cost"]["processes"] for folder in (one, shared)] == [1, 2]
    assert manifest(one)["stages"] == manifest(shared)["stages"]
    rates = [lines(folder, "learning_rate_search.jsonl") for folder in (one, shared)]
    for ours, theirs in zip(*rates, strict=True):
        assert ours["objective"] == pytest.approx(theirs["objective"], rel=1e-4)
        assert ours["validation_perplexity"] is theirs["validation_perplexity"] is None, "the objective decides"
    assert_same_adapter(shared, one)


def test_two_processes_write_the_same_scores(model, two):
    """And when the first can't write, both end, with one line. In parts of 7 the last row is the first process's."""
    folder = two[0]
    frame = scoring_helpers.expected(model, str(folder / "rows.jsonl"))
    means = pytest.approx(frame[scoring_helpers.METRICS].mean().tolist(), rel=1e-5, nan_ok=True)
    for process in ("0.json", "1.json"):
        assert json.loads((folder / process).read_text()) == [2, len(frame), means]
    written = pd.read_parquet(folder / "scores" / "sequences.parquet")
    pd.testing.assert_frame_equal(written, frame, rtol=1e-5, atol=1e-6)
    assert {path.name for path in (folder / "scores").iterdir()} == {"scores.json", "sequences.parquet"}
    assert not list(folder.glob("*full*")), "what failed left nothing"
