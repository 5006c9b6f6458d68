"""The notebooks as a reader of the repository finds them. That they run is `make notebooks`."""

from __future__ import annotations

import ast
import base64
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = re.compile(r"/(?:tmp|work|home|root|Users|private|mnt|opt|usr|var)\b|[A-Z]:\\|site-packages|0x[0-9a-f]{6,}")
PROGRESS = re.compile(r"\d+%\||it/s|s/it|\r|\x1b")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code(path):
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def source(cell):
    """A cell's Python, without the magic commands, which are none."""
    return "\n".join(line for line in "".join(cell["source"]).splitlines() if not line.startswith("%"))


def shows_something(cell):
    """Whether a cell prints, or ends in an expression, whose value a notebook shows."""
    statements = ast.parse(source(cell)).body
    printing = any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        for statement in statements
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
    )
    return printing or (isinstance(statements[-1], ast.Expr) and not is_plain_call(statements[-1]))


def is_plain_call(statement):
    """`look("name", model)`: a call of a function of the notebook's own, for what it does."""
    return isinstance(statement.value, ast.Call) and getattr(statement.value.func, "id", "") in ("look", "clear_output")


def outputs(path):
    return [output for cell in code(path) for output in cell["outputs"]]


def texts(output):
    """Every text of an output; pictures apart."""
    if output["output_type"] == "stream":
        return ["".join(output["text"])]
    return ["".join(value) for kind, value in output["data"].items() if not kind.startswith("image/")]


def test_there_are_two_notebooks():
    assert len(NOTEBOOKS) == 2


@each
def test_each_cell_that_shows_something_was_run_and_kept(path):
    silent = [cell["id"] for cell in code(path) if shows_something(cell) and not cell["outputs"]]
    assert silent == []
    assert [cell["execution_count"] for cell in code(path)] == list(range(1, len(code(path)) + 1))  # once, in order


@each
def test_no_cell_failed_or_warned(path):
    assert {output["output_type"] for output in outputs(path)} <= {"stream", "execute_result", "display_data"}
    assert [texts(output) for output in outputs(path) if output.get("name") == "stderr"] == []
    assert not re.search(r"Warning|Traceback", "".join(text for output in outputs(path) for text in texts(output)))


@each
def test_nothing_of_the_machine_it_ran_on_is_in_what_it_shows(path):
    for output in outputs(path):
        for text in texts(output):
            assert MACHINE.search(text) is None
            assert PROGRESS.search(text) is None
    notebook = read(path)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell["metadata"] == {} for cell in notebook["cells"])


@each
def test_it_is_small_and_has_pictures(path):
    assert path.stat().st_size < 400_000
    pictures = [output["data"]["image/png"] for output in outputs(path) if "image/png" in output.get("data", {})]
    assert len(pictures) >= 4
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


@each
def test_it_writes_to_a_temporary_folder_only(path):
    written = "\n".join(source(cell) for cell in code(path))
    assert "temporary = tempfile.TemporaryDirectory(" in written
    assert "work = Path(temporary.name)" in written
    assert not re.search(r"""["'](?:runs/|\./|\.\./)""", written)
