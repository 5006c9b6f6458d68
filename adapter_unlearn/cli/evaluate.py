"""`adapter-unlearn evaluate`: measure a base model and adapters on it, in every deployment form."""

from __future__ import annotations

import jsonargparse

from adapter_unlearn.cli import command
from adapter_unlearn.cli.command import Command, from_flags, parse
from adapter_unlearn.recipe import Data, Evaluation, Model, Permissions, Utility


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    command.add_flags(parser, command.BASE)
    parser.add_argument("--adapter", nargs="+", required=True, help="adapter folders; several are active together")
    command.add_flags(parser, ("holdout", "retain", "validation", "test", "forms", "metrics", "bounds"))
    command.add_flags(parser, ("tasks", "replies", "limit"))
    parser.add_argument(
        "--matrix", action="store_true",
        help="treat each --forget file as its own set, and evaluate every combination of adapters on every set",
    )  # fmt: skip
    command.add_output(parser, default=None)


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """Evaluate, and show the result."""
    values = parse(parser, words)
    model, data, utility = from_flags(Model, values), from_flags(Data, values), from_flags(Utility, values)
    evaluation, permissions = from_flags(Evaluation, values), from_flags(Permissions, values)
    adapters, output_dir = values["adapter"], values["output_dir"]
    from adapter_unlearn import pipeline
    from adapter_unlearn.reporting import terminal

    if values["matrix"]:
        rows = pipeline.evaluate_interference(model, adapters, data, evaluation.batch_size, output_dir, permissions)
        command.show(lambda: terminal.show_interference(rows))
        return
    report = pipeline.evaluate(model, adapters, data, evaluation, utility, output_dir, permissions)
    command.show(lambda: terminal.show_report(report))


COMMAND = Command("measure a base and adapters on it in every deployment form", add_arguments, run)
