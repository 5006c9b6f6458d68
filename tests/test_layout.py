"""The package's layout: imports run downwards only, and no name of an earlier vocabulary is left."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "adapter_unlearn"
LAYERS = (
    "cli", "pipeline", "reporting", "audit", "unlearning", "evaluation", "scoring", "metrics", "weights", "models",
    "runs", "data", "recipe", "assets", "version", "progress", "signals", "errors",
)  # fmt: skip
"""The modules of the package, from top to bottom. A module imports from its own layer and those below it."""


def imports(source: str) -> list[str]:
    """The layers of the package that a module imports, those under TYPE_CHECKING and in functions included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level > 1:
            found.append("..")  # out of its folder by a relative import: no way that the table of layers could judge
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "adapter_unlearn":
            inner = node.module.split(".")[1:]
            found += inner[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found += [name[1] if name[1:] else "adapter_unlearn" for name in names if name[0] == "adapter_unlearn"]
    return found


def upward(layer: str, source: str) -> list[str]:
    """What a module of this layer imports that is not below it; the package itself is above everything."""
    return [name for name in imports(source) if name not in LAYERS or LAYERS.index(name) < LAYERS.index(layer)]


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if layer_of(path) not in ("__init__", "__main__")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_downwards(path):
    assert upward(layer_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from adapter_unlearn.pipeline import evaluate",
        "from adapter_unlearn import cli",
        "from ..cli import main",
        "import adapter_unlearn",
        "import adapter_unlearn.reporting.run",
        "def f():\n    from adapter_unlearn.unlearning import loop",
        "if TYPE_CHECKING:\n    from adapter_unlearn.evaluation.report import Report",
    ],
)
def test_an_upward_import_is_found(source):
    assert upward("scoring", source)
    assert not upward("cli", source) or source in ("import adapter_unlearn", "from ..cli import main")


def test_the_top_level_is_small():
    entries = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("__pycache__")}
    assert {layer_of(path) for path in MODULES} <= set(LAYERS)
    assert len(entries) <= 20, sorted(entries)
