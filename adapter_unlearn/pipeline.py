"""A run from recipe to folder: load, score, train, score, report. The one place that sees every room."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from adapter_unlearn import adapter_files, assets, manifest, models, recipe, run_folder, scoring, sets
from adapter_unlearn.errors import RecipeError, UserError
from adapter_unlearn.evaluation import forms as deployment
from adapter_unlearn.evaluation.forms import Measurement, Measuring
from adapter_unlearn.evaluation.report import Report, bounds_of, report
from adapter_unlearn.memorization import table
from adapter_unlearn.reporting import write
from adapter_unlearn.reporting.progress import Progress
from adapter_unlearn.unlearning import loop, methods, stages, stopping

if TYPE_CHECKING:
    import pandas as pd

    from adapter_unlearn.memorization.outliers import Bounds
    from adapter_unlearn.models import Quantization
    from adapter_unlearn.recipe import Data, Model, Recipe, Source

log = logging.getLogger(__name__)


def unlearn(run: Recipe | Mapping[str, Any] | str | Path, overwrite: bool = False) -> Path:
    """Train an unlearning adapter and prove what it does, sequence by sequence.

    Args:
        run: a recipe, a nested mapping with a recipe's keys, or a recipe's file.
        overwrite: replace a run that stands in the recipe's output_dir, once the new one is whole.

    Returns:
        The run folder: a plain PEFT adapter at its root, with report, scores, manifest and resolved recipe beside it.

    Raises:
        UserError: the recipe, a file, the model or the folder can't be used; nothing is left half-written.
    """
    run = _resolved(run)
    _check_output(run.output_dir, overwrite, run.model, run.data, [run.model.adapter] if run.model.adapter else [])
    table.chosen(run.evaluation.metrics)
    started = time.monotonic()
    accelerator = _accelerator(run.tracking, Path(run.output_dir).parent)
    set_seed(run.seed)
    given, notes = sets.load(run.model, run.data)
    with tempfile.TemporaryDirectory(prefix="adapter-unlearn-") as place:
        model = models.attach(_base(run.model), **dataclasses.asdict(run.adapter), carried=run.model.adapter)
        models.train_through(model, run.training.gradient_checkpointing)
        base = manifest.base_identity(run.model, model)
        beneath = ["carried"] if run.model.adapter else []
        measuring = Measuring(given, run.evaluation.metrics, run.evaluation.batch_size, accelerator)
        before = deployment.measure(model, "base", beneath, measuring)
        bounds = bounds_of(run.evaluation.bounds, before)
        goal = stopping.resolve(run.stop, before.reference)
        trained = _train(model, run, given, before, bounds, goal, accelerator, Path(place))
        log.info(trained.outcome.stopped_because)
        models.add_finished(model, trained.folder, "shipped")  # what is measured is what the files hold
        measured = [before]
        if "stacked" in run.evaluation.forms:
            measured.append(deployment.measure(model, "stacked", [*beneath, "shipped"], measuring))
        del model
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
                run_folder.write_json(folder / run_folder.MANIFEST, about)
                write.results(folder, found, trained.outcome.log, about, trained.scales)
                write.card(folder, found.summary, about)

        _on_first_process(accelerator, write_run)
    return Path(run.output_dir)


def _train(
    model: Any,
    run: Recipe,
    given: sets.Sets,
    before: Measurement,
    bounds: Bounds,
    goal: stopping.Goal,
    accelerator: Accelerator,
    place: Path,
) -> stages.Trained:
    """Run the method's stages, with the base's measurement as where they start."""
    task = loop.Task(
        given.forget, before.forget, bounds, given.retain, given.validation, before.perplexities.get("validation")
    )
    plan = methods.stages(run.method)
    with Progress(run.method["name"], len(plan) * run.training.max_epochs, accelerator) as progress:
        return stages.run(
            model, plan, task, run.training, goal, run.stop.max_perplexity_increase,
            accelerator, place, run.stop.patience, run.seed, progress.update,
        )  # fmt: skip


def evaluate(
    model: str,
    adapter: str | Path | Sequence[str | Path],
    forget: Source,
    reference: Source | None = None,
    retain: Source | None = None,
    validation: Source | None = None,
    holdout: Source | None = None,
    forms: Sequence[Literal["stacked"]] = ("stacked",),
    quantization: Quantization = "nf4",
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    metrics: Sequence[str] = deployment.NEEDED,
    bounds: Literal["reference", "paper"] = "reference",
    max_tokens: int = 200,
    prefix_tokens: int = 50,
    batch_size: int = 16,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
) -> Report:
    """Measure a base and adapters on it, any adapters, also ones this package did not train.

    Args:
        model: folder or hub id of the base.
        adapter: one adapter folder or several; several act together.
        forget: the texts that must not be recited; see data.load_sequences for what a source may be.
        reference: unseen texts of that kind.
        retain: texts whose behaviour should stay.
        validation: general unseen text.
        holdout: general unseen text.
        forms: deployment forms, beside the base.
        quantization: of the base: nf4, int8 or none.
        dtype: of the base.
        metrics: further rows of the metrics table.
        bounds: what makes an outlier, as in a recipe.
        max_tokens: longer texts become windows.
        prefix_tokens: tokens given before the rest must be recited.
        batch_size: sequences in one forward.
        output_dir: where to write summary, scores and report; None writes nothing.
        overwrite: replace an evaluation that stands there.

    Raises:
        UserError: a file, the model, an adapter or the folder can't be used.
    """
    adapters = [adapter] if isinstance(adapter, str | Path) else list(adapter)
    run = recipe.checked(recipe.Recipe(
        model=recipe.Model(name=model, quantization=quantization, dtype=dtype),
        data=recipe.Data(
            forget, retain, reference, validation, holdout, max_tokens=max_tokens, prefix_tokens=prefix_tokens
        ),
        evaluation=recipe.Evaluation(list(forms), list(metrics), bounds, batch_size),
    ))  # fmt: skip
    table.chosen(metrics)
    if output_dir is not None:
        _check_output(output_dir, overwrite, run.model, run.data, adapters)
    accelerator = _accelerator()
    given, notes = sets.load(run.model, run.data)
    stacked = models.stack(_base(run.model), adapters)
    names = models.adapter_names(len(adapters))
    base = manifest.base_identity(run.model, stacked)
    measuring = Measuring(given, metrics, batch_size, accelerator)
    measured = [deployment.measure(stacked, "base", [], measuring)]
    if "stacked" in forms:
        measured.append(deployment.measure(stacked, "stacked", names, measuring))
    del stacked
    found_bounds = bounds_of(bounds, measured[0])
    found = report(measured, given, found_bounds)

    def write_evaluation(place: str | Path) -> None:
        about = manifest.of_evaluation(run, base, given, notes, found_bounds, adapters)
        with run_folder.new_folder(place, overwrite) as folder:
            run_folder.write_json(folder / "evaluation.json", about)
            write.results(folder, found, [], about)

    if output_dir is not None:
        _on_first_process(accelerator, lambda: write_evaluation(output_dir))
    return found


def score_files(
    model: str,
    forget: Source,
    adapter: Sequence[str | Path] = (),
    quantization: Quantization = "nf4",
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    metrics: Sequence[str] = scoring.DEFAULT_METRICS,
    max_tokens: int = 200,
    prefix_tokens: int = 50,
    batch_size: int = 16,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Score the sequences of a file with a model, named as on the command line; see scoring.score for the frame.

    Args:
        model: folder or hub id.
        forget: the texts to score.
        adapter: adapter folders to stack on the model.
        quantization: nf4, int8 or none.
        dtype: of what is not quantized.
        metrics: rows of the metrics table.
        max_tokens: longer texts become windows.
        prefix_tokens: tokens given before the rest must be recited.
        batch_size: sequences in one forward.
        output_dir: where to write sequences.parquet; None writes nothing.
        overwrite: replace scores that stand there.

    Raises:
        UserError: a file, the model, an adapter or the folder can't be used.
    """
    table.chosen(metrics)
    run = recipe.checked(recipe.Recipe(
        model=recipe.Model(name=model, quantization=quantization, dtype=dtype),
        data=recipe.Data(forget, max_tokens=max_tokens, prefix_tokens=prefix_tokens),
        evaluation=recipe.Evaluation(metrics=list(metrics), batch_size=batch_size),
    ))  # fmt: skip
    if output_dir is not None:
        _check_output(output_dir, overwrite, run.model, run.data, adapter)
    accelerator = _accelerator()
    given, _ = sets.load(run.model, run.data)
    base: Any = _base(run.model)
    scored = models.stack(base, adapter) if adapter else base
    frame = scoring.score(scored, given.forget, metrics, batch_size, accelerator)
    scoring.check_finite(frame)

    def write_scores(place: str | Path) -> None:
        with run_folder.new_folder(place, overwrite) as folder:
            frame.to_parquet(folder / "sequences.parquet", index=False)

    if output_dir is not None:
        _on_first_process(accelerator, lambda: write_scores(output_dir))
    return frame


