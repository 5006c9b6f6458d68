"""Compare finished runs, and make the missing runs of a matrix."""

from __future__ import annotations

import dataclasses
import gc
import logging
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapter_unlearn import assets
from adapter_unlearn.errors import OutputError, RecipeError, RunError, UserError
from adapter_unlearn.evaluation import comparison, finished_run
from adapter_unlearn.evaluation.comparison import Comparison, Failed
from adapter_unlearn.pipeline import common, experiments, manifest, unlearning_run
from adapter_unlearn.recipe import Permissions, load_recipe
from adapter_unlearn.reporting import comparison as comparison_report
from adapter_unlearn.runs import run_folder

if TYPE_CHECKING:
    from adapter_unlearn.evaluation.finished_run import Finished
    from adapter_unlearn.pipeline.experiments import Planned

log = logging.getLogger(__name__)


def compare(
    runs: Sequence[str | Path] = (),
    matrix: Mapping[str, Any] | str | Path | None = None,
    output_dir: str | Path | None = None,
    baseline: str | None = None,
    permissions: Permissions = Permissions(),
) -> Comparison:
    """Compare finished runs of one base on the same texts, and judge which differences are noise.

    Args:
        runs: folders of runs or evaluations.
        matrix: recipes by seeds, a YAML file or its content (see experiments.py). Its runs go to
            `output_dir`/runs/EXPERIMENT-seedN. Finished runs are kept; a run that fails becomes a row, and the others
            go on.
        output_dir: folder for the comparison; None writes nothing. Only an older comparison in it is replaced, never a
            run.
        baseline: the method that differences are relative to: a name, or `best`. None takes the first.
        permissions: `overwrite` an earlier comparison (with a matrix this needs no permission) and runs whose recipe
            has changed, `force` an adapter of another base, `trust_remote_code`. Interrupted runs of the matrix are
            always continued.

    Raises:
        UserError: a run can't be read or compared, the matrix or the folder can't be used, or every run failed.
    """
    if not runs and matrix is None:
        raise RecipeError("compare: nothing to compare; name run folders, or a matrix with --config")
    if matrix is not None and output_dir is None:
        raise RecipeError("compare: the runs of a matrix need a folder; add --output_dir")
    places = [Path(run).resolve() for run in runs]
    if repeated := [str(run) for i, run in enumerate(runs) if places[i] in places[:i]]:
        raise RecipeError(f"compare: {repeated[0]} is named twice; name each run once")

    # check
    finished = [finished_run.read(run) for run in runs]
    planned = [] if matrix is None or output_dir is None else _planned(matrix, Path(output_dir) / run_folder.RUNS)
    if output_dir is not None:
        inputs = [*runs, *([matrix] if isinstance(matrix, str | Path) else [])]
        _check_folder(Path(output_dir), permissions.overwrite or matrix is not None, inputs)
    names = [*(one.experiment for one in planned), *(method.name for method in comparison.group(finished))]
    comparison.check_baseline(baseline, names)
    missing = [one for one in planned if not _is_done(one, permissions)]
    if planned and len(missing) < len(planned):
        log.info("%d of %d runs are done already", len(planned) - len(missing), len(planned))

    # run
    accelerator = common.new_accelerator()
    failed = _run(missing, permissions)
    failures = {one.folder for one in failed}
    done = [one for one in planned if one.recipe.output_dir not in failures]
    if not finished and not done:
        raise RunError(f"every run failed; {failed[0].experiment}, seed {failed[0].seed}: {failed[0].reason}")

    # report
    finished += [finished_run.read(one.recipe.output_dir, one.experiment) for one in done]
    result = comparison.compare(finished, failed, baseline)

    def write() -> None:
        assert output_dir is not None
        with run_folder.renewed(output_dir, run_folder.COMPARISON) as folder:
            comparison_report.write(folder, result, manifest.of_comparison(result.about))

    if output_dir is not None:
        common.on_first_process(accelerator, write)
    return result


