"""An unlearning run, from recipe to folder: load, score, train, score, report."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import set_seed

from adapter_unlearn import models, progress, recipe, scoring
from adapter_unlearn.errors import RecipeError, UserError
from adapter_unlearn.evaluation import forms as deployment
from adapter_unlearn.evaluation.criteria import criteria_of
from adapter_unlearn.evaluation.forms import Measurement, Measuring
from adapter_unlearn.evaluation.report import build_report
from adapter_unlearn.metrics import table
from adapter_unlearn.pipeline import common, loading, manifest, resuming
from adapter_unlearn.recipe import Permissions, Recipe
from adapter_unlearn.reporting import run as run_report
from adapter_unlearn.reporting.progress import Progress
from adapter_unlearn.reporting.run import RunResults
from adapter_unlearn.runs import run_folder
from adapter_unlearn.unlearning import methods, records, stages, stopping, synthetic
from adapter_unlearn.unlearning.context import RunContext
from adapter_unlearn.weights import adapter_files

if TYPE_CHECKING:
    from datasets import Dataset

    from adapter_unlearn.evaluation.criteria import Criteria
    from adapter_unlearn.runs.checkpoint_file import Saved
    from adapter_unlearn.unlearning.checkpoint import Checkpoints

log = logging.getLogger(__name__)

SHIPPED = "shipped"
"""The name on the model of the adapter that the run writes."""


def unlearn(run: Recipe | Mapping[str, Any] | str | PathLike[str], permissions: Permissions = Permissions()) -> Path:
    """Train an unlearning adapter, and measure its effect on every sequence.

    Args:
        run: a recipe, a nested mapping with a recipe's keys, or the path of a recipe's file.
        permissions: `resume` an interrupted run from its checkpoint, `overwrite` an earlier run in the recipe's
            output_dir once the new one is complete, `force` a `model.adapter` of another base, `trust_remote_code`.

    Returns:
        The run folder: a plain PEFT adapter with report, scores, manifest and resolved recipe.

    Raises:
        UserError: the recipe, a file, the model or the folder can't be used; nothing is left half-written.
    """
    files = [run] if isinstance(run, str | Path) else []
    run = resolved(run)
    saved = check(run, permissions, files)
    started = time.monotonic()
    manifest.restart_peak_memory()
    accelerator = common.new_accelerator(run.tracking, Path(run.output_dir).parent)
    set_seed(run.seed)
    frozen = [models.adapters.FROZEN] if run.model.adapter else []
    with resuming.kept(run, accelerator), run_folder.temporary() as place:
        # load
        loaded = loading.load(run.model, run.data, permissions)
        model = load_model(run, permissions)
        base = manifest.base_identity(run.model, model)

        # score
        measuring = Measuring(loaded.sets, _metrics(run), run.evaluation.batch_size, accelerator)
        before = deployment.measure(model, "base", frozen, measuring, only=("forget", "holdout"))
        criteria = criteria_of(run.evaluation.bounds, before.holdout)
        goal = stopping.resolve(run.stop, before.holdout)

        # train
        checkpoints = resuming.checkpoints(run, saved, model, base, before.forget, loaded.sets, accelerator)
        task = _task(model, run, measuring, before, criteria, checkpoints)
        trained = _train(model, run, task, goal, checkpoints, place)
        log.info(trained.outcome.stopped_because)

        # score
        before = deployment.completed(before, model, frozen, measuring)
        measurements = [before]
        models.adapters.add_finished(model, trained.folder, SHIPPED)  # the adapter as its files hold it
        if "stacked" in run.evaluation.forms:
            measurements.append(deployment.measure(model, "stacked", [*frozen, SHIPPED], measuring))
        del model  # memory may not hold another model beside it
        try:
            merged = common.measure_merged(run, [trained.folder], before, measuring, permissions, run.output_dir)
        except (UserError, torch.OutOfMemoryError) as error:  # keep the adapter, which may have taken hours
            merged = []
            loaded.notes.append(f"Merged forms could not be measured: {error}")
            log.error(loaded.notes[-1])

        # report
        report = build_report([*measurements, *merged], loaded.sets, criteria)
        cost = manifest.Cost(time.monotonic() - started, accelerator.num_processes)
        about = manifest.of_run(run, base, loaded, criteria, trained, goal, cost)
        results = RunResults(report, about, trained.outcome.log, trained.scales)
        common.write_folder(
            accelerator, run.output_dir, permissions.overwrite, lambda folder: _write(folder, run, trained, results)
        )
    return Path(run.output_dir)


def resolved(run: Recipe | Mapping[str, Any] | str | PathLike[str]) -> Recipe:
    """The recipe with every default written out.

    Raises:
        RecipeError: a key or a value is wrong, or a set that the method needs is not given.
    """
    if isinstance(run, str | PathLike):
        run = recipe.load_recipe(run)
    elif isinstance(run, Mapping):
        run = recipe.from_mapping(run)
    if not isinstance(run, Recipe):
        raise RecipeError(f"recipe: a {type(run).__name__} is none; give a Recipe, a mapping or the path of a file")
    run = dataclasses.replace(recipe.checked(run), method=methods.resolve(run.method))
    methods.check_sets(run)
    return run


def check(run: Recipe, permissions: Permissions, files: Sequence[str | Path] = ()) -> Saved | None:
    """Refuse a run that would fail after training: its folder, a metric, or a base that can't be merged into.

    Args:
        run: the recipe.
        permissions: as in unlearn.
        files: the files that the recipe was read from; they must not be in the folder.

    Returns:
        The checkpoint that the run continues from, or None.
    """
    common.check_output(run.output_dir, permissions, run.model, run.data, files)
    table.resolve(run.evaluation.metrics)
    common.check_mergeable(run.model, run.evaluation.forms, permissions)
    return resuming.check(run, permissions)


def _metrics(run: Recipe) -> list[str]:
    """The recipe's metrics, and the one that a stop rule takes its level from."""
    needed = run.stop.extraction_likelihood_below is not None
    return [*run.evaluation.metrics, *(["extraction_likelihood"] if needed else [])]


