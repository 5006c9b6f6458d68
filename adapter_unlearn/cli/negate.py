"""`adapter-unlearn negate`: multiply an adapter's delta by a number, given or searched."""

from __future__ import annotations

import jsonargparse

from adapter_unlearn.cli.command import Command, add_force, add_model, add_output, parse
from adapter_unlearn.errors import RecipeError


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--adapter", type=str, required=True, help="folder of a PEFT LoRA adapter")
    parser.add_argument("--scale", type=float, default=-1.0, help="factor of its delta; -1 reverses what it learned")
    parser.add_argument("--search", action="store_true", help="search the best scale; needs --model and --forget")
    add_model(parser, required=False)
    parser.add_argument("--validation", nargs="+", default=None, help="general unseen text, for the perplexity budget")
    parser.add_argument("--holdout", nargs="+", default=None, help="never-seen texts of the forget set's kind")
    parser.add_argument("--scales", nargs="+", type=float, default=None, help="scales the search starts with")
    parser.add_argument("--max_perplexity_increase", type=float, default=0.05, help="the budget, as a fraction")
    add_force(parser)
    add_output(parser, required=True)


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """Scale the adapter, and say where it is."""
    values = parse(parser, words)
    scale = values.pop("scale")
    if not values.pop("search"):
        from adapter_unlearn.weights import arithmetic

        files = {key: values[key] for key in ("adapter", "output_dir", "overwrite")}
        print(f"wrote {arithmetic.negate(scale=scale, **files)}")
        return
    if values["model"] is None or values["forget"] is None:
        raise RecipeError("--search evaluates the model: it needs --model and --forget")
    from adapter_unlearn import pipeline

    if values["scales"] is None:
        del values["scales"]
    folder, best = pipeline.negate_searched(**values)
    print(f"wrote {folder}, scaled by {best:g}; scale_search.jsonl and figures/scales.png show the others")


COMMAND = Command("multiply an adapter's delta by a number, -1 by default, or search the best one", add_arguments, run)
