"""What a command is, and the flags that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jsonargparse

from adapter_unlearn import recipe
from adapter_unlearn.errors import RecipeError

PROGRAM = "adapter-unlearn"
METRIC_HELP = "metrics to compute, one column each (see docs/metrics.md); `forward` and `all` stand for several"


@dataclass(frozen=True)
class Command:
    """One command of the program.

    Attributes:
        help: one line for the list of commands.
        add_arguments: adds the command's flags to a parser.
        run: runs the command with that parser on the words of the command line. It returns the exit code, None for 0,
            and raises UserError.
    """

    help: str
    add_arguments: Callable[[jsonargparse.ArgumentParser], None]
    run: Callable[[jsonargparse.ArgumentParser, list[str]], int | None]


def parse(parser: jsonargparse.ArgumentParser, words: list[str]) -> dict[str, Any]:
    """The values of a command's flags.

    Raises:
        RecipeError: a flag is unknown, missing, or has a wrong value.
    """
    try:
        return dict(vars(parser.parse_args(words)))
    except jsonargparse.ArgumentError as error:
        raise RecipeError(recipe.one_line(str(error)).replace("recipe key ", "--").replace("recipe: ", "")) from error


def add_output(parser: jsonargparse.ArgumentParser, default: str | None = None, required: bool = False) -> None:
    """Add --output_dir and --overwrite."""
    options: dict[str, Any] = {"required": True} if required else {"default": default}
    parser.add_argument("--output_dir", type=str, **options, help="folder to write; it must be new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in that folder")


def add_force(parser: jsonargparse.ArgumentParser) -> None:
    """Add --force."""
    parser.add_argument("--force", action="store_true", help="accept an adapter that was made for another base")


def add_model(parser: jsonargparse.ArgumentParser, required: bool = True) -> None:
    """Add the flags that name a base model and the forget set, and say how both are read."""
    needed: dict[str, Any] = {"required": True} if required else {"default": None}
    parser.add_argument("--model", type=str, **needed, help="folder or hub id of the base; embedded:model is shipped")
    parser.add_argument("--forget", nargs="+", **needed, help="the texts: jsonl, csv, parquet, txt, npy, or a hub id")
    parser.add_argument("--quantization", choices=["nf4", "int8", "none"], default="nf4")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--max_tokens", type=int, default=200, help="longer texts become windows of this many tokens")
    parser.add_argument("--prefix_tokens", type=int, default=50, help="tokens of a sequence given as its prefix")
    parser.add_argument("--batch_size", type=int, default=16, help="sequences in one forward pass")
