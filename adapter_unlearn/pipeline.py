"""A run from recipe to folder: load, score, train, score, report. The one place that sees every room."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm.auto import tqdm

from adapter_unlearn import assets, data, manifest, models, recipe, run_folder, scoring
from adapter_unlearn.errors import InputError, RecipeError
from adapter_unlearn.evaluation import forms as deployment
from adapter_unlearn.evaluation.forms import Sets
from adapter_unlearn.evaluation.report import Report, bounds_of, report
from adapter_unlearn.memorization import table
from adapter_unlearn.reporting import write
from adapter_unlearn.unlearning import loop, methods, stopping

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

    from adapter_unlearn.models import Quantization
    from adapter_unlearn.recipe import Recipe, Source

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
    run_folder.check_writable(run.output_dir, overwrite)
    started = time.monotonic()
    accelerator = _accelerator(run)
    set_seed(run.seed)
    sets, notes = _load_sets(run)
    table.chosen(run.evaluation.metrics)
    base = models.load_base(**_model_options(run))
    model = models.attach(base, **dataclasses.asdict(run.adapter), carried=run.model.adapter)
    models.train_through(model, run.training.gradient_checkpointing)

    beneath = ["carried"] if run.model.adapter else []
    measuring = {"metrics": run.evaluation.metrics, "batch_size": run.evaluation.batch_size, "accelerator": accelerator}
    before = deployment.measure(model, "base", beneath, sets, **measuring)
    bounds = bounds_of(run.evaluation.bounds, before)
    task = loop.Task(
        sets.forget, before.forget, bounds, sets.retain, sets.validation, before.perplexities.get("validation")
    )
    goal = stopping.resolve(run.stop, before.reference)
    with _Progress(run, accelerator, goal) as progress:
        outcome = loop.train(
            model, methods.stage(run.method), task, run.training, goal, run.stop.max_perplexity_increase,
            accelerator, run.stop.patience, run.seed, progress.update,
        )  # fmt: skip
    log.info(outcome.stopped_because)
    after = [deployment.measure(model, form, [*beneath, "default"], sets, **measuring) for form in run.evaluation.forms]
    found = report([before, *after], sets, bounds)
    if accelerator.is_main_process:
        about = manifest.of_run(
            run, sets, notes, outcome, goal, bounds, model, time.monotonic() - started, accelerator.num_processes
        )
        with run_folder.new_folder(run.output_dir, overwrite) as folder:
            model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False)
            about["adapter"]["bytes"] = (folder / "adapter_model.safetensors").stat().st_size
            (folder / "recipe.yaml").write_text(recipe.to_yaml(run), encoding="utf-8")
            run_folder.write_json_lines(folder / "train_log.jsonl", outcome.log)
            run_folder.write_json(folder / run_folder.MANIFEST, about)
            write.results(folder, found, outcome.log, about)
            write.card(folder, found.summary, about)
    accelerator.wait_for_everyone()
    return Path(run.output_dir)


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
    if output_dir is not None:
        run_folder.check_writable(output_dir, overwrite)
    accelerator = Accelerator()
    run = recipe.checked(recipe.Recipe(
        model=recipe.Model(name=model, quantization=quantization, dtype=dtype),
        data=recipe.Data(
            forget, retain, reference, validation, holdout, max_tokens=max_tokens, prefix_tokens=prefix_tokens
        ),
        evaluation=recipe.Evaluation(list(forms), list(metrics), bounds, batch_size),
    ))  # fmt: skip
    table.chosen(metrics)
    sets, notes = _load_sets(run)
    stacked = models.stack(models.load_base(**_model_options(run)), adapters)
    names = models.adapter_names(len(adapters))
    measurements = [
        deployment.measure(stacked, form, active, sets, metrics, batch_size, accelerator)
        for form, active in [("base", []), *((form, names) for form in forms)]
    ]
    found_bounds = bounds_of(bounds, measurements[0])
    found = report(measurements, sets, found_bounds)
    if output_dir is not None and accelerator.is_main_process:
        about = manifest.of_evaluation(run, sets, notes, found_bounds, adapters, stacked)
        with run_folder.new_folder(output_dir, overwrite) as folder:
            run_folder.write_json(folder / "evaluation.json", about)
            write.results(folder, found, [], about)
    accelerator.wait_for_everyone()
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
    if output_dir is not None:
        run_folder.check_writable(output_dir, overwrite)
    table.chosen(metrics)
    accelerator = Accelerator()
    run = recipe.checked(recipe.Recipe(
        model=recipe.Model(name=model, quantization=quantization, dtype=dtype),
        data=recipe.Data(forget, max_tokens=max_tokens, prefix_tokens=prefix_tokens),
        evaluation=recipe.Evaluation(metrics=list(metrics), batch_size=batch_size),
    ))  # fmt: skip
    sets, _ = _load_sets(run)
    base: Any = models.load_base(**_model_options(run))
    scored = models.stack(base, adapter) if adapter else base
    frame = scoring.score(scored, sets.forget, metrics, batch_size, accelerator)
    if output_dir is not None and accelerator.is_main_process:
        with run_folder.new_folder(output_dir, overwrite) as folder:
            frame.to_parquet(folder / "sequences.parquet", index=False)
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


def _model_options(run: Recipe) -> dict[str, Any]:
    options = dataclasses.asdict(run.model)
    del options["adapter"]
    return options


def _load_sets(run: Recipe) -> tuple[Sets, list[str]]:
    """Every set of the recipe, checked against the model's vocabulary and length, and notes on what they share."""
    where = (run.model.name, run.model.revision, run.model.trust_remote_code)
    config = models.load_config(*where).get_text_config()
    tokenizer = models.load_tokenizer(*where)
    sets = Sets(**{
        name: _load_set(getattr(run.data, name), tokenizer, run, config.vocab_size)
        for name in ("forget", "retain", "reference", "validation", "holdout")
        if getattr(run.data, name) is not None
    })  # fmt: skip
    positions = getattr(config, "max_position_embeddings", None)
    for name, sequences in sets.given().items():
        longest = max(map(len, sequences["input_ids"]))
        if positions is not None and longest > positions:
            raise InputError(
                f"data.{name}: a sequence has {longest} tokens and the model takes {positions}; lower data.max_tokens"
            )
    return sets, _notes(sets)


