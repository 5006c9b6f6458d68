"""lm-eval's tasks, run on the model in memory with the adapters that are active: no copy, no reload.

lm-eval is an extra and slow to import, so it is imported where it is used. Its progress bars and output are hidden. The
first of its warnings on a task is logged, in one line.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib.util
import io
import logging
import random
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pandas as pd
import torch

from adapter_unlearn.errors import InputError, OutputError, RecipeError, path_name, word
from adapter_unlearn.runs import run_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SEED = 1234
"""For few-shot examples and tasks that shuffle. lm-eval's own default, so that its command line gives the same."""

PRESETS = {
    "paper": (
        "piqa", "hellaswag", "arc_easy", "arc_challenge", "copa", "winogrande", "mathqa", "pubmedqa", "lambada_openai",
    ),
    "quick": ("piqa", "arc_easy", "lambada_openai"),
}  # fmt: skip
"""paper: the tasks of Barbulescu & Triantafillou (2024). quick: physical common sense, school science, and words that
depend on a long context. Small models are above chance in these three; a score at chance level can't fall."""

_LOGGERS = ("lm_eval", "datasets", "huggingface_hub", "transformers")


def score_tasks(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Score the model on lm-eval's tasks, sample by sample, with the adapters that are active on it.

    All tasks are loaded before the first is run. Log-probabilities are summed in float32 whatever the model's dtype:
    bfloat16 resolves a sum of -37 only to a quarter, so answers would tie. (`lm_eval` does the same with
    `--model_args softmax_dtype=float32`; on a float32 model it always does.)

    Args:
        model: a causal language model, with or without adapters, in eval mode.
        tokenizer: the model's. lm-eval gets a copy, because it may add a pad token.
        names: tasks or groups of lm-eval (`lm_eval ls tasks` lists them), `paper` or `quick` (see PRESETS), or task
            files: paths of .yaml files in lm-eval's task format. Their data may be a local JSON file
            (`dataset_path: json`, `dataset_kwargs: {data_files: {test: FILE}}`; as in lm-eval, FILE is relative to the
            working directory). The data of a task file stay in memory; no cache is left. A task file may name Python
            functions (`!function`), which are run: use only files that you trust.
        limit: use only the first samples of each task, at most this many.
        batch_size: requests per forward. The float32 log-probabilities of one forward are in memory at once.

    Returns:
        One row per (task, metric, sample): task, metric, doc_id (str), value. The metrics are those of lm-eval that are
        means over samples; for a task with several answer filters they are named `metric,filter`. lm-eval's
        `perplexity` becomes `loss`, whose mean is its logarithm: -log p(correct continuation), in nats per sample.
        Metrics that exist only for a whole set are left out.

    Raises:
        RecipeError: lm-eval is not installed, or a name is unknown.
        InputError: a task can't be loaded or run; the message gives the reason.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise RecipeError("tasks need lm-eval, which is not installed; run: pip install 'adapter-unlearn[eval]'")
    names = list(dict.fromkeys(task for name in names for task in PRESETS.get(name, (name,))))
    notes = []
    with _quiet() as listener, _seeded(SEED):
        from lm_eval.models.huggingface import HFLM

        for name in names:
            _check_name(name)
        loaded: dict[str, tuple[str, Any]] = {}
        for name in names:
            for task, definition in _load(name).items():
                if task in loaded:
                    raise RecipeError(f"tasks: {name} and {loaded[task][0]} both contain {task}; leave one out")
                loaded[task] = name, definition
            notes += listener.summary(name)
        lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, softmax_dtype="float32")
        listener.setLevel(logging.WARNING)  # only now: lm-eval warns about models that are already loaded
        frames = []
        for number, (task, (name, definition)) in enumerate(loaded.items(), 1):
            log.info("task %s, %d of %d", task, number, len(loaded))
            frames.append(_rows(task, definition, _run(lm, name, task, definition, limit), name))
            notes += listener.summary(name)
    for note in notes:  # stderr is no longer redirected here
        log.warning(note)
    return pd.concat(frames, ignore_index=True)


