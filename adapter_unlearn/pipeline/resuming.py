"""Continue an interrupted run: find its checkpoint, and refuse one that was made from something else."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_unlearn import recipe
from adapter_unlearn.data import digest
from adapter_unlearn.errors import OutputError, RunError
from adapter_unlearn.pipeline import common, experiments
from adapter_unlearn.recipe import Permissions, Recipe
from adapter_unlearn.runs import checkpoint_file
from adapter_unlearn.unlearning import step
from adapter_unlearn.unlearning.checkpoint import Checkpoints, reading

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator

    from adapter_unlearn.data import Sets
    from adapter_unlearn.runs.checkpoint_file import Saved

log = logging.getLogger(__name__)

VERSION = 2
"""Of the checkpoint's content."""

COPIES = 4
"""Tensors of the adapter's size in a checkpoint: the adapter, the best one, and the optimizer's two moments."""

FREE = (
    "training.batch_size", "training.gradient_checkpointing", "training.checkpoint_minutes", "evaluation.forms",
    "evaluation.metrics", "evaluation.batch_size",
)  # fmt: skip
"""Recipe keys that may change when a run is continued: they decide memory, speed and what is measured."""


def check(run: Recipe, permissions: Permissions) -> Saved | None:
    """The checkpoint that the run continues from, or None.

    Raises:
        OutputError: there is a checkpoint, and neither `resume` nor `overwrite` says what to do with it.
        RunError: it can't be read, or is that of another recipe.
    """
    path = checkpoint_file.path_of(run.output_dir)
    if not path.exists():
        if permissions.resume:
            log.info("%s does not exist; the run starts from the beginning", path)
        return None
    if not permissions.resume:
        if permissions.overwrite:
            return None
        raise OutputError(
            f"{path}: is the checkpoint of an interrupted run; add --resume to continue it, or --overwrite to start"
            " again"
        )
    saved = checkpoint_file.read(path)
    identity = saved.values.get("identity")
    if not isinstance(identity, dict) or identity.get("version") != VERSION:
        raise RunError(f"{path}: was written by another version of this package; start again with --overwrite")
    with reading(path):
        before = recipe.from_mapping(identity["recipe"])
    changed = [key for key in experiments.differing(before, run) if key not in FREE]
    if changed:
        raise RunError(
            f"{path}: is that of another recipe ({', '.join(changed)} differs); give the same recipe, or start again"
            " with --overwrite"
        )
    return saved


def checkpoints(
    run: Recipe,
    saved: Saved | None,
    model: Any,
    base: dict[str, Any],
    before: pd.DataFrame,
    sets: Sets,
    accelerator: Accelerator,
) -> Checkpoints:
    """The run's checkpoints.

    Args:
        run: resolved.
        saved: from `check`.
        model: with the adapter to train.
        base: from manifest.base_identity.
        before: the forget set's scores under the base, by which a changed text is noticed.
        sets: the other sets' tokens must be those of the checkpoint.
        accelerator: of the run.

    Raises:
        RunError: the checkpoint was made from another base or other texts.
        OutputError: the disk has no space for two checkpoints, an old one and the next.
    """
    path = checkpoint_file.path_of(run.output_dir)
    needed = 2 * COPIES * sum(4 * parameter.numel() for parameter in step.trainable(model))
    common.on_first_process(accelerator, lambda: _check_space(path, needed))
    identity = {
        "version": VERSION,
        "recipe": recipe.as_dict(run),
        "model": base["fingerprint"],
        "data.forget": before["loss"].tolist(),  # not a digest: a text that is guessed could be confirmed by it
        **{f"data.{name}": digest(sequences) for name, sequences in sets.given().items() if name != "forget"},
    }
    known = {} if saved is None else saved.values["identity"]
    for key in identity.keys() & known.keys() - {"version", "recipe"}:
        with reading(path):
            same = _equal(known[key], identity[key])
        if not same:
            raise RunError(f"{path}: the content of {key} has changed; start again with --overwrite")
    return Checkpoints(accelerator, path, run.training.checkpoint_minutes, identity, saved)


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.absolute().parent).free
    if free < needed:
        raise OutputError(
            f"{path}: checkpoints need {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free; free the disk or choose"
            " another output_dir"
        )


def _equal(known: Any, value: Any) -> bool:
    """Whether two values are equal, numbers to 1 %: their last digits depend on the batch size."""
    if not isinstance(value, list):
        return bool(known == value)
    return len(known) == len(value) and np.allclose(known, value, rtol=1e-2, equal_nan=True)


@contextmanager
def kept(run: Recipe, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of the run's output folder inside the block, and remove the checkpoint at its end.

    After an error the checkpoint is kept, and the error says where it is.
    """
    path = checkpoint_file.path_of(run.output_dir)
    with common.locked(accelerator, run.output_dir):
        try:
            yield
        except BaseException as error:
            if path.is_file():
                error.add_note(f"the training so far is in {path}; the same command with --resume continues it")
            raise
        if accelerator.is_main_process:
            checkpoint_file.remove(path)
