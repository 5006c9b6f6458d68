"""lm-eval's tasks, run on the model that is already loaded, with whatever adapters are active: no copy, no reload.

lm-eval is an extra and slow to import, so it is imported where it is used. Its bars and prints are held back; of its
warnings on a task the first is logged, in one line.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib.util
import io
import logging
import random
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pandas as pd
import torch

from adapter_unlearn.errors import InputError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SEED = 1234
"""lm-eval's own default, so that few-shot examples are those of its command line."""

PRESETS = {
    "paper": (
        "piqa",
        "hellaswag",
        "arc_easy",
        "arc_challenge",
        "copa",
        "winogrande",
        "mathqa",
        "pubmedqa",
        "lambada_openai",
    ),
    "quick": ("piqa", "arc_easy", "lambada_openai"),
}
"""paper: those of Barbulescu & Triantafillou (2024). quick: everyday physics, school knowledge, and a word that only a
long context tells: three abilities that small models have too, for a score at the level of chance can't fall."""

_TALKATIVE = ("lm_eval", "datasets", "huggingface_hub", "transformers")


def score_tasks(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = SEED,
) -> pd.DataFrame:
    """Score the model, as its adapters are set, on lm-eval's tasks, sample by sample.

    All tasks are loaded before the first is run. Log-probabilities are added up in float32 whatever the model computes
    in: in bfloat16 a sum of -37 is known to a quarter, and answers would tie. (`lm_eval` does that with
    `--model_args softmax_dtype=float32`; on a float32 model it always does.)

    Args:
        model: a causal language model, with or without adapters, in eval mode.
        tokenizer: the model's; lm-eval gets a copy, for it may add a pad token.
        names: each a task or group of lm-eval (`lm_eval ls tasks` lists them), `paper` or `quick` (see PRESETS), or a
            task file: the path of a .yaml in lm-eval's task format, its data for example in a JSON file
            (`dataset_path: json`, `dataset_kwargs: {data_files: {test: FILE}}`; as in lm-eval, FILE is looked up from
            the working directory). The rows of a task file's data go through a cache that is deleted at the end. A
            task file may name Python functions (`!function`), which are run: use none that you don't trust.
        limit: only the first so many samples of each task.
        batch_size: requests in one forward. The float32 log-probabilities of one forward are in memory at once.
        seed: of few-shot examples and of tasks that shuffle.

    Returns:
        A row a (task, metric, sample): task, metric, doc_id (str), value. The metrics are lm-eval's that are means
        over samples; where a task has several answer filters, `metric,filter`. Its `perplexity` is given as `loss`,
        whose mean is the logarithm of it: -log p(the right continuation), in nats a sample. Other metrics, of the set
        as a whole, have no value a sample and are left out.

    Raises:
        RecipeError: lm-eval is not installed, or a name is unknown.
        InputError: a task can't be loaded or run, with the reason.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise RecipeError("tasks need lm-eval, which is not installed; run: pip install 'adapter-unlearn[eval]'")
    wanted = list(dict.fromkeys(task for name in names for task in PRESETS.get(name, (name,))))
    notes = []
    with tempfile.TemporaryDirectory() as folder, _quiet() as heard, _seeded(seed):
        from lm_eval.models.huggingface import HFLM

        for name in wanted:
            _check_name(name)
        loaded: dict[str, tuple[str, Any]] = {}
        for name in wanted:
            for task, definition in _load(name, folder).items():
                if task in loaded:
                    raise RecipeError(f"tasks: {name} and {loaded[task][0]} both hold {task}; leave one out")
                loaded[task] = name, definition
            notes += heard.summary(name)
        lm = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            softmax_dtype="float32",
        )
        heard.setLevel(logging.WARNING)  # before, lm-eval warns of what is meant to be: a model that is already loaded
        frames = []
        for number, (task, (name, definition)) in enumerate(loaded.items(), 1):
            log.info("task %s, %d of %d", task, number, len(loaded))
            frames.append(_rows(task, definition, _run(lm, name, task, definition, limit, seed), name))
            notes += heard.summary(name)
    for note in notes:  # out here, where stderr is the user's again
        log.warning(note)
    return pd.concat(frames, ignore_index=True)


def _is_file_name(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _check_name(name: str) -> None:
    """Before anything is downloaded: there is such a file or task."""
    if _is_file_name(name):
        if not Path(name).is_file():
            raise InputError(f"{name}: no such file; check the path of the task file")
    elif name not in (registry := _registry()).task_index:
        close = difflib.get_close_matches(name, [*PRESETS, *registry.all_tasks], n=1)
        mend = f"did you mean {close[0]}?" if close else "`lm_eval ls tasks` lists them"
        raise RecipeError(f"tasks: {name} is no task of lm-eval, no preset ({', '.join(PRESETS)}), no .yaml; {mend}")


def _load(name: str, cache_folder: str) -> dict[str, Any]:
    """The tasks behind a name: one, or those of a group."""
    from lm_eval.tasks import TaskManager

    if _is_file_name(name):
        try:
            with _cache_in(cache_folder):
                return TaskManager(include_defaults=False).load([name])["tasks"]
        except Exception as error:  # lm-eval, yaml, jinja, datasets, a function of the file: dozens of types
            mend = "mend it by lm-eval's guide to tasks; data files are looked up from the working directory"
            raise InputError(f"{name}: this task file can't be used: {_reason(error)}; {mend}") from error
    try:
        return _registry().load([name])["tasks"]
    except Exception as error:
        reason = _reason(error)
        if isinstance(error, ConnectionError | datasets.exceptions.DatasetNotFoundError):
            mend = "load it once where there is a connection, or give a task file with your own data"
        elif "scripts are no longer supported" in reason:
            mend = "lm-eval must move it to another data set; name the other tasks one by one, or give a task file"
        else:
            mend = "leave it out, or give a task file"
        raise InputError(f"task {name}: its data can't be had: {reason}; {mend}") from error


@cache
def _registry() -> Any:
    """lm-eval's own tasks; reading those thousands of files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _run(lm: Any, name: str, task: str, definition: Any, limit: int | None, seed: int) -> list[dict[str, Any]]:
    """A dict a (sample, filter), as lm-eval logs it."""
    from lm_eval.evaluator import evaluate

    if definition.get_config("num_fewshot") is None:
        definition.set_config(key="num_fewshot", value=0)
    definition.set_fewshot_seed(seed=seed)
    try:
        results = evaluate(lm, {"tasks": {task: definition}}, limit=limit, bootstrap_iters=0, log_samples=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # what a task's templates and functions can raise
        raise InputError(f"task {name}: lm-eval can't run it: {_reason(error)}; mend it or leave it out") from error
    return results["samples"][task]


def _rows(task: str, definition: Any, samples: list[dict[str, Any]], name: str) -> pd.DataFrame:
    from lm_eval.api.registry import get_aggregation

    mean, perplexity, aggregations = get_aggregation("mean"), get_aggregation("perplexity"), definition.aggregation()
    rows = []
    for sample in samples:
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        for metric in sample["metrics"]:
            place = {"task": task, "doc_id": str(sample["doc_id"])}
            if aggregations[metric] is mean:
                rows.append(place | {"metric": metric + suffix, "value": float(sample[metric])})
            elif aggregations[metric] is perplexity:  # of log-probabilities, one a sample
                rows.append(place | {"metric": "loss" + suffix, "value": -float(sample[metric])})
    if not rows:
        raise InputError(f"task {name}: none of its metrics is a mean over samples; leave it out")
    return pd.DataFrame(rows, columns=["task", "metric", "doc_id", "value"])


@contextlib.contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    """Within, `load_dataset` leaves its copies in this folder, not in the user's cache."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within, all generators start from the seed; after, they go on where they were."""
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


class _Hearing(logging.Handler):
    """Keeps the first line of each message of lm-eval; further lines may show the sample."""

    def __init__(self, level: int):
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage().strip().split("\n")[0])

    def summary(self, name: str) -> list[str]:
        """No line or one about what was heard since the last call."""
        lines, self.lines = self.lines, []
        return [f"task {name}: lm-eval warns ({len(lines)} times in all): {lines[0]}"] if lines else []


@contextlib.contextmanager
def _quiet() -> Iterator[_Hearing]:
    """Hold back what lm-eval and the libraries below it log, print and draw; gives what listens to lm-eval's errors."""
    heard = _Hearing(logging.ERROR)
    own = logging.getLogger("lm_eval")
    before = {logger: (logger.level, logger.propagate) for logger in map(logging.getLogger, _TALKATIVE)}
    try:
        for logger in before:
            logger.setLevel(logging.CRITICAL)
        own.setLevel(logging.WARNING)
        own.propagate = False
        own.addHandler(heard)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield heard
    finally:
        own.removeHandler(heard)
        for logger, (level, propagate) in before.items():
            logger.setLevel(level)
            logger.propagate = propagate


def _reason(error: Exception) -> str:
    """The type and the words of the error at the root of it, in one line."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