def _is_file_name(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _check_name(name: str) -> None:
    """Check that there is such a file or task, before anything is downloaded."""
    if _is_file_name(name):
        if not Path(name).is_file():
            raise InputError(f"{path_name(name)}: no such file; check the path of the task file")
    elif name not in (registry := _registry()).task_index:
        close = difflib.get_close_matches(name, [*PRESETS, *registry.all_tasks], n=1)
        fix = f"did you mean {close[0]}?" if close else "`lm_eval ls tasks` lists the tasks"
        raise RecipeError(
            f"tasks: {word(name)} is no task of lm-eval, no preset ({', '.join(PRESETS)}), no .yaml; {fix}"
        )


def _load(name: str) -> dict[str, Any]:
    """The tasks of a name: one, or those of a group."""
    from lm_eval.tasks import TaskManager

    is_file = _is_file_name(name)
    try:
        with _data_in_memory() if is_file else contextlib.nullcontext():
            manager = TaskManager(include_defaults=False) if is_file else _registry()
            return manager.load([name])["tasks"]
    except OutputError:  # of the temporary folder
        raise
    except Exception as error:  # lm-eval, yaml, jinja, datasets, functions of the file: dozens of types
        if is_file:
            fix = "correct it (see lm-eval's task guide); paths of data files are relative to the working directory"
            raise InputError(f"{name}: this task file can't be used: {_own_reason(error, name)}; {fix}") from None
        reason = _reason(error)
        fix = "leave it out, or give a task file"
        if isinstance(error, ConnectionError | datasets.exceptions.DatasetNotFoundError):
            fix = "load it once with a network connection, or give a task file with your own data"
        elif "scripts are no longer supported" in reason:
            fix = "leave it out (name the other tasks one by one) until lm-eval moves it, or give a task file"
        raise InputError(f"task {name}: its data can't be loaded: {reason}; {fix}") from error


@cache
def _registry() -> Any:
    """lm-eval's own tasks; reading these thousands of files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _run(lm: Any, name: str, task: str, definition: Any, limit: int | None) -> list[dict[str, Any]]:
    """One dict per (sample, filter), as lm-eval logs it."""
    from lm_eval.evaluator import evaluate

    if definition.get_config("num_fewshot") is None:
        definition.set_config(key="num_fewshot", value=0)
    definition.set_fewshot_seed(seed=SEED)
    try:
        results = evaluate(lm, {"tasks": {task: definition}}, limit=limit, bootstrap_iters=0, log_samples=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # templates and functions of a task can raise anything
        is_file = _is_file_name(name)
        reason = _own_reason(error, name) if is_file else _reason(error)
        message = f"task {name}: lm-eval can't run it: {reason}; correct it or leave it out"
        raise InputError(message) from (None if is_file else error)
    return results["samples"][task]


def _rows(task: str, definition: Any, samples: list[dict[str, Any]], name: str) -> pd.DataFrame:
    from lm_eval.api.registry import get_aggregation

    mean, perplexity, aggregations = get_aggregation("mean"), get_aggregation("perplexity"), definition.aggregation()
    rows = []
    for sample in samples:
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        for metric in sample["metrics"]:
            if aggregations[metric] is mean:
                rows.append((task, metric + suffix, str(sample["doc_id"]), float(sample[metric])))
            elif aggregations[metric] is perplexity:  # over log-probabilities, one per sample
                rows.append((task, "loss" + suffix, str(sample["doc_id"]), -float(sample[metric])))
    if not rows:
        raise InputError(f"task {name}: none of its metrics is a mean over samples; leave it out")
    return pd.DataFrame(rows, columns=["task", "metric", "doc_id", "value"])


@contextlib.contextmanager
def _data_in_memory() -> Iterator[None]:
    """Inside the block, `load_dataset` reads data into memory; its cache is a temporary folder, not the user's."""
    config = datasets.config
    before = config.HF_DATASETS_CACHE, config.IN_MEMORY_MAX_SIZE
    with run_folder.temporary() as cache:
        config.HF_DATASETS_CACHE, config.IN_MEMORY_MAX_SIZE = str(cache), sys.maxsize
        try:
            yield
        finally:
            config.HF_DATASETS_CACHE, config.IN_MEMORY_MAX_SIZE = before


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all random generators inside the block; restore their states after it."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class _Listener(logging.Handler):
    """Keeps the first line of each message of lm-eval; further lines may quote the sample."""

    def __init__(self, level: int):
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage().strip().split("\n")[0])

    def summary(self, name: str) -> list[str]:
        """At most one line about the messages since the last call."""
        lines, self.lines = self.lines, []
        return [f"task {name}: lm-eval warns ({len(lines)} times in all): {lines[0]}"] if lines else []


@contextlib.contextmanager
def _quiet() -> Iterator[_Listener]:
    """Hide all output of lm-eval and the libraries below it; yields a listener to lm-eval's errors."""
    listener, own = _Listener(logging.ERROR), logging.getLogger("lm_eval")
    before = {logger: (logger.level, logger.propagate) for logger in map(logging.getLogger, _LOGGERS)}
    try:
        for logger in before:
            logger.setLevel(logging.CRITICAL)
        own.setLevel(logging.WARNING)
        own.propagate = False
        own.addHandler(listener)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield listener
    finally:
        own.removeHandler(listener)
        for logger, (level, propagate) in before.items():
            logger.setLevel(level)
            logger.propagate = propagate


def _reason(error: Exception) -> str:
    """Type and message of the root cause, in one line."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    message = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _own_reason(error: Exception, file: str) -> str:
    """The reason why a task file fails, up to the first quotation that may be from its data.

    Templates and functions quote the row that they fail on. Words of the task file itself are shown.
    """
    known = Path(file).read_text(encoding="utf-8", errors="replace") if Path(file).is_file() else ""
    reason = _reason(error)
    for quotation in re.finditer(r"'([^']*)'?|\"([^\"]*)\"?", reason):
        inner = quotation[1] or quotation[2] or ""
        if inner.rsplit("/")[-1] not in known and not re.fullmatch(r"\w{1,12} object", inner):
            return reason[: quotation.start()] + "…"
    return reason
