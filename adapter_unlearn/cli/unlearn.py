"""`adapter-unlearn unlearn`: train an unlearning adapter from a recipe and evaluate it."""

from __future__ import annotations

from dataclasses import fields

import jsonargparse

from adapter_unlearn import recipe
from adapter_unlearn.cli.command import Command, show
from adapter_unlearn.recipe import Permissions, Recipe


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    recipe.add_recipe_arguments(parser)
    parser.epilog = (
        "A recipe that names no method takes what it leaves out, the method match included, from recipes/default.yaml."
        " Flags that no recipe can set: --overwrite replaces an earlier run in output_dir; --force accepts a"
        " model.adapter that was made for another base; --trust_remote_code runs Python code that comes with the model;"
        " --resume continues an interrupted run from its checkpoint, OUTPUT_DIR.checkpoint."
    )


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """Unlearn, and show the result."""
    # The permissions are no arguments of the parser, because a recipe's file could set those.
    flags = {f"--{field.name}": field.name for field in fields(Permissions)}
    permissions = Permissions(**{name: True for flag, name in flags.items() if flag in words})
    chosen = recipe.parse_recipe(parser, [word for word in words if word not in flags])
    unlearn_and_show(chosen, permissions)


def unlearn_and_show(chosen: Recipe, permissions: Permissions, demo: bool = False) -> None:
    """Unlearn, and show the result on the first process."""
    from adapter_unlearn import pipeline
    from adapter_unlearn.reporting import terminal

    folder = pipeline.unlearn(chosen, permissions)
    show(lambda: terminal.show_run(folder, demo=demo))


COMMAND = Command("train an unlearning adapter from a recipe, and evaluate it", add_arguments, run)
