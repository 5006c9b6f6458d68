"""`adapter-unlearn compare`: compare finished runs, or the runs of a matrix of recipes and seeds."""

from __future__ import annotations

import jsonargparse

from adapter_unlearn.cli.command import PERMISSIONS, Command, add_flags, from_flags, parse, show
from adapter_unlearn.recipe import Permissions


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
    parser.add_argument("--output_dir", type=str, required=True, help="folder to write; a matrix's runs go there too")
    add_flags(parser, PERMISSIONS)


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> int:
    """Compare, and show the table; the exit code is 1 if a run failed."""
    values = parse(parser, words)
    permissions = from_flags(Permissions, values)
    from adapter_unlearn import pipeline
    from adapter_unlearn.reporting import terminal

    comparison = pipeline.compare(matrix=values.pop("config"), permissions=permissions, **values)
    show(lambda: terminal.show_comparison(comparison, values["output_dir"]))
    return int(comparison.runs["failed"].notna().any())


COMMAND = Command("compare finished runs, or the runs of a matrix of recipes and seeds", add_arguments, run)
