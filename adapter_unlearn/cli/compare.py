"""`adapter-unlearn compare`: finished runs side by side, or the runs of a matrix of recipes and seeds."""

from __future__ import annotations

import jsonargparse

from adapter_unlearn.cli.command import Command, add_force, parse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("runs", nargs="*", default=[], help="folders of runs or evaluations")
    parser.add_argument(
        "--config", type=str, default=None,
        help="a matrix (YAML): `base` or `recipe`, `seeds`, `experiments`; missing runs are made",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", type=str, default=None,
        help="the method that differences are relative to: a name, or `best`; the first by default",
    )  # fmt: skip
    add_force(parser)
    parser.add_argument("--output_dir", type=str, required=True, help="folder to write; a matrix's runs go there too")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier comparison, and runs whose recipe has changed"
    )


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> int:
    """Compare, and show the table; 1 if a run failed."""
    values = parse(parser, words)
    from accelerate import PartialState

    from adapter_unlearn import pipeline
    from adapter_unlearn.reporting import terminal

    found = pipeline.compare(matrix=values.pop("config"), **values)
    state = PartialState()
    if state.is_main_process:
        terminal.show_comparison(found, values["output_dir"])
    state.destroy_process_group()
    return int(found.runs["failed"].notna().any())


COMMAND = Command("compare finished runs, or the runs of a matrix of recipes and seeds", add_arguments, run)
