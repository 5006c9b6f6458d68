"""An unlearning run, from recipe to folder: load, score, train, score, report."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed

from adapter_unlearn import models, recipe
from adapter_unlearn.data import Sets
from adapter_unlearn.errors import UserError
from adapter_unlearn.evaluation import forms as deployment
from adapter_unlearn.evaluation.criteria import criteria_of
from adapter_unlearn.evaluation.forms import Measurement, Measuring
from adapter_unlearn.evaluation.report import bounds_of, report
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
from adapter_unlearn.reporting import write
from adapter_unlearn.reporting.progress import Progress
from adapter_unlearn.runs import run_folder
from adapter_unlearn.unlearning import methods, records, stages, stopping, synthetic
from adapter_unlearn.unlearning.context import RunContext
from adapter_unlearn.weights import adapter_files

if TYPE_CHECKING:
    from accelerate import Accelerator

    from adapter_unlearn.recipe import Recipe

log = logging.getLogger(__name__)


def unlearn(run: Recipe | Mapping[str, Any] | str | Path, overwrite: bool = False, force: bool = False) -> Path:
    """Train an unlearning adapter and prove what it does, sequence by sequence.

    Args:
        run: a recipe, a nested mapping with a recipe's keys, or a recipe's file.
        overwrite: replace a run that stands in the recipe's output_dir, once the new one is whole.
        force: go on where `model.adapter` was made for another base.

    Returns:
        The run folder: a plain PEFT adapter at its root, with report, scores, manifest and resolved recipe beside it.

    Raises:
        UserError: the recipe, a file, the model or the folder can't be used; nothing is left half-written.
    """
    run = resolved(run)
    carried = [run.model.adapter] if run.model.adapter else []
    check_output(run.output_dir, overwrite, run.model, run.data, carried)
    table.resolve(run.evaluation.metrics)
    check_mergeable(run.model, run.evaluation.forms)
    started = time.monotonic()
    manifest.restart_peak_memory()
    accelerator = new_accelerator(run.tracking, Path(run.output_dir).parent)
    set_seed(run.seed)
    given, notes = loading.load(run.model, run.data)
    with tempfile.TemporaryDirectory(prefix="adapter-unlearn-") as place:
        model = models.attach(
            load_base(run.model, carried, force), **dataclasses.asdict(run.adapter), carried=run.model.adapter
        )
        models.train_through(model, run.training.gradient_checkpointing)
        base = manifest.base_identity(run.model, model)
        beneath = ["carried"] if run.model.adapter else []
        stops_on_it = run.stop.extraction_likelihood_below is not None
        metrics = [*run.evaluation.metrics, *(["extraction_likelihood"] if stops_on_it else [])]
        measuring = Measuring(given, metrics, run.evaluation.batch_size, accelerator)
        before = deployment.measure(model, "base", beneath, measuring)
        bounds = bounds_of(run.evaluation.bounds, before)
        goal = stopping.resolve(run.stop, before.holdout)
        trained = _train(model, run, given, before, goal, accelerator, Path(place))
        log.info(trained.outcome.stopped_because)
        models.add_finished(model, trained.folder, "shipped")  # what is measured is what the files hold
        measured = [before]
        if "stacked" in run.evaluation.forms:
            measured.append(deployment.measure(model, "stacked", [*beneath, "shipped"], measuring))
        del model  # from here on only models of other forms are loaded
        try:
            measured += measure_merged(run, [trained.folder], before, measuring, Path(run.output_dir).parent)
        except (UserError, torch.OutOfMemoryError) as error:  # an adapter that took hours is not thrown away for that
            notes.append(f"Merged forms could not be measured: {error}")
            log.error(notes[-1])
        found = report(measured, given, bounds)
        seconds = time.monotonic() - started
        about = manifest.of_run(run, base, given, notes, trained, goal, bounds, seconds, accelerator.num_processes)

        def write_run() -> None:
            with run_folder.new_folder(run.output_dir, overwrite) as folder:
                for name in (adapter_files.CONFIG, adapter_files.WEIGHTS):
                    shutil.copyfile(trained.folder / name, folder / name)
                (folder / "recipe.yaml").write_text(recipe.to_yaml(run), encoding="utf-8")
                run_folder.write_json_lines(folder / "train_log.jsonl", trained.outcome.log)
                if trained.scales:
                    run_folder.write_json_lines(folder / "scale_search.jsonl", trained.scales)
                if trained.rates:
                    run_folder.write_json_lines(folder / "learning_rate_search.jsonl", trained.rates)
                run_folder.write_json(folder / run_folder.MANIFEST, about)
                write.results(folder, found, trained.outcome.log, about, trained.scales)
                write.card(folder, found.summary, about)

        on_first_process(accelerator, write_run)
    return Path(run.output_dir)


def _train(
    model: Any,
    run: Recipe,
    given: Sets,
    before: Measurement,
    goal: stopping.Goal,
    accelerator: Accelerator,
    place: Path,
) -> stages.Trained:
    """Run the method's stages, with the base's measurement as where they start."""
    retain = given.retain
    if run.data.synthetic and retain is not None:
        retain = synthetic.with_synthetic(
            model, retain, given.forget, run.data.synthetic, run.evaluation.batch_size, run.seed, accelerator
        )
    task = records.Task(
        forget=given.forget,
        before=before.forget,
        criteria=criteria_of(run.evaluation.bounds, before.holdout),
        retain=retain,
        validation=given.validation,
        validation_perplexity=before.perplexities.get("validation"),
        holdout=given.holdout,
        holdout_scores=before.holdout,
    )
    plan = methods.stages(run.method)
    with Progress(run.method["name"], len(plan) * run.training.max_epochs, accelerator) as progress:
        context = RunContext(task, run.training, run.stop, goal, accelerator, run.seed, progress.update)
        return stages.run(model, plan, context, place)


def resolved(run: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    """The recipe with every default written out, once it is known to make sense.

    Raises:
        RecipeError: a key, a value, or a set that the method needs and is not given.
    """
    if isinstance(run, str | Path):
        run = recipe.load_recipe(run)
    elif isinstance(run, Mapping):
        run = recipe.from_mapping(run)
    run = dataclasses.replace(recipe.checked(run), method=methods.resolve(run.method))
    methods.check_sets(run)
    return run
