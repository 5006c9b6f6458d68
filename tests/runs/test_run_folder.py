"""A run's folder is whole or not there; and a fingerprint tells weights apart."""

from __future__ import annotations

import errno
import json

import pytest
import torch
from safetensors.torch import save_file

from adapter_unlearn import OutputError
from adapter_unlearn.runs import run_folder


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "run"
    with run_folder.new_folder(target) as folder:
        (folder / "summary.json").write_text("{}")
        assert not target.exists()
    assert (target / "summary.json").read_text() == "{}"
    assert [path.name for path in target.parent.iterdir()] == ["run"]


def test_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "usual").write_text("")
    with run_folder.new_folder(tmp_path / "run") as folder:
        save_file({"a": torch.zeros(2)}, folder / "adapter_model.safetensors")
    usual = (tmp_path / "usual").stat().st_mode
    assert (tmp_path / "run" / "adapter_model.safetensors").stat().st_mode == usual


@pytest.mark.parametrize("fault", [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_nothing_is_left_when_writing_fails(tmp_path, fault):
    expected = OutputError if isinstance(fault, OSError) else type(fault)
    with pytest.raises(expected), run_folder.new_folder(tmp_path / "run") as folder:
        (folder / "half").write_text("…")
        raise fault
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_leaves_the_old_run(tmp_path):
    with run_folder.new_folder(tmp_path / "run") as folder:
        run_folder.write_json(folder / run_folder.MANIFEST, run_folder.provenance())
        (folder / "summary.json").write_text("old")
    with pytest.raises(OutputError, match="No space left"), run_folder.new_folder(tmp_path / "run", True) as folder:
        (folder / "summary.json").write_text("new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "run" / "summary.json").read_text() == "old"
    with run_folder.new_folder(tmp_path / "run", overwrite=True) as folder:
        (folder / "summary.json").write_text("new")
    assert (tmp_path / "run" / "summary.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_manifest_lists_the_files(tmp_path):
    with run_folder.new_folder(tmp_path / "run") as folder:
        run_folder.write_json(folder / run_folder.ARITHMETIC, run_folder.provenance() | {"files": ["of an input"]})
        (folder / "figures").mkdir()
        (folder / "figures" / "a.png").write_text("")
    manifest = json.loads((tmp_path / "run" / run_folder.ARITHMETIC).read_text())
    assert manifest["files"] == ["figures", "figures/a.png"] and manifest["package"]["name"] == "adapter-unlearn"


def test_an_empty_or_a_new_folder_can_be_written(tmp_path):
    (tmp_path / "empty").mkdir()
    run_folder.check_writable(tmp_path / "empty")
    run_folder.check_writable(tmp_path / "new" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    with run_folder.new_folder(tmp_path / "run") as folder:
        (folder / "summary.json").write_text("{}")
    assert (tmp_path / "run" / "summary.json").exists()


def test_json_has_no_nan(tmp_path):
    run_folder.write_json(tmp_path / "a.json", {"x": float("nan"), "y": [float("inf"), 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [None, 1.5]}
    run_folder.write_json_lines(tmp_path / "a.jsonl", [{"x": 1}, {"x": float("nan")}])
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [{"x": 1}, {"x": None}]


def test_fingerprint_tells_weights_apart(tmp_path):
    def folder(name, weights):
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors")
        return run_folder.fingerprint(tmp_path / name)

    torch.manual_seed(0)
    weights = {"a": torch.randn(300, 300)}
    assert folder("one", weights) == folder("two", weights)
    assert folder("other", {"a": torch.randn(300, 300)}) != run_folder.fingerprint(tmp_path / "one")
    assert folder("shape", {"a": weights["a"].reshape(600, 150)}) != run_folder.fingerprint(tmp_path / "one")
    (tmp_path / "none").mkdir()
    assert run_folder.fingerprint(tmp_path / "none") is None
