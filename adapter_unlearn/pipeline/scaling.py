"""Search the best scale of a finished adapter."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_unlearn import models
from adapter_unlearn.evaluation import forms as deployment
from adapter_unlearn.evaluation.criteria import criteria_of
from adapter_unlearn.evaluation.forms import Measuring
from adapter_unlearn.pipeline import common, loading
from adapter_unlearn.recipe import Data, Evaluation, Model, Permissions, Recipe, Stop, checked
from adapter_unlearn.reporting import run as run_report
from adapter_unlearn.runs import run_folder
from adapter_unlearn.unlearning import records, scale_search
from adapter_unlearn.weights import adapter_files, arithmetic


@dataclass(frozen=True)
class ScaleSearch:
    """How a scale is searched.

    Args:
        scales: measured first, beside 0; the best is refined.
        max_perplexity_increase: budget of the validation perplexity, as a fraction; None for no limit.
        batch_size: sequences in one forward pass.
    """

    scales: Sequence[float] = scale_search.SCALES
    max_perplexity_increase: float | None = Stop.max_perplexity_increase
    batch_size: int = Evaluation.batch_size


def negate_searched(
    adapter: str | Path,
    output_dir: str | Path,
    model: Model,
    data: Data,
    search: ScaleSearch = ScaleSearch(),
    permissions: Permissions = Permissions(),
) -> tuple[Path, float]:
    """Scale an adapter by the factor with the fewest failing sequences within the perplexity budget, without training.

    Args:
        adapter: folder of a PEFT LoRA adapter that memorized the forget set, or of any with positive scales.
        output_dir: folder for the scaled adapter, scale_search.jsonl and figures/scales.png.
        model: the base.
        data: `forget`; `validation`, without which the budget does not apply; `holdout`, without which the paper's
            bounds apply. Other sets are not used.
        search: scales, budget and batch size.
        permissions: `overwrite` an earlier run, `force` an adapter of another base, `trust_remote_code`.

    Returns:
        output_dir, and the scale.

    Raises:
        UserError: a file, the model, the adapter or the folder can't be used.
    """
    model, data = Model.of(model), Data.of(data)
    stop = Stop(max_perplexity_increase=search.max_perplexity_increase)
    checked(Recipe(model, data, stop=stop, evaluation=Evaluation(batch_size=search.batch_size)))
    common.check_output(output_dir, permissions, model, data, [adapter])
    adapter_files.read(adapter)  # refuse an adapter that can't be scaled before the search
    accelerator = common.new_accelerator()

    # load
    sets = loading.load(model, data, permissions).sets
    stacked = common.load_stacked(model, [adapter], permissions)
    *frozen, name = models.adapter_names(len(common.frozen_adapters(model)) + 1)

    # score
    measuring = Measuring(sets, batch_size=search.batch_size, accelerator=accelerator)
    before = deployment.measure(stacked, "base", frozen, measuring)
    criteria = criteria_of("holdout", before.holdout)
    task = records.Task(
        forget=sets.forget,
        before=before.forget,
        criteria=criteria,
        validation=sets.validation,
        validation_perplexity=before.perplexities.get("validation"),
    )

    def measured(scale: float) -> dict[str, Any]:
        return records.measured_at(scale, stacked, name, task, search.batch_size, accelerator)[0]

    base = records.base_outcome(task).log[0]
    best, rows = scale_search.search(measured, base, search.max_perplexity_increase, search.scales)

    # report
    def write(folder: Path) -> None:
        with run_folder.temporary() as place:
            shutil.copytree(arithmetic.negate(adapter, place / "scaled", best), folder, dirs_exist_ok=True)
        run_report.write_scale_search(folder, rows, criteria.bounds, best)

    common.write_folder(accelerator, output_dir, permissions.overwrite, write)
    return Path(output_dir), best
