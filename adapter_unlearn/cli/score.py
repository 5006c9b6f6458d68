"""`adapter-unlearn score`: measure how far each text of a file is memorized."""

from __future__ import annotations

import jsonargparse

from adapter_unlearn.cli import command
from adapter_unlearn.cli.command import Command, from_flags, parse
from adapter_unlearn.recipe import Data, Evaluation, Model, Permissions


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    command.add_flags(parser, command.BASE)
    parser.add_argument("--adapter", nargs="+", default=[], help="adapter folders; several are active together")
    command.add_flags(parser, ["metrics"], metrics=None)
    command.add_output(parser, default=None)


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """Score, and show the most memorized sequences."""
    values = parse(parser, words)
    from adapter_unlearn import pipeline, scoring
    from adapter_unlearn.reporting import terminal

    values["metrics"] = values["metrics"] or list(scoring.DEFAULT_METRICS)
    model, data = from_flags(Model, values), from_flags(Data, values)
    evaluation, permissions = from_flags(Evaluation, values), from_flags(Permissions, values)
    overview = pipeline.score_files(model, data, values["adapter"], evaluation, values["output_dir"], permissions)
    command.show(lambda: terminal.show_scores(overview))


COMMAND = Command("measure how far each text of a file is memorized", add_arguments, run)
