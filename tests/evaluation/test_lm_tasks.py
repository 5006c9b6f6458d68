"""lm-eval's tasks on the model in memory: lm-eval's own figures, no copies, and clear errors."""

from __future__ import annotations

import copy
import random
import re
import runpy
import sys
import traceback
import warnings
from pathlib import Path

import lm_eval
import numpy as np
import pandas as pd
import pytest
import torch
from utility_texts import FILTERS, WORD, questions, texts, write_task

from adapter_unlearn import InputError, RecipeError, load_base, models
from adapter_unlearn.evaluation import lm_tasks, replies, utility
from adapter_unlearn.evaluation.utility import aggregate, measure_utility


def test_lm_eval_itself_says_the_same_of_the_merged_model(stacked, adapters, base, tokenizer, task, tmp_path):
    merged = models.stack(load_base("embedded:model", "none", "float32"), adapters)
    merged = merged.merge_and_unload(adapter_names=models.adapter_names(2))
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    with warnings.catch_warnings(action="ignore"):  # of lm-eval's own code
        result = lm_eval.simple_evaluate(
            "hf",
            {"pretrained": str(tmp_path / "merged"), "dtype": "float32"},
            tasks=[task],
            batch_size=8,
            device="cpu",
            task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
        )
    theirs = result["results"]["next_words"]

    rows = measure_utility(stacked, tokenizer, [task])
    ours = {score.metric: score for score in aggregate(rows)}
    for metric in ("acc", "acc_norm"):
        assert ours[metric].value == theirs[f"{metric},none"]
        assert ours[metric].stderr == pytest.approx(theirs[f"{metric}_stderr,none"], rel=1e-12)
    for row in result["samples"]["next_words"]:
        mine = rows[rows["doc_id"] == str(row["doc_id"])].set_index("metric")["value"]
        assert mine.to_dict() == {metric: row[metric] for metric in ("acc", "acc_norm")}

    before = {score.metric: score.value for score in aggregate(measure_utility(base, tokenizer, [task]))}["acc"]
    assert 0.3 < ours["acc"].value < before - 0.05 < 0.95  # neither chance nor perfect, and the adapters matter


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
        result = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    places = range(len(known), len(ids))
    return sum(float(result[t - 1, ids[t]]) for t in places), all(int(result[t - 1].argmax()) == ids[t] for t in places)


def test_scores_are_those_of_the_definitions(stacked, tokenizer, task, tmp_path):
    word = write_task(tmp_path, name="word", **WORD)
    rows = measure_utility(stacked, tokenizer, [task, word], batch_size=5).set_index(["task", "metric", "doc_id"])
    value = rows["value"].to_dict()
    for number, question in enumerate(questions()):
        result = [log_probability(stacked, tokenizer, question["context"], f" {c}") for c in question["choices"]]
        best = np.argmax([p for p, _ in result])
        normed = np.argmax([p / len(c) for (p, _), c in zip(result, question["choices"], strict=True)])
        right, greedy = result[question["label"]]
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


def test_no_copy_of_the_data_is_there_while_a_task_runs(base, tokenizer, task, tmp_path, monkeypatch):
    """So a process that is killed leaves none."""
    run, seen = lm_tasks._run, []

    def look(lm, name, task, definition, limit):
        seen.append(([*tmp_path.iterdir()], [split.cache_files for split in definition.dataset.values()]))
        return run(lm, name, task, definition, limit)

    monkeypatch.setattr(lm_tasks, "_run", look)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / ".adapter-unlearn.abc_1234.temporary").mkdir()  # of a process that was killed
    measure_utility(base, tokenizer, [task], limit=1)
    assert [left for left, _ in seen] == [[]] and not any(files for _, several in seen for files in several)


def test_what_lm_eval_warns_of_is_said_once(base, tokenizer, tmp_path, caplog):
    rows = [{"context": f"{number} " + "word " * 300, "choices": ["a", "b"], "label": 0} for number in range(3)]
    path = write_task(tmp_path, rows)
    measure_utility(base, tokenizer, [path])
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert path in record.getMessage() and "Truncating" in record.getMessage()


def test_lm_eval_is_loaded_only_where_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # whoever imports it now fails
    for module in (lm_tasks, replies, utility):
        runpy.run_path(module.__file__)


@pytest.fixture
def registry(monkeypatch):
    """lm-eval's own definitions of the tasks of the presets; reading all of them takes seconds."""
    from lm_eval import tasks

    folders = ("piqa", "hellaswag", "arc", "super_glue", "winogrande", "mathqa", "pubmedqa", "lambada")
    root = Path(tasks.__file__).parent
    result = tasks.TaskManager(include_defaults=False, include_path=[root / folder for folder in folders])
    monkeypatch.setattr(lm_tasks, "_registry", lambda: result)
    return result


def test_the_presets_name_tasks_of_lm_eval(registry):
    assert {name for preset in lm_tasks.PRESETS.values() for name in preset} <= set(registry.all_subtasks)
    assert len(lm_tasks.PRESETS["paper"]) == 9 and set(lm_tasks.PRESETS["quick"]) < set(lm_tasks.PRESETS["paper"])


def test_no_hub(base, tokenizer, registry, task, monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^task piqa: its .*baber/piqa.*task file"):
        measure_utility(base, tokenizer, [task, "quick"])


def test_a_data_set_that_is_a_script(base, tokenizer, registry, monkeypatch):
    import datasets

    def load(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found pubmed_qa.py")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match=r"^task pubmedqa: .*pubmed_qa.py; leave it out"):
        measure_utility(base, tokenizer, ["pubmedqa"])


def test_unknown_names_are_found_before_anything_is_loaded(base, tokenizer, registry, monkeypatch):
    monkeypatch.setattr(lm_tasks, "_load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(RecipeError, match=r"^tasks: hellaswg is no .* did you mean hellaswag\?$"):
        measure_utility(base, tokenizer, ["piqa", "hellaswg"])
    with pytest.raises(RecipeError, match=r"xyz .*`lm_eval ls tasks` lists the tasks$"):
        measure_utility(base, tokenizer, ["xyz"])
    with pytest.raises(InputError, match=r"^nope\.yaml: no such file"):
        measure_utility(base, tokenizer, ["piqa", "nope.yaml"])


def test_the_extra_is_not_installed(base, tokenizer, task, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'adapter-unlearn\[eval\]'$"):
        measure_utility(base, tokenizer, [task])


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


@pytest.mark.parametrize(
    "template",
    [
        "{{ {'a': 1}[context].b }}",
        "{{ context | int(default=none) + 1 }}",
        "{{ range(context) }}",
        "{{ context.nope() }}",
    ],
    ids=["key", "number", "type", "attribute"],
)
def test_no_row_is_quoted(base, tokenizer, tmp_path, template):
    rows = [{"context": 'Zaphod\'s "number" is 4242', "choices": ["a", "b"], "label": 0}]
    path = write_task(tmp_path, rows, doc_to_text=template)
    with pytest.raises(InputError, match=re.escape(path)) as caught:
        measure_utility(base, tokenizer, [path])
    assert not re.search("Zaphod|4242", "".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize("content", ["task: [a\nb: }", "- a\n", "", "dataset_path: json\n"])
def test_a_broken_yaml(base, tokenizer, tmp_path, content):
    path = tmp_path / "task.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        measure_utility(base, tokenizer, [str(path)])
    assert "\n" not in str(caught.value)


def test_one_task_twice(base, tokenizer, task, tmp_path):
    with pytest.raises(RecipeError, match="both contain next_words"):
        measure_utility(base, tokenizer, [task, write_task(tmp_path)])
