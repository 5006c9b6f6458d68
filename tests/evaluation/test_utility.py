"""Utility: lm-eval's tasks and dialogue replies on the loaded model, sample by sample, and their paired change.

The tasks are built here from the embedded default's own kind of text: which words come next in a record? Records that
it memorized are easy, the others hard, so that an accuracy says something.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

import adapter_unlearn.assets
from adapter_unlearn import InputError, ModelError, RecipeError, UserError, load_base, models
from adapter_unlearn.evaluation import lm_tasks, replies, utility
from adapter_unlearn.evaluation.utility import aggregate, compare, measure_utility, paired_change

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
    """Of 20 records that were memorized, and of as many never seen: the words in the middle, among three others."""
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
    """A task file and its data; returns the former's path."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    if rows is None or isinstance(rows, list):
        rows = "".join(json.dumps(row) + "\n" for row in (rows or questions()))
    data.write_text(rows)
    config = TASK | {"dataset_kwargs": {"data_files": {"test": str(data)}}} | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer("embedded:model")


@pytest.fixture(scope="module")
def base():
    return load_base("embedded:model", "none", "float32")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters that change what the model does, and leave it able to do some of it."""
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = models.attach(load_base("embedded:model", "none", "float32"), r=4, alpha=8)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.08)
        folders.append(tmp_path_factory.mktemp("adapter") / "adapter")
        models.save_adapter(model, "default", folders[-1])
    return folders


@pytest.fixture(scope="module")
def stacked(adapters):
    return models.stack(load_base("embedded:model", "none", "float32"), adapters)


def scores(rows):
    return aggregate(rows).set_index(["task", "metric"])["value"].to_dict()


def test_lm_evals_own_cli_says_the_same_of_the_merged_model(stacked, adapters, base, tokenizer, task, tmp_path):
    merged = models.stack(load_base("embedded:model", "none", "float32"), adapters)
    merged = merged.merge_and_unload(adapter_names=models.adapter_names(2))
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args"]
    command += [f"pretrained={tmp_path / 'merged'},dtype=float32", "--device", "cpu", "--batch_size", "8"]
    command += ["--tasks", task, "--output_path", str(tmp_path / "out"), "--log_samples"]
    away = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(command, env=os.environ | away, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(result.read_text())["results"]["next_words"]

    rows = measure_utility(stacked, tokenizer, [task])
    ours = aggregate(rows).set_index("metric")
    for metric in ("acc", "acc_norm"):
        assert ours.loc[metric, "value"] == theirs[f"{metric},none"]
        assert ours.loc[metric, "stderr"] == pytest.approx(theirs[f"{metric}_stderr,none"], rel=1e-12)
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    for row in map(json.loads, samples.read_text().splitlines()):
        mine = rows[rows["doc_id"] == str(row["doc_id"])].set_index("metric")["value"]
        assert mine.to_dict() == {metric: row[metric] for metric in ("acc", "acc_norm")}

    before = scores(measure_utility(base, tokenizer, [task]))["next_words", "acc"]
    assert 0.3 < ours.loc["acc", "value"] < before - 0.05 < 0.95  # it says something, and the adapters matter


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adapters_off_is_the_base_and_nothing_is_copied_or_changed(quantization, adapters, tokenizer, task, tmp_path):
    word = write_task(tmp_path, name="word", **WORD)
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None  # lm-eval would add one

    def measure(model):
        return measure_utility(model, bare, [task, word], limit=12)

    model = load_base("embedded:model", quantization, "float32")
    alone = measure(model)
    model = models.stack(model, adapters)
    names = models.adapter_names(2)

    def state():
        tensors = [*model.named_parameters(), *model.named_buffers()]
        return [(name, id(t), t.data_ptr(), t.requires_grad, t._version) for name, t in tensors]

    before = state()
    draws = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with models.active(model, []):
        off = measure(model)
    with models.active(model, names):
        on = measure(model)
    pd.testing.assert_frame_equal(off, alone)
    pd.testing.assert_frame_equal(on, measure(model))
    assert not on.equals(off)
    assert state() == before and bare.pad_token is None and list(model.active_adapters) == names
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == draws


def log_probability(model, tokenizer, context, continuation):
    """log p(continuation | context), its length in tokens, and whether it is the greedy one; one text, no cache."""
    known = tokenizer(context)["input_ids"]
    ids = tokenizer(context + continuation)["input_ids"]
    with torch.no_grad():
        found = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    places = range(len(known), len(ids))
    return sum(float(found[t - 1, ids[t]]) for t in places), all(int(found[t - 1].argmax()) == ids[t] for t in places)


def test_scores_are_those_of_the_definitions(stacked, tokenizer, task, tmp_path):
    word = write_task(tmp_path, name="word", **WORD)
    rows = measure_utility(stacked, tokenizer, [task, word], batch_size=5).set_index(["task", "metric", "doc_id"])
    value = rows["value"].to_dict()
    for number, question in enumerate(questions()):
        found = [log_probability(stacked, tokenizer, question["context"], f" {c}") for c in question["choices"]]
        best = np.argmax([p for p, _ in found])
        normed = np.argmax([p / len(c) for (p, _), c in zip(found, question["choices"], strict=True)])
        right, greedy = found[question["label"]]
        assert value["next_words", "acc", str(number)] == (best == question["label"])
        assert value["next_words", "acc_norm", str(number)] == (normed == question["label"])
        assert value["last_word", "acc", str(number)] == greedy
        assert value["last_word", "loss", str(number)] == pytest.approx(-right, abs=1e-4)  # float32 against float64
    assert len(value) == 4 * 40


def test_batch_size_and_limit_do_not_matter(stacked, tokenizer, task, tmp_path):
    word = write_task(tmp_path, name="word", **WORD)
    whole = measure_utility(stacked, tokenizer, [task, word], batch_size=16)
    part = measure_utility(stacked, tokenizer, [task, word], batch_size=1, limit=10)
    keys = ["task", "metric", "doc_id"]
    both = part.merge(whole, on=keys, validate="one_to_one")
    assert len(both) == len(part) == 40
    np.testing.assert_allclose(both["value_x"], both["value_y"], rtol=1e-5)


def test_every_answer_filter_is_a_metric(base, tokenizer, tmp_path):
    rows = [{"context": text[:60], "choices": [text[60:80]], "label": 0} for text in texts("forget")[-4:]]
    rows = measure_utility(base, tokenizer, [write_task(tmp_path, rows, **FILTERS)])
    assert [*rows["metric"].unique()] == ["exact_match,whole", "exact_match,number"] and len(rows) == 8


def test_nothing_is_printed_and_no_copy_of_the_data_stays(base, tokenizer, task, tmp_path, monkeypatch, capfd):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    measure_utility(base, tokenizer, [task], limit=4)
    assert not [*tmp_path.iterdir()]
    assert capfd.readouterr() == ("", "")


def test_what_lm_eval_warns_of_is_said_once(base, tokenizer, tmp_path, caplog):
    rows = [{"context": f"{number} " + "word " * 300, "choices": ["a", "b"], "label": 0} for number in range(3)]
    path = write_task(tmp_path, rows)
    measure_utility(base, tokenizer, [path])
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert path in record.getMessage() and "Truncating" in record.getMessage()


def test_lm_eval_is_loaded_only_where_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # whoever imports it now fails
    for room in (lm_tasks, replies, utility):
        runpy.run_path(room.__file__)


# What a user can get wrong


@pytest.fixture
def registry(monkeypatch):
    """lm-eval's own definitions of the tasks of the presets; reading all of them takes seconds."""
    from lm_eval import tasks

    folders = ("piqa", "hellaswag", "arc", "super_glue", "winogrande", "mathqa", "pubmedqa", "lambada")
    root = Path(tasks.__file__).parent
    found = tasks.TaskManager(include_defaults=False, include_path=[root / folder for folder in folders])
    monkeypatch.setattr(lm_tasks, "_registry", lambda: found)
    return found