def _resolved(run: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    """The recipe with every default written out, once it is known to make sense."""
    if isinstance(run, str | Path):
        run = recipe.load_recipe(run)
    elif isinstance(run, Mapping):
        run = recipe.from_mapping(run)
    run = dataclasses.replace(recipe.checked(run), method=methods.resolve(run.method))
    if run.method.get("retain_weight") and run.data.retain is None:
        raise RecipeError("recipe key method.retain_weight: needs data.retain; give that file or set the weight to 0")
    return run


def _check_output(
    output_dir: str | Path, overwrite: bool, model: Model, texts: Data, adapters: Sequence[str | Path]
) -> None:
    """Refuse an output folder before any work: it holds something, can't be written, or holds what is read."""
    run_folder.check_writable(output_dir, overwrite)
    sources = [texts.forget, texts.retain, texts.reference, texts.validation, texts.holdout]
    files = [name for source in sources for name in ([source] if isinstance(source, str) else source or [])]
    run_folder.check_apart(output_dir, [*map(assets.resolve, [model.name, *files]), *adapters])


def _base(model: Model) -> Any:
    options = dataclasses.asdict(model)
    del options["adapter"]
    return models.load_base(**options)


def _accelerator(tracking: str = "none", folder: Path | None = None) -> Accelerator:
    """This process's place among the others, and the tracker."""
    try:
        if tracking == "none":
            return Accelerator()
        accelerator = Accelerator(log_with=tracking, project_dir=str(folder))
        accelerator.init_trackers("adapter_unlearn")
    except (ValueError, ImportError) as error:
        what = "accelerate's settings" if tracking == "none" else f"recipe key tracking: {tracking!r}"
        raise RecipeError(f"{what} can't be used: {error}") from error
    if accelerator.is_main_process and not accelerator.trackers:
        raise RecipeError(f"recipe key tracking: {tracking!r} is not installed; install it or set none")
    return accelerator


def _on_first_process(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Do it on the first process only; if it fails there, all fail, and none waits for ever."""
    failure: UserError | None = None
    if accelerator.is_main_process:
        try:
            action()
        except UserError as error:
            failure = error
    if accelerator.num_processes > 1:
        (failure,) = broadcast_object_list([failure])
    if failure is not None:
        raise failure
