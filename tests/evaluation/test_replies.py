"""Dialogue replies against naive greedy decoding, and the file of dialogues."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from helpers import random_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from utility_texts import dialogues, write_dialogues

from adapter_unlearn import InputError, UserError, load_base, models
from adapter_unlearn.evaluation import replies
from adapter_unlearn.evaluation.utility import measure_utility


def naive_reply(model, ids, end, most=32):
    """Greedy decoding of one text by its definition: a whole forward for every token."""
    tokens = []
    while len(tokens) < most:
        with torch.no_grad():
            token = int(model(torch.tensor([ids + tokens])).logits[0, -1].argmax())
        if token == end:
            break
        tokens.append(token)
    return tokens


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
        tokens = naive_reply(stacked, tokenizer(row["context"])["input_ids"], tokenizer.eos_token_id)
        assert value == pytest.approx(naive_f1(tokenizer.decode(tokens), row["reply"]), abs=1e-12)
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
        ("a.csv", "prompt,reply\n", "a.csv: not a .json or .jsonl file"),
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
        ("a.jsonl", '{"prompt": "p", "reply": "r", "id": 1}\n' * 2, "line 2: its id occurs twice"),
        ("a.jsonl", "\xff", "a.jsonl, line 1, byte 1: not UTF-8"),
    ],
)
def test_a_broken_file_of_dialogues(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        replies.read_dialogues(path)
    assert isinstance(caught.value, InputError) and "\n" not in str(caught.value)
