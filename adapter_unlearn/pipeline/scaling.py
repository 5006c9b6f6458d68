"""The best factor for a finished adapter."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adapter_unlearn import models, recipe
from adapter_unlearn.evaluation import forms as deployment
from adapter_unlearn.evaluation.criteria import criteria_of
from adapter_unlearn.evaluation.forms import Measuring
from adapter_unlearn.evaluation.report import bounds_of
from adapter_unlearn.pipeline import loading
from adapter_unlearn.pipeline.common import check_output, load_base, new_accelerator, on_first_process
from adapter_unlearn.reporting import write
from adapter_unlearn.runs import run_folder
from adapter_unlearn.unlearning import records, scale_search
from adapter_unlearn.weights import adapter_files, arithmetic

if TYPE_CHECKING:
    from adapter_unlearn.models import Quantization
    from adapter_unlearn.recipe import Source


def negate_searched(
    adapter: str | Path,
    output_dir: str | Path,
    model: str,
    forget: Source,
    validation: Source | None = None,
    holdout: Source | None = None,
    scales: Sequence[float] = scale_search.SCALES,
    max_perplexity_increase: float | None = 0.05,
    quantization: Quantization = "nf4",
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    max_tokens: int = 200,
    prefix_tokens: int = 50,
    batch_size: int = 16,
    overwrite: bool = False,
    force: bool = False,
) -> tuple[Path, float]:
    """Scale an adapter by the factor that leaves the fewest outliers within the perplexity budget; nothing is trained.

    Args:
        adapter: folder of a PEFT LoRA adapter, one that memorized the forget set (or, with positive scales, any).
        output_dir: folder to write: the scaled adapter, scale_search.jsonl and figures/scales.png.
        model: folder or hub id of the base.
        forget: the texts that must not be recited.
        validation: general unseen text; without it nothing guards the perplexity.
        holdout: unseen texts of the forget set's kind: outliers are counted against them; else the paper's bounds.
        scales: where to measure first; the best is refined.
        max_perplexity_increase: the budget, a share; None for no limit.
        quantization: of the base: nf4, int8 or none.
        dtype: of the base.
        max_tokens: longer texts become windows.
        prefix_tokens: tokens given before the rest must be recited.
        batch_size: sequences in one forward.
        overwrite: replace a run that stands in output_dir.
        force: go on where the adapter was made for another base.

    Returns:
        output_dir, and the scale.

    Raises:
        UserError: a file, the model, the adapter or the folder can't be used.
    """
    run = recipe.checked(recipe.Recipe(
        model=recipe.Model(name=model, quantization=quantization, dtype=dtype),
        data=recipe.Data(
            forget, holdout=holdout, validation=validation, max_tokens=max_tokens, prefix_tokens=prefix_tokens
        ),
        evaluation=recipe.Evaluation(batch_size=batch_size),
        stop=recipe.Stop(max_perplexity_increase=max_perplexity_increase),
    ))  # fmt: skip
    check_output(output_dir, overwrite, run.model, run.data, [adapter])
    adapter_files.read(adapter)  # refuse now what could not be scaled in the end
    accelerator = new_accelerator()
    given, _ = loading.load(run.model, run.data)
    stacked = models.stack(load_base(run.model, [adapter], force), [adapter])
    before = deployment.measure(stacked, "base", [], Measuring(given, batch_size=batch_size, accelerator=accelerator))
    bounds, perplexity = bounds_of("holdout", before), before.perplexities.get("validation")
    task = records.Task(
        forget=given.forget, before=before.forget, criteria=criteria_of("holdout", before.holdout),
        validation=given.validation, validation_perplexity=perplexity,
    )  # fmt: skip
    (name,) = models.adapter_names(1)

    def measured(scale: float) -> dict[str, Any]:
        return records.measured_at(scale, stacked, name, task, batch_size, accelerator)[0]

    best, rows = scale_search.search(
        measured, records.base_outcome(task).log[0], run.stop.max_perplexity_increase, scales
    )

    def write_scaled() -> None:
        with tempfile.TemporaryDirectory(prefix="adapter-unlearn-") as place:
            scaled = arithmetic.negate(adapter, Path(place) / "scaled", best)
            with run_folder.new_folder(output_dir, overwrite) as folder:
                shutil.copytree(scaled, folder, dirs_exist_ok=True)
                write.scale_search(folder, rows, bounds, best)

    on_first_process(accelerator, write_scaled)
    return Path(output_dir), best
