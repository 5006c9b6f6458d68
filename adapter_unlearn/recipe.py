"""A recipe: everything that decides a run, as dataclasses that are also the YAML's schema.

Only standard Python, YAML and jsonargparse here, so that `--help` and a mistyped key answer at once. What a method's
own parameters are is known by its row in `unlearning/methods.py`; here they are a plain mapping with a `name`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import jsonargparse
import yaml

from adapter_unlearn import shipped
from adapter_unlearn.errors import RecipeError

Source = str | list[str]
Level = float | Literal["reference"] | None
Form = Literal["stacked", "merged", "requantized", "requantized_nf4", "requantized_int8"]


@dataclass(frozen=True)
class Model:
    """The base model.

    Args:
        name: folder or hub id of a causal language model; `embedded:model` is the one shipped with the package.
        revision: hub revision (a commit pins it); null takes the newest.
        quantization: nf4 (double quantization), int8 or none.
        dtype: of the unquantized weights and of the computation.
        adapter: folder of a LoRA adapter that the model already carries; it stays frozen and active beneath.
        trust_remote_code: run Python that comes with the model.
    """

    name: str
    revision: str | None = None
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    adapter: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Data:
    """The texts. A source is a file (jsonl, csv, parquet, txt, npy), a list of them, or a hub id.

    Args:
        forget: the texts to unlearn.
        retain: texts trained on so that behaviour stays; should hold some of the forget set's kind.
        reference: unseen texts of the forget set's kind; bounds and stop levels come from it.
        validation: general unseen text; steers the guard and the choice of the epoch.
        holdout: general unseen text; only ever reported.
        max_tokens: longer texts become overlapping windows of this many tokens.
        stride: tokens from the start of one window to the next; at most a window's length.
        prefix_tokens: tokens given before the model must recite the rest; at most half of a sequence.
        written: this many texts more for the retain set, written by the base itself from pieces of it; for
            method.retain_loss kl. They hold what stands near the forget set where no file has text.
    """

    forget: Source
    retain: Source | None = None
    reference: Source | None = None
    validation: Source | None = None
    holdout: Source | None = None
    max_tokens: int = 200
    stride: int = 150
    prefix_tokens: int = 50
    written: int = 0


@dataclass(frozen=True)
class Adapter:
    """The LoRA adapter to train.

    Args:
        r: rank.
        alpha: the delta is alpha / r times B A (alpha / sqrt(r) with use_rslora).
        dropout: on the adapter's input, in training.
        target_modules: all-linear (without the output layer), or names of modules.
        use_rslora: rank-stabilized scaling.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    use_rslora: bool = False


@dataclass(frozen=True)
class Training:
    """How an epoch's selection is stepped over.

    Args:
        learning_rate: LoRA wants 10 to 100 times what full fine-tuning takes. auto takes a few steps at each of several
            rates before a stage begins, and then the best; it needs data.validation and stop.max_perplexity_increase,
            but for match and undial with a retain_loss of kl.
        learning_rate_decay: over this last share of max_epochs the learning rate falls in a line towards 0.
        max_epochs: an epoch scores all, selects, and passes once over the selection.
        batch_size: sequences in one forward and backward; it changes memory and speed, not the result.
        sequences_per_step: selected sequences in one optimizer step; null takes all of them in one.
        optimizer: adamw (betas 0.9 and 0.98, no decay) or sgd.
        gradient_checkpointing: recompute activations in the backward pass: less memory, a third more time.
    """

    learning_rate: float | Literal["auto"] = 3e-4
    learning_rate_decay: float = 0.0
    max_epochs: int = 100
    batch_size: int = 8
    sequences_per_step: int | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Stop:
    """When to stop: as soon as everything that is set holds. `reference` takes the level from the reference set.

    Args:
        mean_below: mean memorization accuracy of the forget set is below this (reference: the reference set's mean).
        max_below: every memorization accuracy is below this (reference: the reference set's 95 % quantile).
        extractable: at most this many sequences are extractable.
        extraction_likelihood_below: mean extraction likelihood, EL_10, of the forget set is below this (reference: the
            reference set's mean). It takes generation, so it is measured in epochs in which all else holds.
        longest_run: no verbatim run is longer than this many tokens (reference: the reference set's longest).
        max_perplexity_increase: the budget: no adapter is kept under which the validation perplexity has grown by more
            than this share, unless there is no validation set.
        patience: the guard: stop after this many epochs in a row past the budget. With a retain term perplexity may
            come back; without, 1 is right.
        early: stop in the first epoch in which all holds; false trains all of training.max_epochs, which a falling
            learning rate needs, and keeps the best of the epochs in which it holds: fewest outliers, then
            likest to the reference set, then perplexity.
    """

    mean_below: Level = 0.33
    max_below: Level = None
    extractable: int | None = None
    longest_run: int | Literal["reference"] | None = None
    extraction_likelihood_below: Level = None
    max_perplexity_increase: float | None = 0.05
    patience: int = 1
    early: bool = True


