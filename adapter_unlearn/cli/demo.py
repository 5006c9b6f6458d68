"""`adapter-unlearn demo`: run everything on the embedded default."""

from __future__ import annotations

import jsonargparse

from adapter_unlearn import recipe
from adapter_unlearn.cli.command import Command, add_output, from_flags, parse
from adapter_unlearn.cli.unlearn import unlearn_and_show
from adapter_unlearn.recipe import Permissions, shipped

RECIPE = ("models/tiny-cpu.yaml", "methods/match.yaml")


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    add_output(parser, ["overwrite", "resume"], default="runs/demo")


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """Unlearn the embedded forget set and show every sequence."""
    values = parse(parser, words)
    chosen = recipe.load_recipe([shipped.folder() / name for name in RECIPE], ["--output_dir", values["output_dir"]])
    unlearn_and_show(chosen, from_flags(Permissions, values), demo=True)


COMMAND = Command(
    "unlearn the embedded forget set: everything in three minutes, nothing to download", add_arguments, run
)
