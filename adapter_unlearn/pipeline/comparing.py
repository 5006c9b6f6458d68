"""Compare finished runs, and make those of a matrix that are not there yet."""

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
from adapter_unlearn.pipeline import experiments, manifest, unlearning_run
from adapter_unlearn.pipeline.common import check_output, new_accelerator, on_first_process
from adapter_unlearn.recipe import load_recipe
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
    overwrite: bool = False,
    force: bool = False,
) -> Comparison:
    """Put finished runs side by side, of one base and on the same texts, and judge which differences are noise.

    Args:
        runs: run folders, or those of `evaluate`.
        matrix: recipes by seeds, a YAML or what it would hold (see experiments.py). Its runs go to
            `output_dir`/runs/EXPERIMENT-seedN. What is done is not done again; one that fails
            becomes a row, and the others go on.
        output_dir: where the comparison goes; None writes nothing. Of what lies there only an older comparison is
            replaced, never a run.
        baseline: the method that the others' differences are to: a name, or `best`. None takes the first.
        overwrite: replace a comparison that stands there (with a matrix that needs no leave), and make runs again
            whose recipe has changed.
        force: go on where an adapter was made for another base.

    Raises:
        UserError: a run can't be read or compared, the matrix or the folder can't be used, every run failed.
    """
    if not runs and matrix is None:
        raise RecipeError("compare: nothing to compare; name run folders, or a matrix with --config")
    if matrix is not None and output_dir is None:
        raise RecipeError("compare: a matrix needs --output_dir, where its runs go")
    if twice := [
        str(run) for i, run in enumerate(runs) if Path(run).resolve() in [Path(r).resolve() for r in runs[:i]]
    ]:
        raise RecipeError(f"compare: {twice[0]} is named twice")
    given = [finished_run.read(run) for run in runs]
    planned = [] if matrix is None or output_dir is None else _planned(matrix, Path(output_dir) / run_folder.RUNS)
    if output_dir is not None:
        read = [*runs, *([matrix] if isinstance(matrix, str | Path) else [])]
        _check_folder(Path(output_dir), overwrite or matrix is not None, read)
    names = [*(one.experiment for one in planned), *(method.name for method in comparison.group(given))]
    comparison.check_baseline(baseline, names)
    missing = [one for one in planned if not _is_done(one, overwrite)]
    if planned and len(missing) < len(planned):
        log.info("%d of %d runs are done already", len(planned) - len(missing), len(planned))
    accelerator = new_accelerator()
    failed = _run(missing, overwrite, force)
    gone = {one.folder for one in failed}
    made = [one for one in planned if one.recipe.output_dir not in gone]
    if not given and not made:
        raise RunError(f"every run failed; {failed[0].experiment}, seed {failed[0].seed}: {failed[0].reason}")
    given += [finished_run.read(one.recipe.output_dir, one.experiment) for one in made]
    found = comparison.compare(given, failed, baseline)

    def write_comparison() -> None:
        assert output_dir is not None
        with run_folder.renewed(output_dir, run_folder.COMPARISON) as folder:
            comparison_report.write(folder, found, manifest.of_comparison(found.about))

    if output_dir is not None:
        on_first_process(accelerator, write_comparison)
    return found


def _check_folder(output_dir: Path, may_replace: bool, read: Sequence[str | Path]) -> None:
    run_folder.check_renewable(output_dir, comparison_report.FILES)
    if (output_dir / run_folder.COMPARISON).exists() and not may_replace:
        raise OutputError(f"{output_dir}: already holds a comparison; add --overwrite or choose another --output_dir")
    for name in comparison_report.FILES:
        run_folder.check_apart(output_dir / name, read)


def _planned(matrix: Mapping[str, Any] | str | Path, place: Path) -> list[Planned]:
    """The matrix's runs with every default written out, known to make sense before the first of them begins."""
    found = []
    for one in experiments.plan(matrix, place):
        try:
            found.append(dataclasses.replace(one, recipe=unlearning_run.resolved(one.recipe)))
        except RecipeError as error:
            raise RecipeError(f"experiment {one.experiment!r}: {error}") from error
    return found


def _is_done(one: Planned, overwrite: bool) -> bool:
    """Whether the run stands in its folder, by manifest and by recipe.

    Raises:
        OutputError: the folder holds another recipe's run, or something else, and may not be replaced.
    """
    folder = Path(one.recipe.output_dir)
    carried = [one.recipe.model.adapter] if one.recipe.model.adapter else []
    if not (folder / run_folder.MANIFEST).is_file():
        check_output(folder, overwrite, one.recipe.model, one.recipe.data, carried)
        return False
    run = finished_run.read(folder)
    old = load_recipe(folder / "recipe.yaml")
    if changed := experiments.differing(old, one.recipe):
        key = changed[0]
        if overwrite:
            return False
        more = f" and {len(changed) - 1} more keys" if len(changed) > 1 else ""
        raise OutputError(
            f"{folder}: holds a run of another recipe ({key}: {experiments.look_up(old, key)} there,"
            f" {experiments.look_up(one.recipe, key)} now{more});"
            " add --overwrite to make it again, or rename the experiment"
        )
    if newer := _changed_since(run, one):
        log.warning("%s: %s has changed since this run was made; if that matters, make it again", folder, newer)
    return True


def _changed_since(run: Finished, one: Planned) -> str | None:
    """A file of the run's that is younger than the run: its content is not kept, so no more can be known."""
    made = datetime.fromisoformat(run.manifest["created"]).timestamp()
    data = one.recipe.data
    for source in (data.forget, data.retain, data.holdout, data.validation, data.test):
        for name in [source] if isinstance(source, str) else source or []:
            path = Path(assets.resolve(name))
            if path.is_file() and path.stat().st_mtime > made + 1:
                return name
    model = Path(assets.resolve(one.recipe.model.name))
    known = (run.manifest.get("base") or {}).get("fingerprint")
    return one.recipe.model.name if model.is_dir() and run_folder.fingerprint(model) != known else None


def _run(missing: Sequence[Planned], overwrite: bool, force: bool) -> list[Failed]:
    """Make the runs one after the other; an error ends its own run only."""
    failed = []
    for i, one in enumerate(missing):
        log.info("run %d of %d: %s, seed %d", i + 1, len(missing), one.experiment, one.seed)
        try:
            unlearning_run.unlearn(one.recipe, overwrite=overwrite, force=force)
        except Exception as error:
            reason = _reason(error)
            failed.append(Failed(one.experiment, one.seed, one.recipe.output_dir, reason))
            log.error("%s, seed %d, failed: %s", one.experiment, one.seed, reason)
            log.debug("where it failed", exc_info=True)
        if torch.cuda.is_available():  # what one run held must not crowd out the next
            gc.collect()
            torch.cuda.empty_cache()
    return failed


def _reason(error: Exception) -> str:
    """One line. Of an error that is no user's only kind and place: its message might quote what it was about."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory on the accelerator; lower training.batch_size, or set training.gradient_checkpointing"
    at = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in at if "adapter_unlearn" in frame.filename] or list(at)
    return (
        f"{type(error).__name__} in {Path(ours[-1].filename).name}, line {ours[-1].lineno}; --debug shows the traceback"
    )
