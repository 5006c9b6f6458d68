"""`adapter-unlearn combine`: the exact weighted sum of adapters."""

from __future__ import annotations

import jsonargparse

from adapter_unlearn.cli.command import Command, add_output, parse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--adapters", nargs="+", required=True, help="folders of PEFT LoRA adapters for one base")
    parser.add_argument("--weights", nargs="+", type=float, required=True, help="one number for each adapter")
    parser.add_argument("--rank", type=int, default=None, help="compress the sum to this rank, by truncated SVD")
    add_output(parser, ("overwrite", "force"), required=True)


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """Combine the adapters, and print the folder."""
    values = parse(parser, words)
    from adapter_unlearn.weights import arithmetic

    print(f"wrote {arithmetic.combine(**values)}; arithmetic.json holds its relative error")


COMMAND = Command("add adapters exactly, with weights", add_arguments, run)
