"""`adapter-unlearn evaluate`: measure a base model and adapters on it, in every deployment form."""

from __future__ import annotations

from typing import get_args

import jsonargparse

from adapter_unlearn import recipe
from adapter_unlearn.cli.command import METRIC_HELP, Command, add_force, add_model, add_output, parse

MATRIX_FLAGS = (
    "model", "adapter", "forget", "quantization", "dtype", "max_tokens", "prefix_tokens", "batch_size", "output_dir",
    "overwrite", "force",
)  # fmt: skip


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    add_model(parser)
    parser.add_argument("--adapter", nargs="+", required=True, help="adapter folders; several are active together")
    for name, help_ in [
        ("holdout", "never-seen texts of the forget set's kind; the bounds come from them"),
        ("retain", "texts whose behaviour should be preserved"),
        ("validation", "general unseen text"),
        ("test", "general unseen text, only reported"),
    ]:
        parser.add_argument(f"--{name}", nargs="+", default=None, help=help_)
    parser.add_argument(
        "--forms", nargs="+", choices=get_args(recipe.Form), default=["stacked"],
        help="deployment forms beside the base: stacked; merged into the original weights; requantized after merging",
    )  # fmt: skip
    parser.add_argument("--metrics", nargs="+", default=[], help=METRIC_HELP)
    parser.add_argument("--bounds", choices=["holdout", "paper"], default="holdout")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        help="downstream tasks: names of lm-eval tasks, `paper`, `quick`, or task files",
    )
    parser.add_argument("--replies", type=str, default=None, help="dialogues (jsonl: prompt, reply) to answer")
    parser.add_argument("--limit", type=int, default=None, help="use only the first samples of each task")
    parser.add_argument(
        "--matrix", action="store_true",
        help="treat each --forget file as its own set, and evaluate every combination of adapters on every set",
    )  # fmt: skip
    add_force(parser)
    add_output(parser)


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """Evaluate, and show the result."""
    values = parse(parser, words)
    from accelerate import PartialState

    from adapter_unlearn import pipeline
    from adapter_unlearn.reporting import terminal

    if not values.pop("matrix"):
        found = pipeline.evaluate(**values)
        if PartialState().is_main_process:
            terminal.show_report(found)
        return
    rows = pipeline.evaluate_interference(**{flag: values[flag] for flag in MATRIX_FLAGS})
    if PartialState().is_main_process:
        terminal.show_interference(rows)


COMMAND = Command("measure a base and adapters on it, side by side", add_arguments, run)
