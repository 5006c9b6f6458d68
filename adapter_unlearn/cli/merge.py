"""`adapter-unlearn merge`: write the base with adapters merged into its original weights."""

from __future__ import annotations

import jsonargparse

from adapter_unlearn.cli.command import Command, add_flags, add_output, from_flags, parse
from adapter_unlearn.recipe import Permissions


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    add_flags(parser, ("model", "quantization", "dtype"), quantization="none", dtype=None)
    parser.add_argument("--adapter", nargs="+", required=True, help="adapter folders; their deltas are added up")
    add_output(parser, required=True)
    parser.epilog = (
        "The base must be unquantized. --quantization is applied after merging. --dtype is that of the merged weights,"
        " by default the base's own."
    )


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """Merge, and print the folder."""
    values = parse(parser, words)
    permissions = from_flags(Permissions, values)
    from adapter_unlearn.weights import merging

    folder = merging.merge(adapters=values.pop("adapter"), permissions=permissions, **values)
    print(f"wrote {folder}, a plain transformers model; arithmetic.json lists what was merged")


COMMAND = Command("write the base with adapters merged into its original weights", add_arguments, run)
