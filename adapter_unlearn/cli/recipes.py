"""`adapter-unlearn recipes`: list the shipped recipes, or copy a model and a method to one file."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from adapter_unlearn import recipe
from adapter_unlearn.cli.command import PROGRAM, Command, parse
from adapter_unlearn.errors import RecipeError
from adapter_unlearn.recipe import shipped


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "action", choices=["list", "copy"], help="list the shipped recipes, or copy a model and a method to one file"
    )
    parser.add_argument("model", nargs="?", default=None, help="a model's name, as listed")
    parser.add_argument("method", nargs="?", default=None, help="a method's name, as listed")
    parser.add_argument("file", nargs="?", default=None, help="the file to write; it must be new")


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """List or copy."""
    values = parse(parser, words)
    if values["action"] == "list":
        for kind in shipped.KINDS:
            print(f"{kind} (--config {kind}/NAME.yaml)")
            for name in shipped.names(kind):
                print(f"  {name:14} {shipped.header(kind, name)[0]}")
        return
    model, method, file = values["model"], values["method"], values["file"]
    if file is None:
        raise RecipeError(
            f"recipes copy: needs a model, a method and a file; for example {PROGRAM} recipes copy tiny-cpu sga my.yaml"
        )
    _copy(model, method, Path(file))
    print(f"copied model {model} and method {method} to {file}")


def _copy(model: str, method: str, file: Path) -> None:
    """Write one file that resolves to the same recipe as the pair.

    Raises:
        RecipeError: no model or no method has this name.
        OutputError: the file exists, or can't be written.
    """
    pair = list(zip(shipped.KINDS, (model, method)))
    for kind, name in pair:
        if name not in shipped.names(kind):
            raise RecipeError(f"recipes copy: {name!r} is not among the {kind}; use {', '.join(shipped.names(kind))}")
    chosen = recipe.load_recipe([shipped.folder() / kind / f"{name}.yaml" for kind, name in pair])
    comments = [f"# {line}\n" for kind, name in pair for line in shipped.header(kind, name)]
    text = "".join([*comments, "# docs/recipes.md explains the keys.\n", recipe.commented_yaml(chosen)])
    from adapter_unlearn.runs import run_folder

    run_folder.write_new_file(file, text)


COMMAND = Command("list the shipped recipes, or copy a model and a method to one file", add_arguments, run)
