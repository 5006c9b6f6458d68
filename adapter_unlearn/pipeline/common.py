"""What every command with a model does: check first, load, measure merged forms, write on the first process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from adapter_unlearn import assets, models
from adapter_unlearn.errors import RecipeError, UserError
from adapter_unlearn.evaluation import forms as deployment
from adapter_unlearn.evaluation.forms import Measurement, Measuring
from adapter_unlearn.recipe import Permissions
from adapter_unlearn.runs import lock, run_folder
from adapter_unlearn.weights import adapter_files, base_files, merging

if TYPE_CHECKING:
    from adapter_unlearn.recipe import Data, Form, Model, Recipe

TEMPORARY = "adapter-unlearn-"
"""Prefix of temporary folders."""


def files_of(data: Data) -> list[str]:
    """Every source that a recipe's sets are read from."""
    sources = (data.forget, data.retain, data.holdout, data.validation, data.test)
    return [name for source in sources for name in ([source] if isinstance(source, str) else source or [])]


def frozen_adapters(model: Model) -> list[str]:
    """The folders of adapters that are part of the base: the recipe's `model.adapter`, or none."""
    return [model.adapter] if model.adapter else []


def check_output(
    output_dir: str | Path | None, permissions: Permissions, model: Model, data: Data, adapters: Sequence[str | Path]
) -> None:
    """Refuse an output folder before any work: it holds files, can't be written, or holds an input; None passes."""
    if output_dir is not None:
        inputs = [*map(assets.resolve, [model.name, *files_of(data)]), *frozen_adapters(model), *adapters]
        run_folder.check_output(output_dir, permissions.overwrite, inputs)


def check_mergeable(model: Model, forms: Sequence[Form], permissions: Permissions) -> None:
    """Refuse a base that can't be merged into before training, not after it."""
    if deployment.needs_merging(forms):
        base_files.read(model, permissions.trust_remote_code)


def load_base(model: Model, adapters: Sequence[str | Path], permissions: Permissions) -> Any:
    """Load the base for these adapters; without `force`, refuse a base that an adapter was not made for.

    Raises:
        ModelError: the model can't be loaded, or an adapter was made for another one.
    """
    options = (model.name, model.quantization, model.dtype, model.revision, permissions.trust_remote_code)
    local = Path(assets.resolve(model.name)).is_dir()
    if local:  # check before loading, which may take minutes
        _check_bases(model, adapters, permissions)
    base = models.load_base(*options)
    if not local:  # the files are in the hub's cache only after loading
        _check_bases(model, adapters, permissions)
    return base


def _check_bases(model: Model, adapters: Sequence[str | Path], permissions: Permissions) -> None:
    if permissions.force or not adapters:
        return
    fingerprint = run_folder.fingerprint(models.weights_folder(model.name, model.revision))
    for adapter in adapters:
        adapter_files.check_base(adapter, fingerprint, model.name)


def load_stacked(model: Model, adapters: Sequence[str | Path], permissions: Permissions) -> Any:
    """Load the base with its own adapter and these on it, all active; their names are models.adapter_names."""
    every = [*frozen_adapters(model), *adapters]
    base = load_base(model, every, permissions)
    return models.stack(base, every) if every else base


def new_accelerator(tracking: str = "none", folder: Path | None = None) -> Accelerator:
    """The accelerator of this process, with the tracker if one is named."""
    try:
        if tracking == "none":
            return Accelerator()
        accelerator = Accelerator(log_with=tracking, project_dir=str(folder))
        accelerator.init_trackers("adapter_unlearn")
    except (ValueError, ImportError) as error:
        place = "accelerate's settings" if tracking == "none" else f"recipe key tracking: {tracking!r}"
        raise RecipeError(f"{place} can't be used: {error}") from error
    if accelerator.is_main_process and not accelerator.trackers:
        raise RecipeError(f"recipe key tracking: {tracking!r} is not installed; install it or set none")
    return accelerator


def on_first_process(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Run an action on the first process only. A user's error there is raised on every process, so none hangs."""
    failure: UserError | None = None
    if accelerator.is_main_process:
        try:
            action()
        except UserError as error:
            failure = error
    failure = models.broadcast(failure, accelerator)
    if failure is not None:
        raise failure


@contextmanager
def locked(accelerator: Accelerator, output_dir: str | Path | None) -> Iterator[None]:
    """Hold the lock of an output folder inside the block, on the first process. None has none.

    Raises:
        OutputError: another run is writing this folder.
    """
    with ExitStack() as held:
        if output_dir is not None:
            on_first_process(accelerator, lambda: held.enter_context(lock.locked(output_dir)))
        yield


def write_folder(
    accelerator: Accelerator, output_dir: str | Path | None, overwrite: bool, write: Callable[[Path], None]
) -> None:
    """Write an output folder on the first process, whole or not at all; None writes nothing."""
    if output_dir is None:
        return

    def action() -> None:
        with run_folder.new_folder(output_dir, overwrite) as folder:
            write(folder)

    on_first_process(accelerator, action)


def measure_merged(
    run: Recipe,
    adapters: Sequence[str | Path],
    stacked: Measurement,
    measuring: Measuring,
    permissions: Permissions,
    output_dir: str | Path | None,
) -> list[Measurement]:
    """Measure the forms that need merging. The merged weights are in a temporary folder meanwhile.

    Args:
        run: its model and its forms.
        adapters: to merge, in addition to the model's own.
        stacked: the base's measurement for the stacked form.
        measuring: what is measured.
        permissions: for loading the base.
        output_dir: the temporary folder is made beside it, because merged weights are large; None takes the system's.
    """
    forms = deployment.needs_merging(run.evaluation.forms)
    if not forms:
        return []
    base, every = run.model, [*frozen_adapters(run.model), *adapters]
    accelerator, trust = measuring.accelerator, permissions.trust_remote_code
    assert accelerator is not None
    with _shared_folder(accelerator, None if output_dir is None else Path(output_dir).parent) as place:

        def merge() -> None:
            allowed = Permissions(force=True, trust_remote_code=trust)  # load_base has checked the adapters
            merging.merge(base, every, place / "merged", dtype=base.dtype, permissions=allowed)

        on_first_process(accelerator, merge)
        return deployment.measure_merged(base, adapters, forms, place / "merged", stacked, measuring, trust)


@contextmanager
def _shared_folder(accelerator: Accelerator, parent: Path | None) -> Iterator[Path]:
    """A temporary folder that all processes see."""
    name = ""
    if accelerator.is_main_process:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(prefix=f".{TEMPORARY}", dir=parent)
    name = models.broadcast(name, accelerator)
    try:
        yield Path(name)
        accelerator.wait_for_everyone()
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(name, ignore_errors=True)
