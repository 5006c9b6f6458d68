"""A run that is interrupted anywhere and resumed ends with the adapter of the undisturbed run, bit for bit."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_rows
from safetensors.torch import load_file

from adapter_unlearn import OutputError, Permissions, RunError, models, recipe, signals, unlearn
from adapter_unlearn.cli import main
from adapter_unlearn.pipeline import resuming
from adapter_unlearn.runs import checkpoint_file, lock, run_folder
from adapter_unlearn.runs.checkpoint_file import Saved
from adapter_unlearn.unlearning import loop

pytestmark = pytest.mark.usefixtures("without_figures")

RESUME = Permissions(resume=True)

METHODS = {
    "sga": {"name": "sga", "threshold": 0.5, "retain_weight": 0.5, "retain_sequences": 2},
    "tau": {"name": "tau", "threshold": 0.5},
    "match": {"name": "match", "retain_weight": 2.0, "retain_sequences": 4},
}


class Killed(BaseException):
    """Nothing catches it: the process is gone."""


@pytest.fixture
def settings(memorizers, write_rows, tmp_path):
    """Build a recipe of a few epochs that needs everything a checkpoint must hold; dropout needs torch's generator."""

    def build(folder: str, method: str, **training) -> dict:
        synthetic = {"synthetic": 6} if method == "match" else {}
        return {
            "model": {"name": str(memorizers("llama")), "quantization": "none", "dtype": "float32"},
            "data": {
                "forget": write_rows("forget.jsonl", random_rows(0)[:8]),
                "retain": write_rows("retain.jsonl", random_rows(7, (30, 20, 25))),
                "holdout": write_rows("holdout.jsonl", random_rows(9, (30, 40, 25, 36, 31))),
                "validation": write_rows("validation.jsonl", random_rows(8, (30, 20, 25))),
                **synthetic,
            },
            "output_dir": str(tmp_path / folder),
            "adapter": {"r": 4, "alpha": 8, "dropout": 0.1},
            "method": METHODS[method],
            "training": {
                "learning_rate": "auto" if method == "match" else 3e-3, "max_epochs": 3, "batch_size": 4,
                "sequences_per_step": 3, "learning_rate_decay": 0.5, **training,
            },
            "stop": {"mean_below": 0.05, "max_perplexity_increase": 50.0, "early": False},
        }  # fmt: skip

    return build