def _check_folder(output_dir: Path, may_replace: bool, inputs: Sequence[str | Path]) -> None:
    run_folder.check_renewable(output_dir, comparison_report.FILES)
    if (output_dir / run_folder.COMPARISON).exists() and not may_replace:
        raise OutputError(f"{output_dir}: already holds a comparison; add --overwrite or choose another --output_dir")
    for name in comparison_report.FILES:
        run_folder.check_apart(output_dir / name, inputs)


def _planned(matrix: Mapping[str, Any] | str | Path, place: Path) -> list[Planned]:
    """The matrix's runs with every default written out; all of them are checked before the first one starts."""
    planned = []
    for one in experiments.plan(matrix, place):
        try:
            planned.append(dataclasses.replace(one, recipe=unlearning_run.resolved(one.recipe)))
        except RecipeError as error:
            raise RecipeError(f"experiment {one.experiment!r}: {error}") from error
    return planned


def _is_done(one: Planned, permissions: Permissions) -> bool:
    """Whether the folder holds this run, by manifest and recipe.

    Raises:
        OutputError: the folder holds the run of another recipe, or other files, and must not be replaced.
    """
    folder = Path(one.recipe.output_dir)
    if not (folder / run_folder.MANIFEST).is_file():
        common.check_output(folder, permissions, one.recipe.model, one.recipe.data, [])
        return False
    run = finished_run.read(folder)
    old = load_recipe(folder / "recipe.yaml")
    if changed := experiments.differing(old, one.recipe):
        if permissions.overwrite:
            return False
        key, more = changed[0], f" and {len(changed) - 1} more keys" if len(changed) > 1 else ""
        before, now = experiments.look_up(old, key), experiments.look_up(one.recipe, key)
        raise OutputError(
            f"{folder}: holds the run of another recipe ({key} was {before} and is {now} now{more});"
            " add --overwrite to make it again, or rename the experiment"
        )
    if newer := _changed_since(run, one):
        log.warning("%s: %s has changed since this run was made; make it again if that matters", folder, newer)
    return True


def _changed_since(run: Finished, one: Planned) -> str | None:
    """A file or base of the run that has changed; a file by its time, because run folders keep no content."""
    made = datetime.fromisoformat(run.manifest["created"]).timestamp()
    for name in common.files_of(one.recipe.data):
        path = Path(assets.resolve(name))
        if path.is_file() and path.stat().st_mtime > made + 1:
            return name
    model = Path(assets.resolve(one.recipe.model.name))
    known = (run.manifest.get("base") or {}).get("fingerprint")
    return one.recipe.model.name if model.is_dir() and run_folder.fingerprint(model) != known else None


def _run(missing: Sequence[Planned], permissions: Permissions) -> list[Failed]:
    """Make the runs one after the other; an error ends only its own run."""
    failed = []
    for i, one in enumerate(missing):
        log.info("run %d of %d: %s, seed %d", i + 1, len(missing), one.experiment, one.seed)
        try:
            unlearning_run.unlearn(one.recipe, dataclasses.replace(permissions, resume=True))
        except Exception as error:
            reason = _reason(error)
            failed.append(Failed(one.experiment, one.seed, one.recipe.output_dir, reason))
            log.error("%s, seed %d, failed: %s", one.experiment, one.seed, reason)
            log.debug("where it failed", exc_info=True)
        if torch.cuda.is_available():  # free the memory of one run for the next
            gc.collect()
            torch.cuda.empty_cache()
    return failed


def _reason(error: Exception) -> str:
    """One line. For a bug only its kind and place, because its message might quote a text."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory on the accelerator; lower training.batch_size, or set training.gradient_checkpointing"
    at = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in at if "adapter_unlearn" in frame.filename] or list(at)
    return (
        f"{type(error).__name__} in {Path(ours[-1].filename).name}, line {ours[-1].lineno}; --debug shows the traceback"
    )
