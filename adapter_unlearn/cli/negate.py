"""`adapter-unlearn negate`: multiply an adapter's delta by a scale, given or searched."""

from __future__ import annotations

import jsonargparse

from adapter_unlearn.cli.command import BASE, Command, add_flags, add_output, from_flags, parse
from adapter_unlearn.errors import RecipeError
from adapter_unlearn.recipe import Data, Model, Permissions


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--adapter", type=str, required=True, help="folder of a PEFT LoRA adapter")
    parser.add_argument("--scale", type=float, default=-1.0, help="factor of its delta; -1 reverses what it learned")
    parser.add_argument("--search", action="store_true", help="search the best scale; needs --model and --forget")
    parser.add_argument("--scales", nargs="+", type=float, default=None, help="scales that the search starts with")
    add_flags(parser, (*BASE, "validation", "holdout", "max_perplexity_increase"), model=None, forget=None)
    add_output(parser, required=True)


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """Scale the adapter, and print the folder."""
    values = parse(parser, words)
    adapter, output_dir = values["adapter"], values["output_dir"]
    permissions = from_flags(Permissions, values)
    if not values["search"]:
        from adapter_unlearn.weights import arithmetic

        print(f"wrote {arithmetic.negate(adapter, output_dir, values['scale'], permissions.overwrite)}")
        return
    if values["model"] is None or values["forget"] is None:
        raise RecipeError("--search evaluates the model; give --model and --forget")
    model, data = from_flags(Model, values), from_flags(Data, values)
    from adapter_unlearn import pipeline

    options = {key: values[key] for key in ("scales", "max_perplexity_increase", "batch_size")}
    search = pipeline.ScaleSearch(**{key: value for key, value in options.items() if key != "scales" or value})
    folder, best = pipeline.negate_searched(adapter, output_dir, model, data, search, permissions)
    print(f"wrote {folder}, scaled by {best:g}; scale_search.jsonl and figures/scales.png show the others")


COMMAND = Command("multiply an adapter's delta by a scale, -1 by default, or search the best one", add_arguments, run)
