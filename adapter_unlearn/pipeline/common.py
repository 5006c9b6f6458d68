"""What every verb with a model does: check first, start processes, merge what must be merged, write on one of them."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from adapter_unlearn import assets, models
from adapter_unlearn.errors import RecipeError, UserError
from adapter_unlearn.evaluation import forms as deployment
from adapter_unlearn.evaluation.forms import Measurement, Measuring
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights import adapter_files, base_files, merging

if TYPE_CHECKING:
    from adapter_unlearn.recipe import Data, Form, Model, Recipe


def check_output(
    output_dir: str | Path, overwrite: bool, model: Model, texts: Data, adapters: Sequence[str | Path]
) -> None:
    """Refuse an output folder before any work: it holds something, can't be written, or holds what is read."""
    run_folder.check_writable(output_dir, overwrite)
    sources = [texts.forget, texts.retain, texts.holdout, texts.validation, texts.test]
    files = [name for source in sources for name in ([source] if isinstance(source, str) else source or [])]
    run_folder.check_apart(output_dir, [*map(assets.resolve, [model.name, *files]), *adapters])


def check_mergeable(model: Model, forms: Sequence[Form]) -> None:
    """Refuse forms that can't be made before hours of training, not after."""
    if deployment.needs_merging(forms):
        base_files.read(model.name, model.revision, model.trust_remote_code)


def load_base(model: Model, adapters: Sequence[str | Path], force: bool) -> Any:
    """Load the base that these adapters shall act on; refuse one that an adapter was not made for, unless forced.

    Raises:
        ModelError: the model can't be loaded, or it is another one than an adapter was made for.
    """
    options = dataclasses.asdict(model)
    del options["adapter"]
    local = Path(assets.resolve(model.name)).is_dir()
    if local:  # before it is loaded, which may take minutes
        _check_pairs(model, adapters, force)
    base = models.load_base(**options)
    if not local:  # now its files are in the hub's cache
        _check_pairs(model, adapters, force)
    return base


def _check_pairs(model: Model, adapters: Sequence[str | Path], force: bool) -> None:
    if force or not adapters:
        return
    fingerprint = run_folder.fingerprint(models.weights_folder(model.name, model.revision))
    for adapter in adapters:
        adapter_files.check_base(adapter, fingerprint, model.name)


def new_accelerator(tracking: str = "none", folder: Path | None = None) -> Accelerator:
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


def on_first_process(accelerator: Accelerator, action: Callable[[], None]) -> None:
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


def measure_merged(
    run: Recipe, adapters: Sequence[str | Path], stacked: Measurement, how: Measuring, parent: Path | None
) -> list[Measurement]:
    """Merge into a folder beside the output, measure the forms that need it, and leave nothing there."""
    forms = deployment.needs_merging(run.evaluation.forms)
    if not forms:
        return []
    base, everything = run.model, [*([run.model.adapter] if run.model.adapter else []), *adapters]
    assert how.accelerator is not None
    with shared_folder(how.accelerator, parent) as place:
        on_first_process(how.accelerator, lambda: _merge(base, everything, place / "merged"))
        return deployment.measure_merged(base, adapters, forms, place / "merged", stacked, how)


def _merge(base: Model, adapters: Sequence[str | Path], output_dir: Path) -> None:
    trust = base.trust_remote_code
    merging.merge(
        base.name, adapters, output_dir, dtype=base.dtype, revision=base.revision, trust_remote_code=trust, force=True
    )


@contextmanager
def shared_folder(accelerator: Accelerator, parent: Path | None) -> Iterator[Path]:
    """A temporary folder that all processes see, gone on leaving; beside the output, for merged weights are large."""
    folder: list[str | None] = [None]
    if accelerator.is_main_process:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        folder = [tempfile.mkdtemp(prefix=".adapter-unlearn-", dir=parent)]
    if accelerator.num_processes > 1:
        folder = broadcast_object_list(folder)
    assert folder[0] is not None
    try:
        yield Path(folder[0])
        accelerator.wait_for_everyone()
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(folder[0], ignore_errors=True)