def _load_set(source: Source, tokenizer: Any, run: Recipe, vocab_size: int) -> Dataset:
    # Paths, not strings: of several strings nobody could say whether they are names of files or texts.
    places: list[Any] = (
        [assets.resolve(source)] if isinstance(source, str) else [Path(assets.resolve(p)) for p in source]
    )
    return data.load_sequences(
        places if len(places) > 1 else places[0],
        tokenizer,
        max_tokens=run.data.max_tokens,
        stride=run.data.stride,
        prefix_tokens=run.data.prefix_tokens,
        vocab_size=vocab_size,
    )


def _notes(sets: Sets) -> list[str]:
    """What a user should know about the data, by id: near-duplicates, and forget texts that stand elsewhere too."""
    found = [("forget rows resemble each other", data.duplicates(sets.forget))]
    for name, sequences in sets.given().items():
        if name != "forget":
            found.append((f"forget rows also stand in {name}", data.overlaps(sets.forget, sequences)))
    notes = []
    for what, pairs in found:
        if pairs:
            shown = ", ".join(f"{a} / {b}" for a, b in pairs[:10])
            more = f" and {len(pairs) - 10} more" if len(pairs) > 10 else ""
            notes.append(f"{len(pairs)} pairs of {what} (20 tokens or more in a row): {shown}{more}")
    for note in notes:
        log.warning(note)
    return notes


def _accelerator(run: Recipe) -> Accelerator:
    if run.tracking == "none":
        return Accelerator()
    try:
        accelerator = Accelerator(log_with=run.tracking, project_dir=str(Path(run.output_dir).parent))
        accelerator.init_trackers("adapter_unlearn", config={"seed": run.seed, "method": str(run.method)})
    except (ValueError, ImportError) as error:
        raise RecipeError(f"recipe key tracking: {run.tracking!r} can't be used: {error}") from error
    return accelerator


class _Progress:
    """A bar that shows |S|, memorization and outliers each epoch, and the tracker's log."""

    def __init__(self, run: Recipe, accelerator: Accelerator, goal: stopping.Goal):
        self.accelerator, self.goal = accelerator, goal
        self.bar: Any = (
            tqdm(total=run.training.max_epochs, unit="epoch", desc=run.method["name"])
            if accelerator.is_main_process
            else nullcontext()
        )

    def __enter__(self) -> _Progress:
        return self

    def update(self, record: dict[str, Any]) -> None:
        """Show one epoch's record."""
        if self.accelerator.is_main_process and record["epoch"]:
            self.bar.set_postfix_str(
                f"|S| {record['n_selected']}, MA mean {record['memorization_accuracy_mean']:.2f} "
                f"max {record['memorization_accuracy_max']:.2f}, outliers {record['outliers_high']} high "
                f"{record['outliers_low_new']} new low",
                refresh=False,
            )
            self.bar.update()
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=record["epoch"])

    def __exit__(self, *_: object) -> None:
        if self.accelerator.is_main_process:
            self.bar.close()
            for tracker in self.accelerator.trackers:
                tracker.finish()
