"""Measure finished models and adapters, any, also ones this package did not train."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapter_unlearn import models, recipe
from adapter_unlearn.errors import RecipeError
from adapter_unlearn.evaluation import forms as deployment
from adapter_unlearn.evaluation.forms import Measuring
from adapter_unlearn.evaluation.interference import interference
from adapter_unlearn.evaluation.report import Report, bounds_of, report
from adapter_unlearn.metrics import table
from adapter_unlearn.pipeline import loading, manifest
from adapter_unlearn.pipeline.common import (
    check_mergeable,
    check_output,
    load_base,
    measure_merged,
    new_accelerator,
    on_first_process,
)
from adapter_unlearn.reporting import interference as interference_report
from adapter_unlearn.reporting import run as run_report
from adapter_unlearn.runs import run_folder

if TYPE_CHECKING:
    import pandas as pd

    from adapter_unlearn.models import Quantization
    from adapter_unlearn.recipe import Form, Source


def evaluate(
    model: str,
    adapter: str | Path | Sequence[str | Path],
    forget: Source,
    holdout: Source | None = None,
    retain: Source | None = None,
    validation: Source | None = None,
    test: Source | None = None,
    forms: Sequence[Form] = ("stacked",),
    quantization: Quantization = "nf4",
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    metrics: Sequence[str] = deployment.NEEDED,
    bounds: Literal["holdout", "paper"] = "holdout",
    tasks: Sequence[str] = (),
    replies: str | Path | None = None,
    limit: int | None = None,
    max_tokens: int = 200,
    prefix_tokens: int = 50,
    batch_size: int = 16,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    force: bool = False,
) -> Report:
    """Measure a base and adapters on it, any adapters, also ones this package did not train.

    Args:
        model: folder or hub id of the base.
        adapter: one adapter folder or several; several act together.
        forget: the texts that must not be recited; see data.load_sequences for what a source may be.
        holdout: unseen texts of that kind.
        retain: texts whose behaviour should stay.
        validation: general unseen text.
        test: general unseen text.
        forms: deployment forms, beside the base; see recipe.Evaluation.
        quantization: of the base: nf4, int8 or none.
        dtype: of the base.
        metrics: further rows of the metrics table.
        bounds: what makes an outlier, as in a recipe.
        tasks: downstream tasks: names of lm-eval's, the presets `paper` and `quick`, or task files; needs the extra
            `eval`.
        replies: a file of dialogues, `prompt` and `reply`; the model's replies are scored by unigram F1.
        limit: only the first so many samples of each task and of the dialogues.
        max_tokens: longer texts become windows.
        prefix_tokens: tokens given before the rest must be recited.
        batch_size: sequences in one forward.
        output_dir: where to write summary, scores and report; None writes nothing.
        overwrite: replace an evaluation that stands there.
        force: go on where an adapter was made for another base.

    Raises:
        UserError: a file, the model, an adapter or the folder can't be used.
    """
    adapters = [adapter] if isinstance(adapter, str | Path) else list(adapter)
    run = recipe.checked(recipe.Recipe(
        model=recipe.Model(name=model, quantization=quantization, dtype=dtype),
        data=recipe.Data(
            forget, retain, holdout, validation, test, max_tokens=max_tokens, prefix_tokens=prefix_tokens
        ),
        evaluation=recipe.Evaluation(list(forms), list(metrics), bounds, batch_size),
    ))  # fmt: skip
    table.resolve(metrics)
    if output_dir is not None:
        check_output(output_dir, overwrite, run.model, run.data, adapters)
    check_mergeable(run.model, forms)
    accelerator = new_accelerator()
    given, notes = loading.load(run.model, run.data)
    stacked = models.stack(load_base(run.model, adapters, force), adapters)
    names = models.adapter_names(len(adapters))
    base = manifest.base_identity(run.model, stacked)
    tokenizer = models.load_tokenizer(model) if tasks or replies is not None else None
    replies = None if replies is None else str(replies)
    measuring = Measuring(given, metrics, batch_size, accelerator, tasks, replies, limit, tokenizer)
    measured = [deployment.measure(stacked, "base", [], measuring)]
    if "stacked" in forms:
        measured.append(deployment.measure(stacked, "stacked", names, measuring))
    del stacked
    parent = None if output_dir is None else Path(output_dir).parent
    measured += measure_merged(run, adapters, measured[0], measuring, parent)
    found_bounds = bounds_of(bounds, measured[0])
    found = report(measured, given, found_bounds)

    def write_evaluation(place: str | Path) -> None:
        about = manifest.of_evaluation(run, base, given, notes, found_bounds, adapters)
        with run_folder.new_folder(place, overwrite) as folder:
            run_folder.write_json(folder / "evaluation.json", about)
            run_report.write(folder, run_report.RunResults(found, about))

    if output_dir is not None:
        on_first_process(accelerator, lambda: write_evaluation(output_dir))
    return found


def evaluate_interference(
    model: str,
    adapter: Sequence[str | Path],
    forget: Sequence[str],
    quantization: Quantization = "nf4",
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    max_tokens: int = 200,
    prefix_tokens: int = 50,
    batch_size: int = 16,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    force: bool = False,
) -> pd.DataFrame:
    """Several deletion requests, an adapter each: which combination silences which texts?

    Args:
        model: folder or hub id of the base.
        adapter: the adapters' folders.
        forget: files of texts, each a set of its own; where there are as many as adapters, the i-th set is what the
            i-th adapter unlearned.
        quantization: of the base: nf4, int8 or none.
        dtype: of the base.
        max_tokens: longer texts become windows.
        prefix_tokens: tokens given before the rest must be recited.
        batch_size: sequences in one forward.
        output_dir: where to write the matrix and its report; None writes nothing.
        overwrite: replace an evaluation that stands there.
        force: go on where an adapter was made for another base.

    Returns:
        See evaluation.interference.interference.

    Raises:
        UserError: a file, the model, an adapter or the folder can't be used.
    """
    for flag, given in (("adapter", adapter), ("forget", forget)):
        if twice := [str(name) for i, name in enumerate(given) if name in list(given)[:i]]:
            raise RecipeError(f"{flag}: {twice[0]} is named twice; a matrix has one place for it")
    base = recipe.checked(recipe.Recipe(
        model=recipe.Model(name=model, quantization=quantization, dtype=dtype),
        data=recipe.Data(list(forget), max_tokens=max_tokens, prefix_tokens=prefix_tokens),
        evaluation=recipe.Evaluation(batch_size=batch_size),
    ))  # fmt: skip
    if output_dir is not None:
        check_output(output_dir, overwrite, base.model, base.data, adapter)
    accelerator = new_accelerator()
    names, set_names = _short_names(adapter), _short_names(forget)
    loaded = [loading.load(base.model, dataclasses.replace(base.data, forget=file)) for file in forget]
    stacked = models.stack(load_base(base.model, adapter, force), adapter)
    identity = manifest.base_identity(base.model, stacked)
    on_model = dict(zip(names, models.adapter_names(len(adapter))))
    forgets = {name: given.forget for name, (given, _) in zip(set_names, loaded)}
    rows = interference(stacked, on_model, forgets, batch_size, accelerator)

    def write_matrix(place: str | Path) -> None:
        about = manifest.of_interference(identity, names, adapter, set_names, loaded)
        with run_folder.new_folder(place, overwrite) as folder:
            run_folder.write_json(folder / "evaluation.json", about)
            interference_report.write(folder, rows, about)

    if output_dir is not None:
        on_first_process(accelerator, lambda: write_matrix(output_dir))
    return rows


def _short_names(paths: Sequence[str | Path]) -> list[str]:
    """The last part of each path, or the whole path where that is not enough to tell them apart."""
    short = [Path(path).stem if Path(path).is_file() else Path(path).name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]
