"""`adapter-unlearn merge`: write the base with adapters merged into its original weights."""

from __future__ import annotations

import jsonargparse

from adapter_unlearn.cli.command import Command, add_force, add_output, parse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--model", type=str, required=True, help="folder or hub id of the base, unquantized")
    parser.add_argument("--adapter", nargs="+", required=True, help="adapter folders; their deltas are added")
    parser.add_argument("--quantization", choices=["nf4", "int8", "none"], default="none", help="applied after merging")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], default=None,
        help="of the merged weights; the base's own by default",
    )  # fmt: skip
    add_force(parser)
    add_output(parser, required=True)


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """Merge, and say where the model is."""
    values = parse(parser, words)
    from adapter_unlearn.weights import merging

    print(f"wrote {merging.merge(**values)}, a plain transformers model; arithmetic.json lists what was merged")


COMMAND = Command("write the base with adapters merged into its original weights", add_arguments, run)
