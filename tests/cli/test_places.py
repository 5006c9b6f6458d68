"""Paths on the command line: what no command replaces, `~`, and where the output goes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import jsonargparse
import pytest
import yaml

from adapter_unlearn import cli, load_recipe
from adapter_unlearn.cli.command import Command
from adapter_unlearn.recipe import Data, Model, Utility
from adapter_unlearn.reporting import terminal
from adapter_unlearn.runs import run_folder

TRAINED = ["unlearn", "--model.name", "m", "--data.forget", "f", "--method.name", "sga"]
SCORED = ["--model", "m", "--forget", "f"]
OVERWRITE = {
    "demo": ["demo"],
    "unlearn": TRAINED,
    "score": ["score", *SCORED],
    "evaluate": ["evaluate", *SCORED, "--adapter", "a"],
    "evaluate --matrix": ["evaluate", *SCORED, "--adapter", "a", "--matrix"],
    "negate": ["negate", "--adapter", "a"],
    "negate --search": ["negate", "--adapter", "a", "--search", *SCORED],
    "combine": ["combine", "--adapters", "a", "--weights", "1"],
    "compress": ["combine", "--adapters", "a", "--weights", "1", "--rank", "1"],
    "merge": ["merge", "--model", "m", "--adapter", "a"],
}
"""Commands that write a folder; what they read is not there."""

READS = {
    "model": ["merge", "--model", "IN", "--adapter", "a"],
    "adapter, negated": ["negate", "--adapter", "IN"],
    "adapter, negated and searched": ["negate", "--adapter", "IN", "--search", *SCORED],
    "adapter, combined": ["combine", "--adapters", "a", "IN", "--weights", "1", "1"],
    "adapter, merged": ["merge", "--model", "m", "--adapter", "a", "IN"],
    "adapter, scored": ["score", *SCORED, "--adapter", "IN"],
    "adapter, evaluated": ["evaluate", *SCORED, "--adapter", "IN"],
    "adapter of a matrix": ["evaluate", *SCORED, "--adapter", "a", "IN", "--matrix"],
    "frozen adapter": [*TRAINED, "--model.adapter", "IN"],
    "texts": ["score", "--model", "m", "--forget", "f", "IN/rows.jsonl"],
    "a split": ["score", "--model", "m", "--forget", "IN:test"],
    "dialogues": ["evaluate", *SCORED, "--adapter", "a", "--replies", "IN/rows.jsonl"],
    "a task": ["evaluate", *SCORED, "--adapter", "a", "--tasks", "quick", "IN/task.yaml"],
    "a recipe": [*TRAINED, "--config", "IN/recipe.yaml"],
    "a recipe after =": [*TRAINED, "--config=IN/recipe.yaml"],
    "a matrix's recipe": ["compare", "--config", "matrix.yaml"],
}
"""What a command may read, with IN for a folder in the one to write."""


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """A folder of ours with files in `inner`, which its manifest lists; it is below the working folder."""
    monkeypatch.chdir(tmp_path)
    with run_folder.new_folder("ours") as folder:
        run_folder.write_json(folder / run_folder.MANIFEST, run_folder.provenance())
        (folder / "inner").mkdir()
        for name in ("config.json", "adapter_config.json", "rows.jsonl", "task.yaml", "unlearning.json"):
            (folder / "inner" / name).write_text("{}")
        (folder / "inner" / "recipe.yaml").write_text(
            "{seed: 1, model: {name: m}, data: {forget: f}, method: {name: sga}}"
        )
    return tmp_path / "ours"


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(words: list[str], named: str, folder: Path, capsys) -> None:
    """The command ends with one line that names this, and changes nothing."""
    before = tree(folder)
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and named in lines[0], lines
    assert tree(folder) == before


@pytest.mark.parametrize("name", OVERWRITE)
def test_no_command_replaces_what_is_not_ours(name, ours, tmp_path, capsys):
    (ours / "thesis.docx").write_text("years of work")
    words = [*OVERWRITE[name], "--output_dir", str(ours)]
    refused([*words, "--overwrite"], "thesis.docx", tmp_path, capsys)
    refused(words, "thesis.docx", tmp_path, capsys)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused([*OVERWRITE[name], "--output_dir", "link", "--overwrite"], "link", tmp_path, capsys)


@pytest.mark.parametrize("name", READS)
def test_no_command_replaces_what_it_reads(name, ours, tmp_path, capsys):
    inside = ours / "inner"
    place = ours
    if name == "a matrix's recipe":  # its runs are written to runs/NAME-seedN
        place = tmp_path / "out"
        (place / "runs").mkdir(parents=True)
        inside = ours.rename(place / "runs" / "a-seed1") / "inner"
        (tmp_path / "matrix.yaml").write_text(f"{{recipe: {inside}/recipe.yaml, experiments: {{a: {{}}}}}}")
    words = [word.replace("IN", str(inside)) for word in READS[name]]
    refused([*words, "--output_dir", str(place), "--overwrite"], "inner", tmp_path, capsys)


def test_a_copied_recipe_replaces_nothing(tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "mine").write_text("mine")
    for name in ("link", "mine", "none/file"):
        refused(["recipes", "copy", "tiny-cpu", "sga", str(tmp_path / name)], name, tmp_path, capsys)
    assert not (tmp_path / "nowhere").exists()


# --- the home folder ---


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_home_in_recipes(home):
    recipe = {"model": {"name": "~/m", "adapter": "~/a"}, "output_dir": "~/out", "data": {"forget": ["~/f", "g~"]}}
    (home / "r.yaml").write_text(yaml.safe_dump(recipe | {"method": {"name": "sga"}}))
    run = load_recipe("~/r.yaml", ["--data.retain", "~/r"])
    assert (run.model.name, run.model.adapter, run.output_dir) == (f"{home}/m", f"{home}/a", f"{home}/out")
    assert run.data == Data([f"{home}/f", "g~"], retain=f"{home}/r")
    assert Model("~/m").name == f"{home}/m" and Utility(("quick", "~/t.yaml")).tasks == ("quick", f"{home}/t.yaml")


def test_home_in_flags(home, capsys):
    assert cli.main(["recipes", "copy", "tiny-cpu", "sga", "~/my.yaml"]) == 0 and (home / "my.yaml").is_file()
    (home / "taken").write_text("mine")
    for words in (["--output_dir", "~/taken"], ["--output_dir=~/taken"]):
        assert cli.main(["negate", "--adapter", "a", *words]) == 2
        assert f"{home}/taken: " in capsys.readouterr().err
        assert cli.main([*TRAINED, "--config", "~/my.yaml", *words]) == 2
        assert f"{home}/taken: " in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


# --- the terminal ---


def printing(monkeypatch, text: str) -> None:
    """Make a command `say` that prints a text."""
    command = Command("say", lambda parser: None, lambda parser, words: print(text))
    monkeypatch.setitem(cli.COMMANDS, "say", command)


def test_a_terminal_that_lacks_a_character_loses_no_result(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    printing(monkeypatch, "accuracy ≤ 0.5, \ud800 é")
    assert cli.main(["say"]) == 0
    assert stream.buffer.getvalue() == "accuracy ? 0.5, ? é\n".encode("latin-1")


def test_a_reader_that_leaves_is_no_error():
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "adapter_unlearn", "recipes", "list"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("columns", ["0", "00", "120", "", "wide"])
def test_a_terminal_without_width_shows_the_result(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    terminal._console().print("accuracy 0.5")
    assert capsys.readouterr().out == "accuracy 0.5\n"
    parser = jsonargparse.ArgumentParser()
    cli.COMMANDS["score"].add_arguments(parser)
    assert "--forget" in parser.format_help()
