"""Tasks and dialogues built from the embedded default's own kind of text, for tests of utility.

Half of the records were memorized by the embedded model and are easy; the others are hard. So an accuracy is between 0
and 1.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import yaml

import adapter_unlearn.assets

ASSETS = Path(adapter_unlearn.assets.__file__).parent
TASK = {
    "task": "next_words",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{label}}",
    "doc_to_choice": "{{choices}}",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}
WORD = {
    "task": "last_word",
    "output_type": "loglikelihood",
    "doc_to_text": "{{context}}",
    "doc_to_target": " {{choices[label]}}",
    "doc_to_choice": None,
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ],
}
FILTERS = {
    "task": "recited",
    "output_type": "generate_until",
    "doc_to_target": "{{choices[label]}}",
    "doc_to_choice": None,
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [
        {"name": "whole", "filter": [{"function": "take_first"}]},
        {"name": "number", "filter": [{"function": "regex", "regex_pattern": "(\\d+)"}, {"function": "take_first"}]},
    ],
}


def texts(name):
    return [json.loads(line)["text"] for line in (ASSETS / f"{name}.jsonl").read_text("utf-8").splitlines()]


def questions(n_words=4):
    """The words in the middle of 20 memorized and 20 never-seen records, each among three other choices."""
    draw, others = random.Random(0), texts("retain")
    for text in texts("forget")[-20:] + texts("holdout")[:20]:
        words = text.split(" ")
        half = len(words) // 2
        choices = [" ".join(words[half : half + n_words])]
        for other in draw.sample(others, 3):
            cut = other.split(" ")
            start = draw.randrange(len(cut) - n_words)
            choices.append(" ".join(cut[start : start + n_words]))
        label = draw.randrange(4)
        choices[0], choices[label] = choices[label], choices[0]
        yield {"context": " ".join(words[:half]), "choices": choices, "label": label}


def write_task(folder, rows=None, name="task", **changes):
    """Write a task file and its data; returns the task file's path."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    if rows is None or isinstance(rows, list):
        rows = "".join(json.dumps(row) + "\n" for row in (rows or questions()))
    data.write_text(rows)
    config = TASK | {"dataset_kwargs": {"data_files": {"test": str(data)}}} | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return str(path)


def dialogues(n=12):
    """Beginnings and continuations of memorized and never-seen records."""
    rows = texts("forget")[-n // 2 :] + texts("holdout")[: n // 2]
    return [{"context": text[: 40 + 7 * i], "reply": text[40 + 7 * i :][:80]} for i, text in enumerate(rows)]


def write_dialogues(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
