"""The verbs: parse, call, print one line when a user erred. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jsonargparse

import adapter_unlearn
from adapter_unlearn import recipe, shipped
from adapter_unlearn.errors import RecipeError, UserError

PROGRAM = "adapter-unlearn"
METRIC_HELP = "rows of the metrics table, one number a sequence each"


@dataclass(frozen=True)
class Verb:
    """One word of the command line."""

    help: str
    add_arguments: Callable[[jsonargparse.ArgumentParser], None]
    run: Callable[[Any], int | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code.

    0; or 2 after one line that says what the user can mend; or 1 where a matrix was compared but for runs that failed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _dispatch(words, debug)
    except UserError as error:
        if debug:
            raise
        _complain(" ".join(str(error).split()))
        return 2
    except Exception as error:
        if debug or type(error).__name__ != "OutOfMemoryError":
            raise
        mend = "lower training.batch_size (or --batch_size), or set training.gradient_checkpointing to true"
        _complain(f"out of memory on the accelerator; {mend}")
        return 2


def _complain(message: str) -> None:
    """One line on stderr, from the first process of a launch: the others met the same error."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{PROGRAM}: error: {message}", file=sys.stderr)


def entry_point() -> None:
    """The console script."""
    sys.exit(main())


def _dispatch(words: list[str], debug: bool) -> int:
    if words[:1] == ["--version"]:
        print(adapter_unlearn.__version__)
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name, rest = words[0], words[1:]
    if name not in VERBS:
        raise RecipeError(f"unknown verb {name!r}; choose from {', '.join(VERBS)}")
    verb = VERBS[name]
    parser = jsonargparse.ArgumentParser(
        prog=f"{PROGRAM} {name}", description=verb.help, exit_on_error=False, add_help=True
    )
    verb.add_arguments(parser)
    if rest and rest[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    _settle(debug)
    return verb.run((parser, rest)) or 0


def _usage() -> str:
    verbs = "\n".join(f"  {name:10} {verb.help}" for name, verb in VERBS.items())
    return (
        f"usage: {PROGRAM} VERB [flags]\n\n{adapter_unlearn.__doc__}\n\nverbs:\n{verbs}\n\n"
        f"`{PROGRAM} VERB --help` lists a verb's flags; --debug shows tracebacks; --version the version."
    )


def _settle(debug: bool) -> None:
    """Our own messages on stderr; the libraries' chatter only with --debug."""
    logging.basicConfig(format=f"{PROGRAM}: %(message)s", level=logging.WARNING)
    first = os.environ.get("RANK", "0") == "0"
    loudness = logging.DEBUG if debug else logging.INFO
    logging.getLogger("adapter_unlearn").setLevel(loudness if first else logging.ERROR)
    if debug:
        return
    warnings.simplefilter("ignore")
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _parse(call: tuple[jsonargparse.ArgumentParser, list[str]]) -> dict[str, Any]:
    parser, words = call
    try:
        return dict(vars(parser.parse_args(words)))
    except jsonargparse.ArgumentError as error:
        raise RecipeError(recipe.one_line(str(error)).replace("recipe key ", "--").replace("recipe: ", "")) from error


def _add_output(parser: jsonargparse.ArgumentParser, default: str | None = None, required: bool = False) -> None:
    options: dict[str, Any] = {"required": True} if required else {"default": default}
    parser.add_argument("--output_dir", type=str, **options, help="folder to write; must not hold anything")
    parser.add_argument("--overwrite", action="store_true", help="replace a run that stands there")


def _add_force(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="go on where an adapter was made for another base")


def _add_model(parser: jsonargparse.ArgumentParser, required: bool = True) -> None:
    needed: dict[str, Any] = {"required": True} if required else {"default": None}
    parser.add_argument("--model", type=str, **needed, help="folder or hub id of the base; embedded:model is shipped")
    parser.add_argument("--forget", nargs="+", **needed, help="the texts: jsonl, csv, parquet, txt, npy, or a hub id")
    parser.add_argument("--quantization", choices=["nf4", "int8", "none"], default="nf4")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--max_tokens", type=int, default=200, help="longer texts become windows")
    parser.add_argument("--prefix_tokens", type=int, default=50, help="tokens given before the rest must be recited")
    parser.add_argument("--batch_size", type=int, default=16, help="sequences in one forward")


def _add_demo(parser: jsonargparse.ArgumentParser) -> None:
    _add_output(parser, default="runs/demo")


def _demo(call: Any) -> None:
    given = _parse(call)
    run = recipe.load_recipe(shipped.path("tiny-cpu/match.yaml"), ["--output_dir", given["output_dir"]])
    _unlearn_and_show(run, given["overwrite"], demo=True)


def _add_unlearn(parser: jsonargparse.ArgumentParser) -> None:
    recipe.add_recipe_arguments(parser)
    parser.epilog = (
        "Without a recipe, or with one that names no method, what is left out comes from recipes/default.yaml: "
        "method match. --overwrite replaces a run that stands in output_dir; --force goes on where model.adapter was "
        "made for another base"
    )


def _unlearn(call: Any) -> None:
    parser, words = call
    overwrite, force = (
        "--overwrite" in words,
        "--force" in words,
    )  # of this verb, no recipe's keys: no file may set them
    words = [word for word in words if word not in ("--overwrite", "--force")]
    _unlearn_and_show(recipe.parse_recipe(parser, words), overwrite, force)


def _unlearn_and_show(run: recipe.Recipe, overwrite: bool, force: bool = False, demo: bool = False) -> None:
    from accelerate import PartialState

    from adapter_unlearn import pipeline
    from adapter_unlearn.reporting import terminal

    folder = pipeline.unlearn(run, overwrite=overwrite, force=force)
    state = PartialState()
    if state.is_main_process:
        terminal.show_run(folder, demo=demo)
    state.destroy_process_group()


def _add_score(parser: jsonargparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--adapter", nargs="+", default=[], help="adapter folders, stacked")
    _add_force(parser)
    parser.add_argument("--metrics", nargs="+", default=None, help=METRIC_HELP)
    _add_output(parser)


def _score(call: Any) -> None:
    given = _parse(call)
    from accelerate import PartialState

    from adapter_unlearn import pipeline
    from adapter_unlearn.reporting import terminal

    if given["metrics"] is None:
        del given["metrics"]
    scores = pipeline.score_files(**given)
    if PartialState().is_main_process:
        terminal.show_scores(scores)


def _add_evaluate(parser: jsonargparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--adapter", nargs="+", required=True, help="adapter folders; several act together")
    for name, what in [
        ("reference", "unseen texts of the forget set's kind: bounds come from them"),
        ("retain", "texts whose behaviour should stay"),
        ("validation", "general unseen text"),
        ("holdout", "general unseen text"),
    ]:
        parser.add_argument(f"--{name}", nargs="+", default=None, help=what)
    parser.add_argument(
        "--forms", nargs="+", choices=get_args(recipe.Form), default=["stacked"],
        help="beside the base: stacked; merged into the original weights; requantized after that, as the base is",
    )  # fmt: skip
    parser.add_argument("--metrics", nargs="+", default=[], help=METRIC_HELP)
    parser.add_argument("--bounds", choices=["reference", "paper"], default="reference")
    parser.add_argument(
        "--tasks", nargs="+", default=[], help="downstream tasks: lm-eval's names, `paper`, `quick`, or task files"
    )
    parser.add_argument("--replies", type=str, default=None, help="dialogues (jsonl: prompt, reply) to be answered")
    parser.add_argument("--limit", type=int, default=None, help="only the first so many samples of each task")
    parser.add_argument(
        "--matrix", action="store_true",
        help="each --forget file is a set of its own: which combination of adapters silences which set",
    )  # fmt: skip
    _add_force(parser)
    _add_output(parser)


MATRIX_FLAGS = (
    "model", "adapter", "forget", "quantization", "dtype", "max_tokens", "prefix_tokens", "batch_size", "output_dir",
    "overwrite", "force",
)  # fmt: skip


def _evaluate(call: Any) -> None:
    given = _parse(call)
    from accelerate import PartialState

    from adapter_unlearn import pipeline
    from adapter_unlearn.reporting import terminal

    if not given.pop("matrix"):
        found = pipeline.evaluate(**given)
        if PartialState().is_main_process:
            terminal.show_report(found.sequences, found.reference, found.summary, curves=found.curves)
        return
    rows = pipeline.evaluate_interference(**{flag: given[flag] for flag in MATRIX_FLAGS})
    if PartialState().is_main_process:
        terminal.show_interference(rows)


def _add_negate(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", type=str, required=True, help="folder of a PEFT LoRA adapter")
    parser.add_argument("--scale", type=float, default=-1.0, help="factor of its delta; -1 takes back what it learned")
    parser.add_argument(
        "--search", action="store_true", help="look for the best scale instead; needs --model and --forget"
    )
    _add_model(parser, required=False)
    parser.add_argument("--validation", nargs="+", default=None, help="general unseen text, for the perplexity budget")
    parser.add_argument("--reference", nargs="+", default=None, help="unseen texts of the forget set's kind")
    parser.add_argument("--scales", nargs="+", type=float, default=None, help="where the search begins")
    parser.add_argument("--max_perplexity_increase", type=float, default=0.05, help="the budget, a share")
    _add_force(parser)
    _add_output(parser, required=True)


def _negate(call: Any) -> None:
    given = _parse(call)
    scale = given.pop("scale")
    if not given.pop("search"):
        from adapter_unlearn import arithmetic

        files = {key: given[key] for key in ("adapter", "output_dir", "overwrite")}
        print(f"wrote {arithmetic.negate(scale=scale, **files)}")
        return
    if given["model"] is None or given["forget"] is None:
        raise RecipeError("--search measures: it needs --model and --forget")
    from adapter_unlearn import pipeline

    if given["scales"] is None:
        del given["scales"]
    folder, best = pipeline.negate_searched(**given)
    print(f"wrote {folder}, scaled by {best:g}; scale_search.jsonl and figures/scales.png show the others")


def _add_combine(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--adapters", nargs="+", required=True, help="folders of PEFT LoRA adapters for one base")
    parser.add_argument("--weights", nargs="+", type=float, required=True, help="a number for each")
    parser.add_argument("--rank", type=int, default=None, help="compress the sum to this rank, by truncated SVD")
    parser.add_argument("--force", action="store_true", help="go on where the adapters name different bases")
    _add_output(parser, required=True)


def _combine(call: Any) -> None:
    given = _parse(call)
    from adapter_unlearn import arithmetic

    print(f"wrote {arithmetic.combine(**given)}; arithmetic.json states its relative error")


def _add_merge(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=str, required=True, help="folder or hub id of the base, in its original weights"
    )
    parser.add_argument("--adapter", nargs="+", required=True, help="adapter folders; their deltas add up")
    parser.add_argument(
        "--quantization", choices=["nf4", "int8", "none"], default="none", help="after merging, never before"
    )
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float16", "float32"],
        default=None,
        help="of the weights; the base's own unless told",
    )
    _add_force(parser)
    _add_output(parser, required=True)


def _merge(call: Any) -> None:
    given = _parse(call)
    from adapter_unlearn import merging

    print(f"wrote {merging.merge(**given)}; a plain transformers model, arithmetic.json says what it was made from")


def _add_compare(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", default=[], help="run folders, or those of evaluate")
    parser.add_argument(
        "--config", type=str, default=None,
        help="a matrix (YAML): `base` or `recipe`, `seeds`, `experiments`; runs that are missing are made",
    )  # fmt: skip
    parser.add_argument(
        "--baseline",
        type=str,
        default=None,
        help="whom the others are compared with: a name, or `best`; else the first",
    )
    _add_force(parser)
    parser.add_argument("--output_dir", type=str, required=True, help="folder to write; a matrix's runs go there too")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a comparison that stands there, and runs whose recipe changed"
    )


def _compare(call: Any) -> int:
    given = _parse(call)
    from accelerate import PartialState

    from adapter_unlearn import pipeline
    from adapter_unlearn.reporting import terminal

    found = pipeline.compare(matrix=given.pop("config"), **given)
    state = PartialState()
    if state.is_main_process:
        terminal.show_comparison(found, given["output_dir"])
    state.destroy_process_group()
    return int(found.runs["failed"].notna().any())


def _add_recipes(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "copy"], help="list the shipped recipes, or copy one to a file")
    parser.add_argument("name", nargs="?", default=None, help="a recipe's name, as listed")
    parser.add_argument("file", nargs="?", default=None, help="where to copy it")


def _recipes(call: Any) -> None:
    given = _parse(call)
    if given["action"] == "list":
        for name, summary in shipped.listing():
            print(f"{name:32} {summary}")
        return
    if given["name"] is None or given["file"] is None:
        raise RecipeError(f"recipes copy needs a name and a file: {PROGRAM} recipes copy tiny-cpu/sga.yaml my.yaml")
    shipped.copy(given["name"], Path(given["file"]))
    print(f"copied {given['name']} to {given['file']}")


VERBS: dict[str, Verb] = {
    "demo": Verb("unlearn the embedded default: the whole job in two minutes", _add_demo, _demo),
    "score": Verb("measure how far each text of a file is memorized", _add_score, _score),
    "unlearn": Verb("train an unlearning adapter by a recipe, and prove it", _add_unlearn, _unlearn),
    "evaluate": Verb("measure a base with adapters on it, side by side", _add_evaluate, _evaluate),
    "compare": Verb(
        "put finished runs side by side, or those of a matrix of recipes and seeds", _add_compare, _compare
    ),
    "negate": Verb("multiply an adapter's delta by a number, -1 unless told or searched", _add_negate, _negate),
    "combine": Verb("add adapters exactly, with weights", _add_combine, _combine),
    "merge": Verb("write the base with adapters merged into its original weights", _add_merge, _merge),
    "recipes": Verb("list the shipped recipes, or copy one", _add_recipes, _recipes),
}
