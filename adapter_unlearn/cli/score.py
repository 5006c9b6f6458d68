"""`adapter-unlearn score`: measure how far each text of a file is memorized."""

from __future__ import annotations

import jsonargparse

from adapter_unlearn.cli.command import METRIC_HELP, Command, add_force, add_model, add_output, parse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    add_model(parser)
    parser.add_argument("--adapter", nargs="+", default=[], help="adapter folders, stacked")
    add_force(parser)
    parser.add_argument("--metrics", nargs="+", default=None, help=METRIC_HELP)
    add_output(parser)


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """Score, and show the most memorized sequences."""
    values = parse(parser, words)
    from accelerate import PartialState

    from adapter_unlearn import pipeline
    from adapter_unlearn.reporting import terminal

    if values["metrics"] is None:
        del values["metrics"]
    scores = pipeline.score_files(**values)
    if PartialState().is_main_process:
        terminal.show_scores(scores)


COMMAND = Command("measure how far each text of a file is memorized", add_arguments, run)
