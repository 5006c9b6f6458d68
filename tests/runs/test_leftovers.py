"""What killed processes leave is removed by the next run of the same output, and nothing else is."""

from __future__ import annotations

import errno
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from adapter_unlearn import OutputError
from adapter_unlearn.runs import run_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from adapter_unlearn.runs import locks
with locks.hidden_folder(Path(sys.argv[1]), sys.argv[2], sys.argv[3]) as folder:
    (folder / "text").write_text("in clear")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave(place: Path, name: str, kind: str, content: str = "text") -> Path:
    folder = place / f".{name}.abc_1234.{kind}"
    folder.mkdir()
    (folder / content).write_text("")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["partial", "temporary"])
def test_the_next_run_of_an_output_removes_them(kind, tmp_path):
    words = [sys.executable, "-c", KILLED, str(tmp_path), "run", kind]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    with run_folder.new_folder(tmp_path / "other"):
        pass
    assert len(names(tmp_path)) == 2, "another output does not"
    run_folder.check_output(tmp_path / "run", False, [])
    assert names(tmp_path) == ["other"]


def test_what_a_process_works_in_stays(tmp_path):
    with run_folder.new_folder(tmp_path / "run") as folder:
        run_folder.check_output(tmp_path / "run", False, [])
        assert folder.is_dir()
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("name", [".run.a.abc_1234.partial", ".run.abc_123.partial", ".run.abc_1234.mine", "run.old"])
def test_what_has_another_name_stays(name, tmp_path):
    (tmp_path / name).mkdir()
    run_folder.check_output(tmp_path / "run", False, [])
    assert names(tmp_path) == [name]


def test_a_file_or_a_link_with_such_a_name_stays(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / ".run.abc_1234.old").write_text("mine")
    (tmp_path / ".run.abc_1234.partial").symlink_to(tmp_path / "folder")
    run_folder.check_output(tmp_path / "run", False, [])
    assert len(names(tmp_path)) == 3


def test_an_old_run_without_its_place_is_put_back(tmp_path):
    leave(tmp_path, "run", "partial")
    leave(tmp_path, "run", "old", "mine")
    with pytest.raises(OutputError, match="run: "):
        run_folder.check_output(tmp_path / "run", False, [])
    assert names(tmp_path) == ["run"] and names(tmp_path / "run") == ["mine"]
    leave(tmp_path, "run", "old")
    with pytest.raises(OutputError, match="run: "):
        run_folder.check_output(tmp_path / "run", False, [])
    assert names(tmp_path) == ["run"] and names(tmp_path / "run") == ["mine"]


def test_a_comparison_that_was_killed_halfway_is_made_again(tmp_path):
    files = [run_folder.COMPARISON, "report.html"]
    (tmp_path / "report.html").write_text("of a comparison whose mark was still to come")
    leave(tmp_path, run_folder.COMPARISON, "partial", run_folder.COMPARISON)
    run_folder.check_renewable(tmp_path, files)
    run_folder.check_renewable(tmp_path, files)
    with run_folder.renewed(tmp_path, run_folder.COMPARISON) as folder:
        for name in files:
            run_folder.write_json(folder / name, run_folder.provenance())
    assert names(tmp_path) == files


# --- temporary folders ---


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The place of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_temporary_folders_of_killed_processes_are_removed(place):
    left = leave(place, "adapter-unlearn", "temporary")
    with run_folder.temporary() as folder:
        assert folder.parent == place and folder.stat().st_mode & 0o77 == 0 and not left.exists()
        with run_folder.temporary() as other:
            assert folder.is_dir() and other != folder
    assert names(place) == []


def test_one_beside_an_output_is_removed_by_its_next_run(tmp_path):
    with run_folder.temporary(beside=tmp_path / "new" / "run") as folder:
        assert folder.parent == tmp_path / "new"
    leave(tmp_path, "run", "temporary")
    run_folder.check_output(tmp_path / "run", False, [])
    assert names(tmp_path) == ["new"]


def test_a_full_place_is_one_line(place, monkeypatch):
    with pytest.raises(OutputError, match="TMPDIR"), run_folder.temporary():
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), run_folder.temporary():
        (place / "none" / "file").read_text()
    monkeypatch.setattr(tempfile, "tempdir", str(place / "none" / "none"))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    with pytest.raises(OutputError, match="TMPDIR"), run_folder.temporary():
        pytest.fail("begun")


# --- files that can't grow ---


@pytest.fixture
def small_files():
    """No file can grow beyond 64 KiB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {
    "json": lambda folder: run_folder.write_json(folder / "a.json", list(range(2**16))),
    "lines": lambda folder: run_folder.write_json_lines(folder / "a.jsonl", range(2**16)),
    "parquet": lambda folder: pd.DataFrame({"a": np.random.default_rng(0).random(2**16)}).to_parquet(folder / "a"),
    "csv": lambda folder: pd.DataFrame({"a": range(2**16)}).to_csv(folder / "a.csv"),
    "safetensors": lambda folder: save_file({"a": np.zeros(2**16)}, folder / "a.safetensors"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_fills_up_leaves_no_half_folder(kind, place, monkeypatch, small_files):
    with pytest.raises(OutputError, match="run: "):
        run_folder.check_output(place / "run", False, [])
    with pytest.raises(OutputError, match="TMPDIR"), run_folder.temporary():
        pytest.fail("begun")
    monkeypatch.setattr("adapter_unlearn.runs.output.PROBE_BYTES", 1)  # the disk fills up later
    with pytest.raises(OutputError, match="run: "), run_folder.new_folder(place / "run") as folder:
        WRITERS[kind](folder)
    with pytest.raises(OutputError, match="out: "), run_folder.renewed(place / "out", "mark") as folder:
        WRITERS[kind](folder)
    with pytest.raises(OutputError, match="TMPDIR"), run_folder.temporary() as folder:
        WRITERS[kind](folder)
    assert names(place) == []