@dataclass(frozen=True)
class Evaluation:
    """What is measured before and after.

    Args:
        forms: deployment forms to evaluate beside the base: stacked; merged (the delta added to the original weights);
            requantized (merged, then quantized as the base is, or as the form's name says).
        metrics: rows of the metrics table, one number a sequence each.
        bounds: what makes an outlier: `reference` (the 5 % and 95 % quantiles of the reference set; `paper` where there
            is none) or `paper` (0.15 and 0.60).
        batch_size: sequences in one forward.
    """

    forms: list[Form] = field(default_factory=lambda: ["stacked"])
    metrics: list[str] = field(
        default_factory=lambda: [
            "memorization_accuracy",
            "extractable",
            "extractable_50",
            "longest_verbatim_run",
            "loss",
        ]
    )
    bounds: Literal["reference", "paper"] = "reference"
    batch_size: int = 16


@dataclass(frozen=True)
class Recipe:
    """One run, from base and texts to an adapter and its proof.

    Args:
        model: the base.
        data: the texts.
        seed: of the adapter's initialisation, the order of rows and every draw.
        output_dir: the run folder; must not exist.
        adapter: the adapter to train.
        method: its name and parameters, for example `{name: sga, threshold: 0.7}`. A recipe that names none takes all
            that it leaves out from recipes/default.yaml, the method included, instead of from the defaults shown here.
        training: how to step.
        stop: when to stop.
        evaluation: what to measure.
        tracking: none, or a tracker that accelerate knows (tensorboard, wandb, …).
    """

    model: Model
    data: Data
    seed: int = 0
    output_dir: str = "runs/unlearn"
    adapter: Adapter = field(default_factory=Adapter)
    method: dict[str, Any] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    stop: Stop = field(default_factory=Stop)
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracking: str = "none"


def add_recipe_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Give the parser `--config FILE` and a flag `--a.b` for every key of a recipe."""
    parser.add_argument("--config", action="config", help="a recipe (YAML)")
    parser.add_class_arguments(Recipe)


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: the YAML file; None takes the defaults. If it names no method, what it leaves out is the default recipe's.
        overrides: flags as on the command line, for example ["--method.threshold", "0.5"]; they win.

    Raises:
        RecipeError: the file is missing or no YAML, a key is unknown or missing, a value has the wrong type or range.
    """
    parser = jsonargparse.ArgumentParser(prog="recipe", exit_on_error=False)
    add_recipe_arguments(parser)
    config = [] if path is None else ["--config", str(existing_recipe(path))]
    return parse_recipe(parser, [*config, *overrides])


def existing_recipe(path: str | Path) -> Path:
    """The path, if a recipe can be read there.

    Raises:
        RecipeError: there is no such file.
    """
    if not Path(path).is_file():
        raise RecipeError(f"{path}: no such recipe; `adapter-unlearn recipes list` names those that are shipped")
    return Path(path)