def load_model(run: Recipe, permissions: Permissions) -> Any:
    """The base with a new adapter on it, ready for training."""
    base = common.load_base(run.model, common.frozen_adapters(run.model), permissions)
    model = models.attach(base, run.adapter, run.model.adapter)
    models.train_through(model, run.training.gradient_checkpointing)
    return model


def _task(
    model: Any, run: Recipe, measuring: Measuring, before: Measurement, criteria: Criteria, checkpoints: Checkpoints
) -> records.Task:
    """The sets with their scores under the base, and the synthetic retain texts that the base generates."""
    sets, accelerator = measuring.sets, measuring.accelerator
    assert accelerator is not None
    retain = sets.retain
    trained = len(checkpoints.run.parts) == len(methods.stages(run.method))
    if run.data.synthetic and retain is not None and not trained:
        retain = synthetic.with_synthetic(model, retain, sets.forget, run.data.synthetic, run.seed, accelerator)
    task = records.Task(
        forget=sets.forget,
        before=before.forget,
        criteria=criteria,
        retain=retain,
        validation=_validation(sets.validation, run.training.validation_tokens),
        holdout=sets.holdout,
        holdout_scores=before.holdout,
    )
    frozen = [models.adapters.FROZEN] if run.model.adapter else []
    with progress.phase("measure base, validation set"), models.active(model, frozen):
        perplexity = records.validation_perplexity(model, task, run.evaluation.batch_size, accelerator)
    return dataclasses.replace(task, validation_perplexity=perplexity)


def _validation(validation: Dataset | None, tokens: int | None) -> Dataset | None:
    """The validation rows that are scored after every epoch."""
    if validation is None:
        return None
    rows = records.drawn(np.array(scoring.predicted_tokens(validation)), tokens)
    if len(rows) < len(validation):
        log.info("%d of %d validation texts are scored after every epoch", len(rows), len(validation))
    return validation.select(rows)


def _train(
    model: Any, run: Recipe, task: records.Task, goal: stopping.Goal, checkpoints: Checkpoints, folder: Path
) -> stages.Trained:
    """Run the method's stages, with a progress bar."""
    plan, accelerator = methods.stages(run.method), checkpoints.accelerator
    with Progress(run.method["name"], len(plan) * run.training.max_epochs, accelerator) as bar:
        if epochs := checkpoints.epochs:
            bar.skip(epochs)
            log.info("continuing after epoch %d", epochs)
        context = RunContext(
            task, run.training, run.stop, goal, accelerator, checkpoints, run.seed, bar.start, bar.update
        )
        return stages.run(model, plan, context, folder, run.adapter.dtype)


def _write(folder: Path, run: Recipe, trained: stages.Trained, results: RunResults) -> None:
    for name in (adapter_files.CONFIG, adapter_files.WEIGHTS):
        shutil.copyfile(trained.folder / name, folder / name)
    (folder / "recipe.yaml").write_text(recipe.to_yaml(run), encoding="utf-8")
    logs = {"train_log": trained.outcome.log, "scale_search": trained.scales, "learning_rate_search": trained.rates}
    for name, lines in logs.items():
        if lines:
            run_folder.write_json_lines(folder / f"{name}.jsonl", lines)
    run_folder.write_json(folder / run_folder.MANIFEST, results.manifest)
    run_report.write(folder, results)
    run_report.write_card(folder, results)
