"""`adapter-unlearn unlearn`: train an unlearning adapter from a recipe and evaluate it."""

from __future__ import annotations

import jsonargparse

from adapter_unlearn import recipe
from adapter_unlearn.cli.command import Command


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    recipe.add_recipe_arguments(parser)
    parser.epilog = (
        "A recipe that names no method takes what it leaves out, the method match included, from recipes/default.yaml."
        " --overwrite replaces an earlier run in output_dir; --force accepts a model.adapter made for another base."
    )


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """Unlearn, and show the result."""
    # Flags of this command, not keys of the recipe: no file may set them.
    overwrite, force = ("--overwrite" in words, "--force" in words)
    words = [word for word in words if word not in ("--overwrite", "--force")]
    unlearn_and_show(recipe.parse_recipe(parser, words), overwrite, force)


def unlearn_and_show(chosen: recipe.Recipe, overwrite: bool, force: bool = False, demo: bool = False) -> None:
    """Unlearn, and show the result on the first process."""
    from accelerate import PartialState

    from adapter_unlearn import pipeline
    from adapter_unlearn.reporting import terminal

    folder = pipeline.unlearn(chosen, overwrite=overwrite, force=force)
    state = PartialState()
    if state.is_main_process:
        terminal.show_run(folder, demo=demo)
    state.destroy_process_group()


COMMAND = Command("train an unlearning adapter from a recipe, and evaluate it", add_arguments, run)