def parse_recipe(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> Recipe:
    """Parse arguments with a parser that has the recipe's; see load_recipe for what is raised."""
    for word, value in pairwise([*arguments, ""]):
        if word == "--config" or word.startswith("--config="):
            existing_recipe(value if word == "--config" else word.removeprefix("--config="))
    return _built(parser, lambda: parser.parse_args(list(arguments)))


def _built(parser: jsonargparse.ArgumentParser, parse: Callable[[], Any]) -> Recipe:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse announces its next major version through users' calls
        try:
            given = parse()
            named = "name" in (given.method or {})
            if not named:
                default = _default()
                parser.set_defaults(_flat(default))
                given = parse()
                given.method = {**default["method"], **(given.method or {})}
            parsed = parser.instantiate(given)
        except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
            raise RecipeError(one_line(str(error))) from error
    made = Recipe(**{name: parsed[name] for name in Recipe.__dataclass_fields__})
    if not named:
        _refuse_missing_sets(made)
    return checked(made)


def _default() -> dict[str, Any]:
    """What stands in for the keys that a recipe without a method leaves out."""
    read: dict[str, Any] = yaml.safe_load((shipped.folder() / "default.yaml").read_text(encoding="utf-8"))
    return read


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with dots, as a parser names them; the method is one value."""
    keys: dict[str, Any] = {"method": sections["method"]}
    for section in sections.keys() - {"method"}:
        keys |= {f"{section}.{key}": value for key, value in sections[section].items()}
    return keys


def _refuse_missing_sets(recipe: Recipe) -> None:
    """The default recipe can't do without two more files; who has given it one text file is told of both at once."""
    held = recipe.method.get("retain_weight") or recipe.data.written
    missing = ["data.retain (texts to keep)"] if held and recipe.data.retain is None else []
    missing += ["data.reference (unseen texts of the forget set's kind)"] if recipe.data.reference is None else []
    if missing:
        raise RecipeError(
            f"recipe key method: none is named, and the default, {recipe.method['name']}, needs {' and '.join(missing)}"
            "; give them, or name a method that needs neither, such as --method.name sga"
        )


def one_line(message: str) -> str:
    """Fold a parser's message of several lines into one, without its type jargon."""
    key = message.split('"')[1] if message.startswith('Parser key "') else ""
    lines = [line.strip(" -") for line in message.splitlines()]
    if key:
        given = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Given value:")), "")
        given = given or next((line.split("Got value:")[1].strip() for line in lines if "Got value:" in line), "")
        expected = [line.removeprefix("Expected a ").split(". Got value")[0] for line in lines if "Expected a " in line]
        kinds = " or ".join(_plain(kind) for kind in dict.fromkeys(expected)) or "another kind of value"
        return f"recipe key {key}: expected {kinds}, got {given!r}"
    return "recipe: " + "; ".join(line for line in lines if line)


def _plain(kind: str) -> str:
    names = {"<class 'int'>": "a whole number", "<class 'float'>": "a number", "<class 'str'>": "text"}
    names |= {"<class 'bool'>": "true or false", "<class 'NoneType'>": "null"}
    return names.get(kind, kind.removeprefix("typing.Literal").strip("[]").replace("'", ""))


def checked(recipe: Recipe) -> Recipe:
    """The recipe itself, once every value is in range.

    Raises:
        RecipeError: names the key, the value and the range.
    """
    _refuse_nulls(recipe)
    positive = ["adapter.r", "adapter.alpha", "training.learning_rate", "training.max_epochs", "training.batch_size"]
    positive += [
        "training.sequences_per_step",
        "stop.patience",
        "evaluation.batch_size",
        "data.stride",
        "data.prefix_tokens",
    ]
    for key in positive:
        _require(recipe, key, lambda value: value > 0, "above 0")
    for key in ("stop.mean_below", "stop.max_below"):
        _require(recipe, key, lambda value: 0 < value <= 1, "above 0 and at most 1, or `reference`")
    for key in ("stop.extractable", "stop.longest_run", "stop.max_perplexity_increase"):
        _require(recipe, key, lambda value: value >= 0, "0 or more")
    _require(recipe, "data.written", lambda value: value >= 0, "0 or more")
    if recipe.data.written and recipe.data.retain is None:
        raise RecipeError("recipe key data.written: the base writes on from data.retain; give that file or set it to 0")
    _require(recipe, "seed", lambda value: 0 <= value < 2**32, "0 or more, and below 2**32")
    if not recipe.evaluation.forms or len(set(recipe.evaluation.forms)) < len(recipe.evaluation.forms):
        raise RecipeError(
            "recipe key evaluation.forms: name one form or more, each once; there are: stacked, merged, requantized"
        )
    if [] in asdict(recipe.data).values():
        raise RecipeError("recipe key data: an empty list names no file; give a file or null")
    _require(recipe, "training.learning_rate_decay", lambda value: 0 <= value <= 1, "0 to 1")
    _require(recipe, "adapter.dropout", lambda value: 0 <= value < 1, "at least 0 and below 1")
    _require(recipe, "data.max_tokens", lambda value: value >= 2, "2 or more")
    for key in ("mean_below", "max_below", "longest_run", "extraction_likelihood_below"):
        if getattr(recipe.stop, key) == "reference" and recipe.data.reference is None:
            raise RecipeError(f"recipe key stop.{key}: `reference` needs data.reference; give that file or a number")
    return recipe


def _refuse_nulls(section: Any, place: str = "") -> None:
    """jsonargparse lets null stand for anything."""
    for name, hint in get_type_hints(type(section)).items():
        value = getattr(section, name)
        if value is None and type(None) not in get_args(hint):
            raise RecipeError(f"recipe key {place}{name}: null is no value; give one or leave the key out")
        if is_dataclass(value):
            _refuse_nulls(value, f"{place}{name}.")


def _require(recipe: Recipe, key: str, holds: Any, wanted: str) -> None:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    if isinstance(value, str) or value is None:
        return
    if not math.isfinite(value) or not holds(value):
        raise RecipeError(f"recipe key {key}: {value} is out of range; it must be {wanted}")


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values, in the schema's order."""
    assert is_dataclass(recipe)
    return asdict(recipe)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every key written out; loading it gives the same recipe."""
    return yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True)


def from_mapping(values: Mapping[str, Any]) -> Recipe:
    """A recipe from nested plain values, as YAML would give them; raises RecipeError as load_recipe does."""
    parser = jsonargparse.ArgumentParser(prog="recipe", exit_on_error=False)
    add_recipe_arguments(parser)
    return _built(parser, lambda: parser.parse_object(_plain_values(values)))


def _plain_values(value: Any) -> Any:
    """Paths as text and NumPy's numbers as Python's, in nested mappings and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_values(inner) for inner in value]
    if isinstance(value, PathLike):
        return str(value)
    return value.item() if hasattr(value, "item") else value
