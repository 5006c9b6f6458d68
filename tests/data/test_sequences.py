"""Tokens and windows of sequences: only the leading bos is added, and windows lose nothing."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import transformers
from data_helpers import BOS, EOS, SECRET, TEXTS, build, raised, write
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_unlearn.data import load_sequences

# --- tokens -----------------------------------------------------------------------------------------------------------


def test_only_the_leading_bos_is_added(plain, marking):
    assert marking(SECRET).input_ids[-1] == EOS and marking("").input_ids == [BOS, EOS]
    bare = load_sequences([SECRET], plain)[0]["input_ids"]
    assert load_sequences([SECRET], marking)[0]["input_ids"] == [BOS, *bare] and BOS not in bare


def test_an_eos_that_equals_the_bos_is_no_bos(plain):
    tokenizer = build("$A </s>", bos_token="</s>", eos_token="</s>")
    assert tokenizer("").input_ids == [EOS]
    assert load_sequences([SECRET], tokenizer)["input_ids"] == load_sequences([SECRET], plain)["input_ids"]


def test_a_bos_that_is_there_already_is_not_doubled(marking):
    expected = load_sequences([SECRET], marking)["input_ids"]
    assert load_sequences(["<s>" + SECRET], marking)["input_ids"] == expected
    assert load_sequences([{"input_ids": expected[0]}], marking)["input_ids"] == expected


def test_token_ids_get_no_bos(marking):
    assert load_sequences([{"input_ids": [5, 6, 7]}], marking)["input_ids"] == [[5, 6, 7]]


def test_many_texts_are_tokenized_as_one_by_one(plain):
    texts = [f"text number {i} of the set" for i in range(2500)]
    sequences = load_sequences(texts, plain)
    assert sequences["input_ids"][::500] == [plain(text).input_ids for text in texts[::500]]


def test_a_text_longer_than_the_tokenizers_maximum_says_nothing(caplog):
    tokenizer = build(bos_token="<s>")  # a new one, because it would say it once
    verbosity = transformers.logging.get_verbosity()  # the command line, in another test, may have turned it down
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_propagation()
    load_sequences(["the number " * 100], tokenizer)
    assert tokenizer.model_max_length == 16 and not caplog.records
    tokenizer("the number " * 100)
    transformers.logging.disable_propagation()
    transformers.logging.set_verbosity(verbosity)
    assert caplog.records, "the test would notice"


@pytest.mark.parametrize("name", ["plain", "marking"])
def test_only_the_completion_counts(request, name):
    tokenizer = request.getfixturevalue(name)
    lead = [BOS] if name == "marking" else []
    row = load_sequences([{"prompt": "The number of Zaphod is", "completion": " 4242", "id": "z"}], tokenizer)[0]
    prompt = lead + tokenizer("The number of Zaphod is", add_special_tokens=False).input_ids
    assert row["input_ids"] == prompt + tokenizer(" 4242", add_special_tokens=False).input_ids
    assert row["prefix_tokens"] == row["scored_from"] == len(prompt)
    assert row["id"] == "z"


@pytest.mark.parametrize("name", ["plain", "marking"])
def test_zlib_bytes_are_those_of_the_text_that_counts(request, name):
    tokenizer = request.getfixturevalue(name)
    assert list(load_sequences(TEXTS, tokenizer)["zlib_bytes"]) == [len(zlib.compress(t.encode())) for t in TEXTS]
    asked = load_sequences([{"prompt": "The number of Zaphod is", "completion": " 4242"}], tokenizer)
    assert list(asked["zlib_bytes"]) == [len(zlib.compress(b" 4242"))]
    simple, *_, last = load_sequences(["a" * 40 + "q7#xM!z0"], tokenizer, max_tokens=10, stride=10)["zlib_bytes"]
    assert simple < last, "of its own window each"
    assert load_sequences([{"input_ids": [3, 4]}])["zlib_bytes"][0] is None


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_of_the_defaults():
    sequences = load_sequences([{"id": "a", "input_ids": list(range(420))}, {"id": "b", "input_ids": list(range(200))}])
    assert sequences["id"] == ["a#1", "a#2", "a#3", "b"] and sequences["document"] == ["a", "a", "a", "b"]
    assert [(ids[0], ids[-1]) for ids in sequences["input_ids"]] == [(0, 199), (150, 349), (220, 419), (0, 199)]
    assert set(sequences["prefix_tokens"]) == {50}


lengths = st.integers(2, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size)))


@settings(max_examples=80, deadline=None)
@given(total=st.integers(1, 300), lengths=lengths, prefix=st.integers(1, 60), with_bos=st.booleans())
def test_windows_cover_every_token_as_slices(marking, total, lengths, prefix, with_bos):
    max_tokens, stride = lengths
    body = list(range(2, total + 2))
    lead = [BOS] if with_bos else []
    sequences = load_sequences(
        [{"input_ids": lead + body}], marking, max_tokens=max_tokens, stride=stride, prefix_tokens=prefix
    )
    windows = sequences["input_ids"]
    if total + len(lead) <= max_tokens:
        assert list(windows) == [lead + body] and sequences["id"] == ["1"]
        return
    assert sequences["id"] == [f"1#{k}" for k in range(1, len(windows) + 1)]
    assert set(sequences["document"]) == {"1"}
    starts = []
    for ids, effective in zip(windows, sequences["prefix_tokens"], strict=True):
        assert len(ids) == max_tokens and ids[: len(lead)] == lead
        inner = ids[len(lead) :]
        starts.append(inner[0] - 2)
        assert inner == body[starts[-1] : starts[-1] + len(inner)]
        assert effective == min(prefix, max_tokens // 2)
    size = max_tokens - len(lead)
    steps = np.diff(starts)
    assert starts[0] == 0 and starts[-1] == total - size, "the first begins, the last ends with the text"
    assert all(steps[:-1] == min(stride, size)) and 0 < steps[-1] <= min(stride, size)


@settings(max_examples=80, deadline=None)
@given(prompt=st.integers(1, 90), rest=st.integers(1, 90), lengths=lengths, name=st.sampled_from(["plain", "marking"]))
def test_prompt_tokens_never_count_and_completion_tokens_always_appear(request, prompt, rest, lengths, name):
    max_tokens, stride = lengths
    tokenizer = request.getfixturevalue(name)
    lead = [BOS] if name == "marking" else []
    row = {"prompt": "\u0001" * prompt, "completion": "\u0002" * rest}  # a token a character, in no merge
    (asked,) = set(tokenizer(row["prompt"], add_special_tokens=False).input_ids)
    (told,) = set(tokenizer(row["completion"], add_special_tokens=False).input_ids)
    sequences = load_sequences([row], tokenizer, max_tokens=max_tokens, stride=stride, prefix_tokens=5)
    total = 0
    for k, sequence in enumerate(sequences):
        ids, start, prefix = (sequence[key] for key in ("input_ids", "scored_from", "prefix_tokens"))
        prompted = ids.count(asked)
        assert ids == lead + [asked] * prompted + [told] * ids.count(told) and len(ids) <= max_tokens
        assert told in ids, "a window of the prompt alone measures nothing"
        assert start == max(1, (len(lead) + prompted) if prompted else 1)
        short = min(5, len(ids) // 2)
        if prompted:
            assert prefix == (len(lead) + prompted if k == 0 else max(len(lead) + prompted, short))
        else:
            assert prefix == short
        total += ids.count(told)
    assert total >= rest
    first = sequences[0]["input_ids"].count(asked)
    fits = prompt + len(lead) < max_tokens
    assert first == (prompt if fits else max_tokens // 2 - len(lead))
    if prompt + rest + len(lead) <= max_tokens:
        assert len(sequences) == 1 and total == rest


def test_text_needs_a_tokenizer(tmp_path):
    assert "forget.txt, line 1: text needs a tokenizer" in raised(write(tmp_path / "forget.txt", TEXTS))


def test_a_tokenizer_of_another_model_is_noticed(plain):
    assert "give the model's own tokenizer" in raised([SECRET], plain, vocab_size=10)


@pytest.mark.parametrize(
    "options, key",
    [
        ({"max_tokens": 1}, "max_tokens"),
        ({"stride": 0}, "stride"),
        ({"prefix_tokens": 0}, "prefix_tokens"),
    ],
)
def test_lengths_out_of_range(options, key):
    assert raised([{"input_ids": [1, 2]}], **options).startswith(f"{key} is ")
