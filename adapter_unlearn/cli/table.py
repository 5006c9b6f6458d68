"""The table of commands. To add one, write its module in this folder and add its row here."""

from __future__ import annotations

from adapter_unlearn.cli import combine, compare, demo, evaluate, merge, negate, plan, recipes, score, unlearn
from adapter_unlearn.cli.command import Command

COMMANDS: dict[str, Command] = {
    "demo": demo.COMMAND,
    "score": score.COMMAND,
    "plan": plan.COMMAND,
    "unlearn": unlearn.COMMAND,
    "evaluate": evaluate.COMMAND,
    "compare": compare.COMMAND,
    "negate": negate.COMMAND,
    "combine": combine.COMMAND,
    "merge": merge.COMMAND,
    "recipes": recipes.COMMAND,
}
