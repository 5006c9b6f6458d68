"""Evaluate any finished adapters on a base, including adapters that this package did not train."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapter_unlearn import assets, models
from adapter_unlearn.errors import RecipeError, path_name
from adapter_unlearn.evaluation import forms as deployment
from adapter_unlearn.evaluation.criteria import criteria_of
from adapter_unlearn.evaluation.forms import Measuring
from adapter_unlearn.evaluation.interference import interference
from adapter_unlearn.evaluation.report import Report, build_report
from adapter_unlearn.metrics import table
from adapter_unlearn.pipeline import common, loading, manifest
from adapter_unlearn.recipe import Data, Evaluation, Model, Permissions, Recipe, Utility, checked
from adapter_unlearn.reporting import interference as interference_report
from adapter_unlearn.reporting import run as run_report
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights import adapter_files

if TYPE_CHECKING:
    import pandas as pd


def evaluate(
    model: Model,
    adapters: str | Path | Sequence[str | Path],
    data: Data,
    evaluation: Evaluation = Evaluation(),
    utility: Utility = Utility(),
    output_dir: str | Path | None = None,
    permissions: Permissions = Permissions(),
) -> Report:
    """Measure a base and adapters on it in every deployment form.

    Args:
        model: the base.
        adapters: one adapter folder, or several that are active together.
        data: the sets; only `forget` is required.
        evaluation: deployment forms, metrics, bounds and batch size.
        utility: downstream tasks and dialogues.
        output_dir: folder for summary, scores and report; None writes nothing.
        permissions: `overwrite` an earlier evaluation, `force` an adapter of another base, `trust_remote_code`.

    Raises:
        UserError: a file, the model, an adapter or the folder can't be used.
    """
    model, data, folders = Model.of(model), Data.of(data), common.folders_of(adapters, least=1)
    run = checked(Recipe(model, data, evaluation=evaluation))
    table.resolve(evaluation.metrics)
    others = [*folders, *utility.tasks, *([] if utility.replies is None else [assets.resolve(utility.replies)])]
    common.check_output(output_dir, permissions, model, data, others)
    adapter_files.check_distinct([*common.frozen_adapters(model), *folders])
    common.check_mergeable(model, evaluation.forms, permissions)
    accelerator = common.new_accelerator()

    # load
    loaded = loading.load(model, data, permissions)
    stacked = common.load_stacked(model, folders, permissions)
    base = manifest.base_identity(model, stacked)

    # score
    measuring = Measuring(loaded.sets, evaluation.metrics, evaluation.batch_size, accelerator)
    if utility.tasks or utility.replies is not None:
        tokenizer = models.load_tokenizer(model.name, model.revision, permissions.trust_remote_code)
        measuring = dataclasses.replace(measuring, tokenizer=tokenizer, **vars(utility))
    frozen = len(common.frozen_adapters(model))
    names = models.adapter_names(frozen + len(folders))
    measurements = [deployment.measure(stacked, "base", names[:frozen], measuring)]
    if "stacked" in evaluation.forms:
        measurements.append(deployment.measure(stacked, "stacked", names, measuring))
    del stacked  # memory may not hold another model beside it
    measurements += common.measure_merged(run, folders, measurements[0], measuring, permissions, output_dir)

    # report
    criteria = criteria_of(evaluation.bounds, measurements[0].holdout)
    report = build_report(measurements, loaded.sets, criteria)

    def write(folder: Path) -> None:
        about = manifest.common(base, loaded, criteria) | {"adapters": run_folder.identities(folders)}
        run_folder.write_json(folder / run_folder.EVALUATION, about)
        run_report.write(folder, run_report.RunResults(report, about))

    common.write_folder(accelerator, output_dir, permissions.overwrite, write)
    return report


def evaluate_interference(
    model: Model,
    adapters: Sequence[str | Path],
    data: Data,
    batch_size: int = Evaluation.batch_size,
    output_dir: str | Path | None = None,
    permissions: Permissions = Permissions(),
) -> pd.DataFrame:
    """Score several forget sets under every combination of several adapters, for example of several deletion requests.

    Args:
        model: the base.
        adapters: the adapters' folders.
        data: `forget` is a list of files, each a set of its own. If there are as many as adapters, the i-th set is the
            one that the i-th adapter unlearned. Other sets are not used.
        batch_size: sequences in one forward pass.
        output_dir: folder for the matrix and its report; None writes nothing.
        permissions: `overwrite` an earlier evaluation, `force` an adapter of another base, `trust_remote_code`.

    Returns:
        See evaluation.interference.interference.

    Raises:
        UserError: a file, the model, an adapter or the folder can't be used.
    """
    model, data, adapters = Model.of(model), Data.of(data), common.folders_of(adapters, least=1)
    files = [data.forget] if isinstance(data.forget, str) else list(data.forget)
    for flag, paths in (("adapter", adapters), ("forget", files)):
        if repeated := [path for i, path in enumerate(paths) if path in list(paths)[:i]]:
            raise RecipeError(
                f"{flag}: {path_name(repeated[0], 'one')} is named twice; name each adapter and each set once"
            )
    data = Data(files, max_tokens=data.max_tokens, stride=data.stride, prefix_tokens=data.prefix_tokens)
    if model.adapter:
        raise RecipeError("model.adapter: a matrix measures the base without any adapter; name it as one of adapters")
    checked(Recipe(model, data, evaluation=Evaluation(batch_size=batch_size)))
    common.check_output(output_dir, permissions, model, data, adapters)
    accelerator = common.new_accelerator()

    # load
    names = _short_names(adapters)
    loaded = {
        name: loading.load(model, dataclasses.replace(data, forget=file), permissions)
        for name, file in zip(_short_names(files), files)
    }
    stacked = common.load_stacked(model, adapters, permissions)
    base = manifest.base_identity(model, stacked)

    # score
    on_model = dict(zip(names, models.adapter_names(len(adapters))))
    forget_sets = {name: one.sets.forget for name, one in loaded.items()}
    rows = interference(stacked, on_model, forget_sets, batch_size, accelerator)

    # report
    def write(folder: Path) -> None:
        about = manifest.of_interference(base, dict(zip(names, adapters)), loaded)
        run_folder.write_json(folder / run_folder.EVALUATION, about)
        interference_report.write(folder, rows, about)

    common.write_folder(accelerator, output_dir, permissions.overwrite, write)
    return rows


def _short_names(paths: Sequence[str | Path]) -> list[str]:
    """The last part of each path, or the whole paths if the last parts are not distinct."""
    short = [Path(path).stem if Path(path).is_file() else Path(path).name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]
