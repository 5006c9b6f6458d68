"""`adapter-unlearn plan`: what a run will do, before it does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jsonargparse

from adapter_unlearn import recipe
from adapter_unlearn.cli.command import Command, show
from adapter_unlearn.recipe import Permissions

if TYPE_CHECKING:
    from adapter_unlearn.pipeline.planning import Duration, Plan

MEASURE, REMOTE_CODE = "--measure", "--trust_remote_code"


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags."""
    recipe.add_recipe_arguments(parser)
    parser.epilog = (
        "Takes the recipe of `unlearn`, and neither loads weights nor writes anything. --measure also loads the model,"
        " takes one step and says how long the run will take. --trust_remote_code runs Python code that comes with the"
        " model."
    )


def run(parser: jsonargparse.ArgumentParser, words: list[str]) -> None:
    """Plan, and print the plan."""
    permissions = Permissions(trust_remote_code=REMOTE_CODE in words)
    chosen = recipe.parse_recipe(parser, [word for word in words if word not in (MEASURE, REMOTE_CODE)])
    from adapter_unlearn.pipeline import planning

    planned = planning.plan(chosen, permissions)
    duration = planning.measure(chosen, planned, permissions) if MEASURE in words else None
    show(lambda: _print_plan(planned, duration))


def _print_plan(plan: Plan, duration: Duration | None) -> None:
    """Print what a run will do, and how long it will take if that was measured."""
    from adapter_unlearn.reporting.text_tables import new_table, render_text

    table = new_table("set", ["sequences", "predicted tokens"])
    for name, number in plan.sequences.items():
        table.add_row(name, f"{number:,}", f"{plan.tokens[name]:,}")
    print(render_text(table), end="")
    trained = plan.forget_tokens + plan.retain_tokens
    lines = [
        ("stages", ", ".join(plan.stages)),
        ("epochs", f"{plan.max_epochs:,} at most, steps in each: {plan.steps_per_epoch:,}"),
        ("trained in an epoch", f"{trained:,} tokens at most, {plan.retain_tokens:,} of them retain tokens"),
        ("scored after it", f"{plan.scored_tokens:,} tokens, {plan.validation_tokens:,} of the validation set"),
        ("scored before and after", f"{plan.measured_tokens:,} tokens for each of base, {', '.join(plan.forms)}"),
        ("adapter", f"{plan.adapter_parameters:,} parameters, {plan.adapter_bytes / 1e6:.1f} MB"),
        ("checkpoints", f"{2 * plan.checkpoint_bytes / 1e6:.1f} MB beside the output folder while it runs"),
    ]
    if plan.trials[1]:
        lines.insert(1, ("learning-rate search", "{} to {} steps on a few rows".format(*plan.trials)))
    if plan.synthetic:
        lines.insert(1, ("synthetic texts", f"{plan.synthetic:,}"))
    if duration is not None:
        total = duration.scoring + duration.search + duration.training
        lines += [
            ("one batch", f"{duration.step:.2f} s forward and backward"),
            ("time", f"about {_minutes(total)}: training {_minutes(duration.training)},"
                     f" search {_minutes(duration.search)}, scoring {_minutes(duration.scoring)}"),
        ]  # fmt: skip
    for name, text in lines:
        print(f"{name:24} {text}")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


COMMAND = Command("say what a run will do, and with --measure how long it will take", add_arguments, run)
