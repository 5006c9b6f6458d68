"""What may be written where: only a folder of our own is ever replaced, and nothing that is read."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from adapter_unlearn import OutputError
from adapter_unlearn.runs import run_folder


def make_run(folder: Path, content: str = "{}") -> Path:
    with run_folder.new_folder(folder) as staging:
        run_folder.write_json(staging / run_folder.MANIFEST, run_folder.provenance())
        (staging / "summary.json").write_text(content)
        (staging / "figures").mkdir()
        (staging / "figures" / "a.png").write_bytes(b"")
    return folder


def tree(folder: Path) -> dict[str, str | None]:
    """Every entry below a folder, with a file's content."""
    return {
        str(path): path.read_text(errors="replace") if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket may have 108 bytes
        end.bind(path.name)
        os.chdir(here)


def manifest_of(run: Path, text: str) -> None:
    (run / run_folder.MANIFEST).write_text(text)


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (lambda run: (run / "thesis.docx").write_text("x"), "thesis.docx"),
    "a hidden file": (lambda run: (run / ".notes").write_text("x"), ".notes"),
    "a file among the figures": (lambda run: (run / "figures" / "mine.png").write_text("x"), "figures/mine.png"),
    "a folder": (lambda run: (run / "photos").mkdir(), "photos"),
    "a link": (lambda run: (run / "link").symlink_to(run.parent), "link"),
    "a link for a file": (lambda run: replaced(run / "summary.json").symlink_to("/dev/null"), "summary.json"),
    "a link for a folder": (lambda run: replaced(run / "figures").symlink_to(run.parent), "figures"),
    "a pipe": (lambda run: os.mkfifo(run / "pipe"), "pipe"),
    "a pipe for a file": (lambda run: os.mkfifo(replaced(run / "summary.json")), "summary.json"),
    "a socket": (lambda run: bind_socket(run / "socket"), "socket"),
    "no manifest": (lambda run: (run / run_folder.MANIFEST).unlink(), "figures"),
    "an empty manifest": (lambda run: manifest_of(run, "{}"), "figures"),
    "another package's": (lambda run: manifest_of(run, '{"package": {"name": "x"}, "files": ["summary.json"]}'), "fig"),
    "no list of files": (lambda run: manifest_of(run, '{"package": {"name": "adapter-unlearn"}}'), "figures"),
    "odd lists": (
        lambda run: manifest_of(run, '{"package": {"name": "adapter-unlearn"}, "files": [[], 1]}'),
        "figures",
    ),
    "a list as manifest": (lambda run: manifest_of(run, "[]"), "figures"),
    "a deep manifest": (lambda run: manifest_of(run, "[" * 100_000), "figures"),
    "bytes as manifest": (lambda run: (run / run_folder.MANIFEST).write_bytes(b"\xff"), "figures"),
    "a link as manifest": (lambda run: link_itself(run / run_folder.MANIFEST), "figures"),
}


def replaced(path: Path) -> Path:
    """A free place where a file or a folder of files was."""
    for file in path.iterdir() if path.is_dir() else ():
        file.unlink()
    path.rmdir() if path.is_dir() else path.unlink()
    return path


def link_itself(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_with_anything_foreign_is_not_replaced(name, tmp_path):
    run = make_run(tmp_path / "run")
    add, named = FOREIGN[name]
    add(run)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=rf"run: .*{named}"):
        run_folder.check_output(run, True, [])
    with pytest.raises(OutputError, match=rf"run: .*{named}"), run_folder.new_folder(run, overwrite=True):
        pass
    assert tree(tmp_path) == before


def test_only_with_overwrite_a_folder_of_ours_is_replaced(tmp_path):
    run = make_run(tmp_path / "run", "old")
    with pytest.raises(OutputError, match=r"run: .*--overwrite"):
        run_folder.check_output(run, False, [])
    run_folder.check_output(run, True, [tmp_path / "run2", tmp_path])
    with run_folder.new_folder(run, overwrite=True) as folder:
        run_folder.write_json(folder / run_folder.MANIFEST, run_folder.provenance())
    assert [path.name for path in run.iterdir()] == [run_folder.MANIFEST]
    run_folder.check_output(run, True, [])


