"""Test the saved notebooks: outputs, metadata and links. `make notebooks` tests that they run."""

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
SILENT_CALLS = ("measure", "clear_output")
"""Functions of the notebooks that are called for their effect and return nothing."""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(path):
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def source(cell):
    """A cell's Python code without magic commands."""
    return "\n".join(line for line in "".join(cell["source"]).splitlines() if not line.startswith("%"))


def has_output(cell):
    """Whether a cell prints, or ends in an expression whose value a notebook shows."""
    statements = ast.parse(source(cell)).body
    prints = any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        for statement in statements
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
    )
    return prints or (isinstance(statements[-1], ast.Expr) and not is_silent_call(statements[-1]))


def is_silent_call(statement):
    return isinstance(statement.value, ast.Call) and getattr(statement.value.func, "id", "") in SILENT_CALLS


def outputs(path):
    return [output for cell in code_cells(path) for output in cell["outputs"]]


def texts(output):
    """Every text of an output, without images."""
    if output["output_type"] == "stream":
        return ["".join(output["text"])]
    return ["".join(value) for kind, value in output["data"].items() if not kind.startswith("image/")]


def test_there_are_two_notebooks():
    assert len(NOTEBOOKS) == 2


@each_notebook
def test_cells_were_executed_once_in_order_and_their_outputs_saved(path):
    missing = [cell["id"] for cell in code_cells(path) if has_output(cell) and not cell["outputs"]]
    assert missing == []
    assert [cell["execution_count"] for cell in code_cells(path)] == list(range(1, len(code_cells(path)) + 1))


@each_notebook
def test_no_cell_failed_or_warned(path):
    assert {output["output_type"] for output in outputs(path)} <= {"stream", "execute_result", "display_data"}
    assert [texts(output) for output in outputs(path) if output.get("name") == "stderr"] == []
    assert not re.search(r"Warning|Traceback", "".join(text for output in outputs(path) for text in texts(output)))


@each_notebook
def test_nothing_of_the_machine_is_saved(path):
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


@each_notebook
def test_it_is_small_and_has_images(path):
    assert path.stat().st_size < 400_000
    images = [output["data"]["image/png"] for output in outputs(path) if "image/png" in output.get("data", {})]
    assert len(images) >= 4
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)


@each_notebook
def test_it_writes_to_a_temporary_folder_only(path):
    code = "\n".join(source(cell) for cell in code_cells(path))
    assert "temporary = tempfile.TemporaryDirectory(" in code
    assert "work = Path(temporary.name)" in code
    assert not re.search(r"""["'](?:runs/|\./|\.\./)""", code)


@each_notebook
def test_links_to_files_resolve(path):
    cells = ("".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == "markdown")
    links = [link for cell in cells for link in re.findall(r"\]\(([^)#\s]+)", cell)]
    assert all((FOLDER / link).is_file() for link in links if "://" not in link)