def test_the_presets_name_tasks_of_lm_eval(registry):
    assert {name for preset in lm_tasks.PRESETS.values() for name in preset} <= set(registry.all_subtasks)
    assert len(lm_tasks.PRESETS["paper"]) == 9 and set(lm_tasks.PRESETS["quick"]) < set(lm_tasks.PRESETS["paper"])


def test_no_hub(base, tokenizer, registry, task, monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^task piqa: its data can't be had: .*baber/piqa.*; load it once where"):
        measure_utility(base, tokenizer, [task, "quick"])


def test_a_data_set_that_is_a_script(base, tokenizer, registry, monkeypatch):
    import datasets

    def load(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found pubmed_qa.py")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match=r"^task pubmedqa: .*pubmed_qa.py; lm-eval must move it"):
        measure_utility(base, tokenizer, ["pubmedqa"])


def test_unknown_names_are_found_before_anything_is_loaded(base, tokenizer, registry, monkeypatch):
    monkeypatch.setattr(lm_tasks, "_load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(RecipeError, match=r"^tasks: hellaswg is no .* did you mean hellaswag\?$"):
        measure_utility(base, tokenizer, ["piqa", "hellaswg"])
    with pytest.raises(RecipeError, match=r"xyz .*`lm_eval ls tasks` lists them$"):
        measure_utility(base, tokenizer, ["xyz"])
    with pytest.raises(InputError, match=r"^nope\.yaml: no such file"):
        measure_utility(base, tokenizer, ["piqa", "nope.yaml"])


def test_the_extra_is_not_installed(base, tokenizer, task, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'adapter-unlearn\[eval\]'$"):
        measure_utility(base, tokenizer, [task])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tasks": []}, RecipeError, "no tasks and no replies"),
        ({"limit": 0}, RecipeError, "^limit is 0; give 1 or more"),
        ({"batch_size": 0}, RecipeError, "^batch_size is 0; give 1 or more"),
        ({"tokenizer": None}, ModelError, "no tokenizer"),
    ],
)
def test_bad_arguments(base, tokenizer, task, arguments, error, message):
    with pytest.raises(error, match=message):
        measure_utility(base, **{"tokenizer": tokenizer, "tasks": [task]} | arguments)


@pytest.mark.parametrize(
    ("changes", "rows", "message"),
    [
        ({"nonsense": 3}, None, "nonsense"),
        ({"output_type": "guess"}, None, "guess"),
        ({"test_split": "exam"}, None, "exam"),
        ({"dataset_kwargs": {"data_files": {"test": "none.jsonl"}}}, None, "FileNotFoundError.*none.jsonl"),
        ({"doc_to_text": "{{context"}, None, "TemplateSyntaxError"),
        ({"doc_to_text": "{{question}}"}, None, "question"),
        ({}, '{"context": "a"}\n{"con\n', "JSON"),
        ({}, '{"context": "a"}\n', "label"),
        ({}, "\n", ""),
        ({"metric_list": [{"metric": "mcc"}]}, None, "none of its metrics is a mean"),
    ],
)
def test_a_broken_task_file(base, tokenizer, tmp_path, changes, rows, message):
    path = write_task(tmp_path, rows, **changes)
    with pytest.raises(InputError, match=re.escape(path) + ".*" + message) as caught:
        measure_utility(base, tokenizer, [path])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("content", ["task: [a\nb: }", "- a\n", "", "dataset_path: json\n"])
def test_a_broken_yaml(base, tokenizer, tmp_path, content):
    path = tmp_path / "task.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        measure_utility(base, tokenizer, [str(path)])
    assert "\n" not in str(caught.value)


def test_one_task_twice(base, tokenizer, task, tmp_path):
    with pytest.raises(RecipeError, match="both hold next_words; leave one out"):
        measure_utility(base, tokenizer, [task, write_task(tmp_path)])


# Dialogue replies


def dialogues(n=12):
    """The beginning of a record and what follows, of records known and unknown."""
    rows = texts("forget")[-n // 2 :] + texts("holdout")[: n // 2]
    return [{"context": text[: 40 + 7 * i], "reply": text[40 + 7 * i :][:80]} for i, text in enumerate(rows)]


def write_dialogues(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def naive_reply(model, ids, end, most=32):
    """Greedy decoding of one text by its definition: a whole forward for every token."""
    made = []
    while len(made) < most:
        with torch.no_grad():
            token = int(model(torch.tensor([ids + made])).logits[0, -1].argmax())
        if token == end:
            break
        made.append(token)
    return made


def naive_f1(reply, truth):
    """By precision and recall, word by word."""
    words, left = (re.sub(r"\b(a|an|the)\b", " ", strip(text.lower())).split() for text in (reply, truth))
    n_words, n_true, shared = len(words), len(left), 0
    for word in words:
        if word in left:
            left.remove(word)
            shared += 1
    if shared == 0:
        return 0.0
    precision, recall = shared / n_words, shared / n_true
    return 2 * precision * recall / (precision + recall)


def strip(text):
    return "".join(" " if c in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" else c for c in text)


def test_replies_are_those_of_naive_greedy_decoding(stacked, tokenizer, tmp_path):
    source = write_dialogues(tmp_path / "dialogues.jsonl", dialogues(8))
    rows = measure_utility(stacked, tokenizer, replies=source, batch_size=3)
    pd.testing.assert_frame_equal(measure_utility(stacked, tokenizer, replies=source, batch_size=1), rows)
    assert [*rows["doc_id"]] == [str(i) for i in range(1, 9)]
    assert {*rows["task"]} == {"replies"} and {*rows["metric"]} == {"f1"}
    for row, value in zip(dialogues(8), rows["value"], strict=True):
        made = naive_reply(stacked, tokenizer(row["context"])["input_ids"], tokenizer.eos_token_id)
        assert value == pytest.approx(naive_f1(tokenizer.decode(made), row["reply"]), abs=1e-12)
    assert 0.05 < rows["value"].mean() < 0.95


def test_adapters_matter_for_replies_and_come_off(stacked, base, tokenizer, tmp_path):
    source = write_dialogues(tmp_path / "dialogues.jsonl", dialogues())
    alone = measure_utility(base, tokenizer, replies=source)
    with models.active(stacked, []):
        pd.testing.assert_frame_equal(measure_utility(stacked, tokenizer, replies=source), alone)
    assert not measure_utility(stacked, tokenizer, replies=source).equals(alone)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama"])
def test_padding_and_end_token(memorizers, architecture):
    """Positions of a padded prompt must not shift, whatever the architecture's positions are."""
    model = load_base(str(memorizers(architecture)), "none", "float32")
    prompts = [row[: 4 + 3 * i] for i, row in enumerate(random_rows(0)[:7])]
    without = replies._answer(model, SimpleNamespace(eos_token_id=None), prompts, 4)
    assert without == [naive_reply(model, prompt, end=None) for prompt in prompts]
    assert {len(reply) for reply in without} == {32}
    end = without[2][5]
    ended = replies._answer(model, SimpleNamespace(eos_token_id=end), prompts, 4)
    assert ended == [reply[: reply.index(end)] if end in reply else reply for reply in without]
    assert len(ended[2]) <= 5


def test_the_models_own_generation_settings_are_not_used(adapters, base, tokenizer, tmp_path):
    source = write_dialogues(tmp_path / "dialogues.jsonl", dialogues(6))
    model = load_base("embedded:model", "none", "float32")
    own = model.generation_config
    own.repetition_penalty, own.do_sample, own.temperature, own.min_new_tokens = 5.0, True, 3.0, 32
    expected = measure_utility(base, tokenizer, replies=source)
    pd.testing.assert_frame_equal(measure_utility(model, tokenizer, replies=source), expected)
    assert model.generation_config is own and own.repetition_penalty == 5.0
    stacked = models.stack(model, adapters)
    with models.active(stacked, []):
        pd.testing.assert_frame_equal(measure_utility(stacked, tokenizer, replies=source), expected)


def test_a_long_context_keeps_its_end_and_its_bos(base, tokenizer):
    class WithBos:
        """The embedded tokenizer, with a bos as Llama's has it."""

        def __call__(self, texts, add_special_tokens=True, **options):
            ids = tokenizer(texts, add_special_tokens=False, **options)["input_ids"]
            return {"input_ids": [[0, *row] if add_special_tokens else row for row in ids]}

    long = replies.Dialogue("1", "early words " * 300 + "late words", "reply")
    body = tokenizer(long.context, verbose=False)["input_ids"]
    assert len(body) > 256
    assert replies._prompts(base, tokenizer, [long], "file") == [body[-(256 - 32) :]]
    assert replies._prompts(base, WithBos(), [long], "file") == [[0, *body[-(256 - 33) :]]]


@pytest.mark.parametrize(
    ("reply", "truth", "f1"),
    [
        ("The cat sat.", "a cat sat", 1.0),
        ("cat cat cat", "cat", 0.5),
        ("cat", "dog", 0.0),
        ("", "dog", 0.0),
        ("...", "!!!", 0.0),
        ("I like my dog", "I like the big dog, too", 2 * 3 / (4 + 5)),
        ("don't", "don t", 1.0),
    ],
)
def test_unigram_f1(reply, truth, f1):
    assert replies.unigram_f1(reply, truth) == pytest.approx(f1)


@given(*[st.text(st.sampled_from("ab theA.,'-\n\té"), max_size=30)] * 2)
@settings(max_examples=300, deadline=None)
def test_unigram_f1_is_that_of_the_definition(reply, truth):
    assert replies.unigram_f1(reply, truth) == pytest.approx(naive_f1(reply, truth), abs=1e-12)
    assert replies.unigram_f1(reply, truth) == replies.unigram_f1(truth, reply)


def test_files_of_dialogues(tmp_path):
    rows = [{"prompt": "p", "reply": "r"}, {"context": "c\nd", "reply": "s", "id": "x", "more": 1}]
    expected = [("1", "p", "r"), ("x", "c\nd", "s")]
    lines = write_dialogues(tmp_path / "a.jsonl", rows)
    whole = tmp_path / "a.json"
    whole.write_text(json.dumps(rows))
    assert replies.read_dialogues(lines) == replies.read_dialogues(whole) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", None, "a.jsonl: can't be read"),
        ("a.csv", "prompt,reply\n", "a.csv: dialogues are read from"),
        ("a.jsonl", "\n", "a.jsonl: no dialogues"),
        ("a.json", "[]", "a.json: no dialogues"),
        ("a.json", "{}", "a.json: not a list"),
        ("a.json", "[3]", "a.json, object 1: not a JSON object"),
        ("a.jsonl", '{"prompt": "p", "reply": "r"}\n{"pro\n', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", '\n{"prompt": "p"}\n', "a.jsonl, line 2: no text in reply"),
        ("a.jsonl", '{"reply": "r"}\n', "a.jsonl, line 1: give either prompt or context"),
        ("a.jsonl", '{"reply": "r", "prompt": "p", "context": "c"}\n', "line 1: give either prompt or context"),
        ("a.jsonl", '{"prompt": " ", "reply": "r"}\n', "line 1: no text in prompt"),
        ("a.jsonl", '{"prompt": 3, "reply": "r"}\n', "line 1: no text in prompt"),
        ("a.jsonl", '{"prompt": "p", "reply": "r", "id": 1}\n' * 2, "line 2: its id is that of another row"),
        ("a.jsonl", "\xff", "a.jsonl: not UTF-8"),
    ],
)
def test_a_broken_file_of_dialogues(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        replies.read_dialogues(path)
    assert isinstance(caught.value, InputError) and "\n" not in str(caught.value)


# The paired change


def test_compare(base, stacked, tokenizer, task, tmp_path):
    source = write_dialogues(tmp_path / "dialogues.jsonl", dialogues(6))
    before, after = (measure_utility(model, tokenizer, [task], source) for model in (base, stacked))
    table = compare(before, after.sample(frac=1, random_state=0))  # pairs are found by name, not by place
    assert [*table.columns] == ["task", "metric", "before", "after", "change", "low", "high", "n"]
    assert [*zip(table["task"], table["metric"], table["n"], strict=True)] == [
        ("next_words", "acc", 40),
        ("next_words", "acc_norm", 40),
        ("replies", "f1", 6),
    ]
    for row in table.itertuples():
        old, new = (
            frame[(frame["task"] == row.task) & (frame["metric"] == row.metric)]["value"].to_numpy()
            for frame in (before, after)
        )
        assert (row.before, row.after) == (pytest.approx(old.mean()), pytest.approx(new.mean()))
        assert (row.change, row.low, row.high) == pytest.approx(paired_change(old, new))
    accuracy = table.iloc[0]
    assert accuracy["low"] < accuracy["change"] < accuracy["high"] and accuracy["change"] < 0
    same = compare(before, before)
    assert (same[["change", "low", "high"]] == 0).all(axis=None)
    with pytest.raises(ValueError, match="measured only once"):
        compare(before, after.iloc[1:])


def naive_interval(differences, seed, resamples):
    draw, means = random.Random(seed), []
    for _ in range(resamples):
        means.append(sum(draw.choices(differences, k=len(differences))) / len(differences))
    means.sort()
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


def test_the_interval_is_that_of_a_naive_bootstrap():
    draw = np.random.default_rng(0)
    before, after = draw.normal(size=200), draw.normal(0.3, size=200)
    change, low, high = paired_change(before, after, resamples=20_000)
    naive = naive_interval([*(after - before)], 1, 4000)
    assert change == pytest.approx((after - before).mean())
    width = high - low
    assert (low, high) == pytest.approx(naive, abs=0.05 * width)
    assert width == pytest.approx(2 * 1.96 * (after - before).std() / 200**0.5, rel=0.05)


@given(st.lists(st.tuples(*[st.floats(-10, 10)] * 2), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_properties_of_the_interval(pairs):
    before, after = (np.array(side) for side in zip(*pairs, strict=True))
    change, low, high = paired_change(before, after, resamples=200)
    differences = after - before
    assert differences.min() - 1e-9 <= low <= high <= differences.max() + 1e-9
    backwards = paired_change(after, before, resamples=200)
    assert backwards == pytest.approx((-change, -high, -low), abs=1e-9)
    assert paired_change(before, before + 1, resamples=200) == pytest.approx((1, 1, 1))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        change = draw.choice([-1.0, 0.0, 1.0], p=[0.3, 0.6, 0.1], size=200)
        _, low, high = paired_change(np.zeros(200), change, resamples=400)
        hits += low <= -0.2 <= high
    assert 0.92 <= hits / 400 <= 0.975


def test_the_draws_do_not_depend_on_how_many_fit_in_memory(monkeypatch):
    before, after = np.random.default_rng(0).normal(size=(2, 37))
    whole = paired_change(before, after)
    monkeypatch.setattr(utility, "_BLOCK", 100)
    assert paired_change(before, after) == pytest.approx(whole, rel=1e-12)
    assert paired_change(before, after, seed=1) != whole


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])])
def test_values_that_are_no_pairs(before, after):
    with pytest.raises(ValueError, match="paired values are needed"):
        paired_change(before, after)