def test_what_came_up_while_the_new_one_was_made_is_kept(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(OutputError, match=r"run: .*thesis"), run_folder.new_folder(run, overwrite=True) as folder:
        (folder / "summary.json").write_text("new")
        (run / "thesis").write_text("mine")
    assert (run / "thesis").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run.result"}


PLACES: dict[str, Callable[[Path], Path]] = {
    "a file": lambda place: (place / "file").write_text("mine") and place / "file",
    "a pipe": lambda place: os.mkfifo(place / "pipe") or place / "pipe",
    "a socket": lambda place: bind_socket(place / "socket") or place / "socket",
    "a device": lambda place: Path(os.ttyname(os.openpty()[1])),
    "a link to a run": lambda place: linked(place / "link", make_run(place / "run")),
    "a link to nothing": lambda place: linked(place / "link", place / "none"),
    "a link to itself": lambda place: linked(place / "link", place / "link"),
    "below a link to nothing": lambda place: linked(place / "link", place / "none") / "run",
    "below a file": lambda place: Path("/dev/null/run"),
    "where nobody can write": lambda place: Path("/proc/run"),
    "no name": lambda place: place / "none" / "..",
    "a name with NUL": lambda place: place / "a\0b",
    "a long name": lambda place: place / ("x" * 300),
    "the working folder": lambda place: Path(),
    "above the working folder": lambda place: Path(".."),
    "the home folder": lambda place: place / "home",
    "above the home folder": lambda place: place / "above",
    "the root": lambda place: Path("/"),
    "a mount": lambda place: place / "mount",
}


def linked(link: Path, target: Path) -> Path:
    link.symlink_to(target)
    return link


@pytest.mark.parametrize("name", PLACES)
def test_places_that_are_never_replaced(name, tmp_path, monkeypatch):
    for folder in ("work/here", "home", "above/home", "mount"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "here")
    monkeypatch.setenv("HOME", str(tmp_path / ("above/home" if "above" in name else "home")))
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name in ("mount", ""))
    place = PLACES[name](tmp_path)
    before = tree(tmp_path)
    with pytest.raises(OutputError):
        run_folder.check_output(place, True, [])
    with pytest.raises(OutputError), run_folder.new_folder(place, overwrite=True):
        pass
    assert tree(tmp_path) == before


def test_a_mount_in_a_folder_of_ours_is_kept(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "figures")
    with pytest.raises(OutputError, match=r"run: .*figures"):
        run_folder.check_output(run, True, [])


@pytest.mark.parametrize("way", ["itself", "inside", "by a link", "from a link in it", "relative"])
def test_what_is_read_is_not_replaced(way, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "other").symlink_to(run / "summary.json")
    given = {
        "itself": run,
        "inside": run / "summary.json",
        "by a link": tmp_path / "link" / "figures" / "a.png",
        "from a link in it": tmp_path / "other",
        "relative": Path("run/../run/summary.json"),
    }[way]
    with pytest.raises(OutputError, match=r"run: .*input"):
        run_folder.check_output(run, True, ["none", "org/model", "\0", given])


def test_a_full_disk_is_found_before_the_work(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"run: .*No space left"):
        run_folder.check_output(tmp_path / "run", False, [])
    with pytest.raises(OutputError, match=r"out: .*No space left"):
        run_folder.check_renewable(tmp_path / "out", ["report.html"])
    assert list(tmp_path.iterdir()) == []


def test_only_a_comparison_that_lists_its_files_is_renewed(tmp_path):
    names, out = (run_folder.COMPARISON, "figures", "report.html"), tmp_path / "out"
    (out / "runs").mkdir(parents=True)
    (out / "report.html").write_text("mine")
    with pytest.raises(OutputError, match=r"out: .*report.html"):
        run_folder.check_renewable(out, names)
    (out / "report.html").unlink()
    with run_folder.renewed(out, run_folder.COMPARISON) as folder:
        run_folder.write_json(folder / run_folder.COMPARISON, run_folder.provenance())
        (folder / "report.html").write_text("ours")
        (folder / "figures").mkdir()
        (folder / "figures" / "a.png").write_text("ours")
    (out / "mine.txt").write_text("mine")
    run_folder.check_renewable(out, names)
    (out / "figures" / "b.png").write_text("mine")
    with pytest.raises(OutputError, match=r"out: .*figures/b.png"):
        run_folder.check_renewable(out, names)


def test_a_new_file_is_never_a_half_one_or_another(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for name in ("link", "none/file", "x" * 300, "a\0b"):
        with pytest.raises(OutputError):
            run_folder.write_new_file(tmp_path / name, "text")
    with pytest.raises(OutputError, match="half"):
        run_folder.write_new_file(tmp_path / "half", "\ud800")
    run_folder.write_new_file(tmp_path / "file", "text")
    with pytest.raises(OutputError, match="file: "):
        run_folder.write_new_file(tmp_path / "file", "other")
    assert (tmp_path / "file").read_text() == "text" and len(list(tmp_path.iterdir())) == 2
