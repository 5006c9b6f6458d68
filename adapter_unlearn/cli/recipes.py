"""`adapter-unlearn recipes`: list the shipped recipes, or copy one."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from adapter_unlearn.cli.command import PROGRAM, Command, parse
from adapter_unlearn.errors import RecipeError
from adapter_unlearn.recipe import shipped


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("action", choices=["list", "copy"], help="list the shipped recipes, or copy one to a file")
    parser.add_argument("name", nargs="?", default=None, help="a recipe's name, as listed")
    parser.add_argument("file", nargs="?", default=None, help="where to copy it")


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """List or copy."""
    values = parse(parser, words)
    if values["action"] == "list":
        for name, summary in shipped.listing():
            print(f"{name:32} {summary}")
        return
    if values["name"] is None or values["file"] is None:
        raise RecipeError(f"recipes copy needs a name and a file: {PROGRAM} recipes copy tiny-cpu/sga.yaml my.yaml")
    shipped.copy(values["name"], Path(values["file"]))
    print(f"copied {values['name']} to {values['file']}")


COMMAND = Command("list the shipped recipes, or copy one", add_arguments, run)