def result(run: dict) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The adapter, and the log without durations."""
    folder = Path(run["output_dir"])
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return load_file(folder / "adapter_model.safetensors"), [line | {"seconds": None} for line in log]


def assert_same(run: dict, expected: tuple[dict[str, torch.Tensor], list[dict]]) -> None:
    adapter, log = result(run)
    assert log == expected[1]
    assert adapter.keys() == expected[0].keys()
    assert all(torch.equal(adapter[name], tensor) for name, tensor in expected[0].items())


@pytest.fixture(scope="module")
def undisturbed():
    """The results of whole runs, by method; see `whole`."""
    return {}


@pytest.fixture
def whole(settings, undisturbed):
    """Method -> the result of the undisturbed run."""

    def of(method: str):
        if method not in undisturbed:
            run = settings("whole", method)
            unlearn(run)
            undisturbed[method] = result(run)
        return undisturbed[method]

    return of


@pytest.fixture
def kill_after(monkeypatch):
    """End the process after this many checkpoints; 0 lets it live."""
    write, left = checkpoint_file.write, [0]

    def write_and_die(path, saved):
        write(path, saved)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(checkpoint_file, "write", write_and_die)

    def set_number(number: int) -> None:
        left[0] = number

    return set_number


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_is_continued_bit_for_bit(settings, whole, kill_after, method):
    expected, broken = whole(method), settings("broken", method, checkpoint_minutes=0.0)
    checkpoint = checkpoint_file.path_of(broken["output_dir"])
    kills = 0
    for number in (1, 5, 4):  # in all stages, within and after epochs
        kill_after(number)
        try:
            unlearn(broken, RESUME)
            break
        except Killed:
            kills += 1
            assert checkpoint.is_file() and not Path(broken["output_dir"]).exists()
    kill_after(0)
    if not Path(broken["output_dir"]).exists():
        unlearn(broken, RESUME)
    assert kills == 3
    assert_same(broken, expected)
    assert not checkpoint.exists(), "a finished run removes its checkpoint"
    assert not list(checkpoint.parent.glob(".*")), "no lock and no unfinished file is left"


@pytest.fixture
def command(tmp_path):
    """Run `adapter-unlearn unlearn` on a recipe, in this process."""

    def run(settings: dict, *flags: str) -> int:
        (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(recipe.from_mapping(settings)))
        return main(["unlearn", "--config", str(tmp_path / "recipe.yaml"), *flags])

    return run


@pytest.fixture
def at_step(monkeypatch):
    """Do something after a number of optimizer steps: `at_step(3, action)`."""
    take_step = loop.take_step

    def arrange(number: int, action) -> None:
        steps = iter(range(1, 1000))

        def step(*arguments):
            taken = take_step(*arguments)
            if next(steps) == number:
                action()
            return taken

        monkeypatch.setattr(loop, "take_step", step)

    return arrange


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_run_after_the_step(settings, whole, command, at_step, capfd, number, code):
    stopped = settings("stopped", "sga")
    expected = whole("sga")
    at_step(4, lambda: signal.raise_signal(number))  # in the second epoch, or within the first
    before = signal.getsignal(number)
    assert command(stopped) == code
    error = capfd.readouterr().err
    checkpoint = checkpoint_file.path_of(stopped["output_dir"])
    assert [line for line in error.splitlines() if "error:" in line and str(checkpoint) in line and "--resume" in line]
    assert "Traceback" not in error and signal.getsignal(number) is before
    saved = checkpoint_file.read(checkpoint)
    assert saved.values["position"]["steps"] > 0 or saved.values["position"]["epoch"] > 1
    assert not Path(stopped["output_dir"]).exists()
    assert command(stopped, "--resume") == 0
    assert_same(stopped, expected)


def test_a_second_signal_stops_at_once(monkeypatch):
    monkeypatch.setattr(signals, "REPEATED_AFTER", 0.0)
    reached = []
    with pytest.raises(signals.Interrupted), signals.handled(), signals.deferred():
        signal.raise_signal(signal.SIGINT)
        reached.append("recorded")
        signal.raise_signal(signal.SIGINT)
        reached.append("not here")
    assert reached == ["recorded"] and signals.received() is None


def test_a_signal_is_raised_at_the_end_of_the_block():
    with pytest.raises(signals.Interrupted) as stop, signals.handled():
        with signals.deferred():
            signal.raise_signal(signal.SIGTERM)
            assert signals.received() == signal.SIGTERM
        raise AssertionError("not here")
    assert stop.value.number == signal.SIGTERM


@pytest.fixture
def interrupted(settings, kill_after):
    """The recipe of a run that was killed after its second checkpoint."""
    run = settings("broken", "sga")
    kill_after(2)
    with pytest.raises(Killed):
        unlearn(run)
    kill_after(0)
    return run


def test_a_checkpoint_is_not_overlooked(interrupted):
    path = checkpoint_file.path_of(interrupted["output_dir"])
    content = path.read_bytes()
    with pytest.raises(OutputError, match=r"broken\.checkpoint.*--resume"):
        unlearn(interrupted)
    assert path.read_bytes() == content
    unlearn(interrupted, Permissions(overwrite=True))
    log = (Path(interrupted["output_dir"]) / "train_log.jsonl").read_text().splitlines()
    assert len(log) == 4 and not path.exists()


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        pytest.param("training", "learning_rate", 1e-3, "training.learning_rate", id="another recipe"),
        pytest.param("method", "threshold", 0.6, "method.threshold", id="another method"),
        pytest.param("data", "forget", random_rows(3)[:8], "data.forget", id="other texts"),
        pytest.param("data", "retain", random_rows(3)[:3], "data.retain", id="other retain texts"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(interrupted, write_rows, section, key, value, message):
    changed = copy.deepcopy(interrupted)
    path = checkpoint_file.path_of(interrupted["output_dir"])
    content = path.read_bytes()
    if section == "data":
        Path(interrupted["data"][key]).unlink()
        write_rows(f"{key}.jsonl", value)
    else:
        changed[section][key] = value
    with pytest.raises(RunError, match=message):
        unlearn(changed, RESUME)
    assert path.read_bytes() == content


def test_a_base_with_other_weights_is_refused(interrupted, memorizers):
    path = checkpoint_file.path_of(interrupted["output_dir"])
    saved = checkpoint_file.read(path)
    saved.values["identity"]["model"] = run_folder.fingerprint(memorizers("gpt2"))
    checkpoint_file.write(path, saved)
    with pytest.raises(RunError, match="model"):
        unlearn(interrupted, RESUME)


def test_settings_of_memory_and_speed_may_change(interrupted):
    changed = copy.deepcopy(interrupted)
    changed["training"] |= {"batch_size": 2, "gradient_checkpointing": True}
    changed["evaluation"] = {"batch_size": 3}
    unlearn(changed, RESUME)
    assert Path(interrupted["output_dir"], "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "content", [b"", b"\x08" + b"\0" * 7 + b"{}{}{}{}", b"x" * 1000], ids=["empty", "header", "noise"]
)
def test_a_damaged_checkpoint_is_refused(settings, content):
    run = settings("damaged", "sga")
    path = checkpoint_file.path_of(run["output_dir"])
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"damaged\.checkpoint.*--overwrite"):
        unlearn(run, RESUME)
    assert path.read_bytes() == content


def test_a_changed_bit_in_a_checkpoint_is_noticed(interrupted):
    path = checkpoint_file.path_of(interrupted["output_dir"])
    content = bytearray(path.read_bytes())
    content[-100] ^= 1  # in a tensor
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"broken\.checkpoint.*--overwrite"):
        unlearn(interrupted, RESUME)


@pytest.mark.parametrize("known", [None, {}, {"seed": "x"}, 3], ids=str)
def test_a_checkpoint_without_a_recipe_is_refused(settings, known):
    run = recipe.from_mapping(settings("odd", "sga"))
    path = checkpoint_file.path_of(run.output_dir)
    checkpoint_file.write(path, Saved({"identity": {"version": resuming.VERSION, "recipe": known}}, {}))
    with pytest.raises(RunError, match=r"odd\.checkpoint.*--overwrite"):
        resuming.check(run, RESUME)


def test_a_full_disk_leaves_the_last_checkpoint(settings, whole, monkeypatch, at_step):
    """The file of the next checkpoint ends in the middle."""
    run = settings("full", "sga")
    expected = whole("sga")
    at_step(7, lambda: monkeypatch.setattr(checkpoint_file, "_flush", no_space))
    with pytest.raises(OutputError, match=r"full\.checkpoint.*No space left") as failure:
        unlearn(run)
    assert "--resume" in failure.value.__notes__[0]
    path = checkpoint_file.path_of(run["output_dir"])
    assert [entry.name for entry in path.parent.iterdir() if "full" in entry.name] == [path.name]
    monkeypatch.undo()
    unlearn(run, RESUME)
    assert_same(run, expected)


def test_too_little_space_is_found_before_training(settings, monkeypatch, at_step):
    run = settings("small", "sga")
    at_step(1, lambda: pytest.fail("it trained"))
    usage = shutil.disk_usage(Path(run["output_dir"]).parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=10_000))
    with pytest.raises(OutputError, match=r"small\.checkpoint"):
        unlearn(run)


def no_space(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_two_runs_do_not_write_one_folder(settings):
    run = settings("taken", "sga")
    with lock.locked(run["output_dir"]), pytest.raises(OutputError, match=r"taken.*another process"):
        unlearn(run)
    assert not [path for path in Path(run["output_dir"]).parent.iterdir() if "taken" in path.name]


def test_the_lock_leaves_nothing(tmp_path):
    with lock.locked(tmp_path / "new" / "folder" / "run"):
        assert (tmp_path / "new" / "folder").is_dir()
    assert not list(tmp_path.iterdir())


def test_resume_without_a_checkpoint_starts_from_the_beginning(settings):
    run = settings("new", "sga", max_epochs=1)
    unlearn(run, RESUME)
    assert len(result(run)[1]) == 2


def test_no_token_of_the_forget_set_is_in_a_checkpoint(interrupted):
    content = checkpoint_file.path_of(interrupted["output_dir"]).read_bytes()
    assert not any(needle in content for needle in needles())
    planted = checkpoint_file.path_of(interrupted["output_dir"]).with_suffix(".planted")
    for tokens in ([random_rows(0)[1][3:13]], random_rows(0)[:1]):
        checkpoint_file.write(planted, Saved({"position": tokens}, {}))
        assert any(needle in planted.read_bytes() for needle in needles())
        checkpoint_file.write(planted, Saved({}, {"ids": torch.tensor(tokens)}))
        assert any(needle in planted.read_bytes() for needle in needles())


def needles() -> list[bytes]:
    """Any 8 tokens in a row of the forget set, as text and as arrays."""
    eights = [row[start : start + 8] for row in random_rows(0)[:8] for start in range(len(row) - 7)]
    texts = [mark.join(map(str, eight)).encode() for eight in eights for mark in (", ", ",", " ")]
    return texts + [
        np.array(eight, kind).tobytes() for eight in eights for kind in ("int64", "int32", "int16", "uint8")
    ]


def test_the_base_is_unchanged_under_a_resumed_adapter(interrupted):
    unlearn(interrupted, RESUME)
    ids = torch.tensor([random_rows(0)[0]])
    base = models.load_base(interrupted["model"]["name"], "none", "float32")
    with torch.no_grad():
        before = base(input_ids=ids).logits
        stacked = models.stack(base, [interrupted["output_dir"]])
        assert not torch.equal(stacked(input_ids=ids).logits, before)
        with models.active(stacked, []):
            assert torch.equal(stacked(input_ids=ids).logits, before)
