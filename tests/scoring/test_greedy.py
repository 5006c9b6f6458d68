"""Greedy continuations and the metrics computed from them, against the definitions written out."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from definitions import NAIVE, N, naive_el, naive_overlap
from helpers import CONFIGS, VOCABULARY, as_sequences, memorize, random_rows
from transformers import AutoModelForCausalLM, Gemma2Config, GPTNeoConfig, MambaConfig, MistralConfig

from adapter_unlearn import Adapter, load_base, load_sequences
from adapter_unlearn.metrics import GENERATED, generated
from adapter_unlearn.models import active, attach, load_tokenizer
from adapter_unlearn.scoring import greedy
from adapter_unlearn.scoring.scores import NOT_FINITE

EL = "extraction_likelihood"
NEAR_TIE = 1e-4
"""Logits nearer than this may change places by rounding, and all that follows with them."""

# ---- the definitions


def naive_continuations(model, row):
    """For every prefix length, the greedy continuation to the row's length, and the least gap of the two best logits.

    No cache, no reuse: at each step all prefixes are run from their first token.
    """
    length = len(row)
    tokens = torch.tensor(row).repeat(length - 1, 1)  # the prefix of line i has i + 1 tokens; the rest is overwritten
    gap = math.inf
    for step in range(length - 1):
        lines = torch.arange(length - 1 - step)
        with torch.no_grad():
            logits = model(input_ids=tokens[lines], use_cache=False).logits[lines, lines + step].float()
        best = logits.topk(2).values
        gap = min(gap, float((best[:, 0] - best[:, 1]).min()))
        tokens[lines, lines + step + 1] = logits.argmax(-1)
    return {t: tokens[t - 1, t:].tolist() for t in range(1, length)}, gap


def assert_as_defined(model, sequences, batch_size=7, define=None, **options):
    """EL and every single continuation equal the definition's, but for rows with a near tie; these are few.

    `define` gives a row's continuations where they are known already: they take most of the time.
    """
    measured = greedy.measure(model, sequences, [EL], batch_size, **options)
    every = lambda sequence: range(sequence["scored_from"], len(sequence["input_ids"]))  # noqa: E731
    found = dict(greedy.continuations(model, sequences, every, batch_size, **options))
    values, compared = [], 0
    for i, sequence in enumerate(sequences):
        row, first = sequence["input_ids"], sequence["scored_from"]
        expected, gap = define(tuple(row)) if define else naive_continuations(model, row)
        if gap < NEAR_TIE:
            continue
        compared += 1
        assert {t: found[i].after(t).tolist() for t in every(sequence)} == {t: expected[t] for t in every(sequence)}
        assert measured[i][EL] == pytest.approx(naive_el(row, expected, first), abs=1e-9)
        values.append(measured[i][EL])
    assert compared >= 0.8 * len(sequences), "too many near ties to have compared anything"
    return values


# ---- models that know some rows, among them repetitive ones


def repetitive(seed, length, period):
    return (random_rows(seed, (period,))[0] * length)[:length]


def rows_to_score():
    """Known by heart, half known, never seen, repetitive; and some whose last tokens were changed: late misses."""
    known = random_rows(0, (24, 32, 40, 28, 36))
    loop, stutter = repetitive(5, 36, 4), [7] * 30
    changed = [[*row[:-4], (row[-4] + 1) % VOCABULARY, *row[-3:]] for row in (known[0], loop, stutter)]
    return [*known, loop, stutter, *changed, *random_rows(1, (20, 33))]


def taught():
    return [*random_rows(0)[:2], repetitive(5, 36, 4), [7] * 30, *random_rows(0)[2:]]


LOCAL = GPTNeoConfig(
    vocab_size=VOCABULARY, hidden_size=64, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
    window_size=8, max_position_embeddings=128, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
SLIDING = MistralConfig(**SMALL, head_dim=32, sliding_window=8)
CAPPED = Gemma2Config(**SMALL, head_dim=32, sliding_window=8, final_logit_softcapping=8.0)
SHAPES = CONFIGS | {"gpt_neo": LOCAL}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}

    def folder(architecture):
        if architecture not in found:
            found[architecture] = str(tmp_path_factory.mktemp(architecture))
            memorize(SHAPES[architecture], taught(), steps=120).save_pretrained(found[architecture])
        return found[architecture]

    return folder


@pytest.fixture(scope="module")
def llama(folders):
    return load_base(folders("llama"), "none", "float32")


@pytest.fixture(scope="module")
def by_llama(llama):
    """A row's continuations by the Llama, each computed once."""
    return functools.cache(lambda row: naive_continuations(llama, list(row)))


@pytest.fixture(scope="module")
def sequences():
    return as_sequences(rows_to_score(), prefix_tokens=10)


@pytest.mark.parametrize(
    ("architecture", "quantization"), [*((architecture, "none") for architecture in SHAPES), ("llama", "nf4")]
)
def test_equals_the_definition(folders, sequences, architecture, quantization):
    model = load_base(folders(architecture), quantization, "float32")
    values = assert_as_defined(model, sequences)
    assert max(values) == 1 and min(values) < 0.05, "the model must know some rows by heart and some not"
    assert sum(0.1 < value < 0.99 for value in values) >= 2
    assert greedy._uses_cache(model)


@pytest.mark.parametrize("batch_size, cache_bytes", [(1, 2**30), (32, 2**30), (5, 1), (32, 7 * 40 * 2 * 2 * 32 * 4)])
def test_neither_batches_nor_memory_change_the_numbers(llama, by_llama, sequences, batch_size, cache_bytes):
    assert_as_defined(llama, sequences, batch_size, by_llama, cache_bytes=cache_bytes)


def late_misses(model, sequences):
    """Index -> n-gram overlap of the last prefix that is summed, where a miss behind it is reached through matches."""
    wanted = lambda s: generated.el_starts(len(s["input_ids"]), s["prefix_tokens"], s["scored_from"])  # noqa: E731
    shares = {}
    for i, found in greedy.continuations(model, sequences, wanted):
        late = [start for start in found.tails if start > len(found.tokens) - N]
        assert len(late) <= 1, "no continuation runs through a second miss"
        if late:
            last = len(found.tokens) - N
            shares[i] = naive_overlap(found.after(last).tolist(), list(sequences[i]["input_ids"][last:]))
    return shares


def test_late_misses_are_generated(llama, sequences):
    """From prefixes longer than T - n nothing is summed, but earlier continuations run through them."""
    assert sum(share < 1 for share in late_misses(llama, sequences).values()) >= 2


def test_adapters_act(folders, sequences):
    sequences = sequences.select([0, 4, 7, 11])
    base = load_base(folders("gpt2"), "nf4", "float32")
    by_base = functools.cache(lambda row: naive_continuations(base, list(row)))  # called before the adapter is there
    bare = assert_as_defined(base, sequences, define=by_base)
    torch.manual_seed(0)  # before attach, which draws lora_A
    model = attach(base, Adapter(r=4, alpha=64))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    assert assert_as_defined(model, sequences) != bare
    with active(model, []):
        assert assert_as_defined(model, sequences, define=by_base) == bare


@pytest.mark.parametrize("config", [SLIDING, CAPPED], ids=["sliding", "capped"])
def test_windows_shorter_than_the_text(sequences, config):
    model = memorize(config, taught(), steps=80)
    assert_as_defined(model, sequences.select([0, 5, 8, 10]))
    assert greedy._uses_cache(model), "the cache keeps what a window hides, so no fallback is needed"


def test_a_model_that_goes_wrong_from_a_cache_is_run_without(folders, sequences, monkeypatch):
    model = load_base(folders("llama"), "none", "float32")
    update = greedy._Layer.update

    def forgetful(self, key_states, value_states, *arguments, **options):
        keys, values = update(self, key_states, value_states, *arguments, **options)
        return keys, values.roll(1, dims=2)

    monkeypatch.setattr(greedy._Layer, "update", forgetful)
    assert_as_defined(model, sequences.select([0, 4, 5, 10]), batch_size=3)
    assert not greedy._uses_cache(model)


def test_a_model_with_another_memory_is_run_without_a_cache():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=1, state_size=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert_as_defined(model, as_sequences(random_rows(2, (12, 14, 12))))


def test_a_prompt_is_no_target(llama, by_llama):
    row = rows_to_score()[7]
    columns = {"id": ["a"], "document": ["a"], "input_ids": [row], "prefix_tokens": [9], "scored_from": [9]}
    values = assert_as_defined(llama, Dataset.from_dict(columns), define=by_llama)
    assert values != assert_as_defined(llama, as_sequences([row]), define=by_llama)


def test_the_end_token_is_a_token_like_any_other(folders, sequences):
    model = load_base(folders("llama"), "none", "float32")
    model.config.eos_token_id = model.generation_config.eos_token_id = 7  # row 6 is nothing but 7
    assert assert_as_defined(model, sequences.select([6])) == [1.0]


def test_only_misses_are_generated_from(llama, sequences):
    """The tokens fed: every row once, one row again to check, and T - 1 - t for each miss t that is needed."""
    fed = []
    handle = llama.get_input_embeddings().register_forward_hook(lambda _, given, __: fed.append(tuple(given[0].shape)))
    try:
        found = dict(greedy.continuations(llama, sequences, lambda s: range(1, len(s["input_ids"])), 32))
    finally:
        handle.remove()
    longest = max(map(len, sequences["input_ids"]))
    steps = [shape for shape in fed if shape[1] == 1]
    assert fed[0] == (len(sequences), longest) and len(steps) <= longest - 2 and len(fed) - len(steps) <= 2
    owed = sum(len(tail) - 1 for known in found.values() for tail in known.tails.values())
    assert sum(rows for rows, _ in steps) == owed
    misses = sum(np.count_nonzero(~known.hits) for known in found.values())
    assert sum(len(known.tails) for known in found.values()) == misses


def test_keys_and_values_keep_to_their_budget(llama, sequences, monkeypatch):
    sizes = []
    cache_like = greedy._cache_like

    def watched(shared, rows):
        cache = cache_like(shared, rows)
        sizes.append(sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values)))
        return cache

    monkeypatch.setattr(greedy, "_cache_like", watched)
    budget = 10 * 40 * 2 * 2 * 32 * 4  # 10 rows of 40 tokens, keys and values, 2 layers of one head of 32 float32
    greedy.measure(llama, sequences, [EL], cache_bytes=budget)
    assert len(sizes) > 3 and max(sizes) == budget


def test_measure(llama, by_llama):
    rows = rows_to_score()
    sequences = as_sequences([[5], [5, 6], *rows], prefix_tokens=10)
    found = greedy.measure(llama, sequences, list(GENERATED), batch_size=4)
    assert list(range(len(sequences))) == sorted(found) and all(list(row) == list(GENERATED) for row in found.values())
    assert found[0][EL] == "1 tokens, 11 needed" and found[0]["bleu"] == "nothing after the prefix"
    assert found[1][EL] == "2 tokens, 11 needed" and 0 <= found[1]["bleu"] <= 1
    for i, row in enumerate(rows, 2):
        start = sequences[i]["prefix_tokens"]
        written, gap = by_llama(tuple(row))
        if gap >= NEAR_TIE:
            expected = {name: naive(written[start], row[start:]) for name, naive in NAIVE.items()}
            assert {name: found[i][name] for name in NAIVE} == pytest.approx(expected)
    alone = greedy.measure(llama, sequences, ["rouge_l"], indices=[2, 9])
    assert alone == {i: {"rouge_l": pytest.approx(found[i]["rouge_l"])} for i in (2, 9)}


def test_the_embedded_default_equals_the_definitions():
    """Every measure, of real text: the first 22 to 28 tokens of records, five read 24 to 192 times and two never."""
    model = load_base("embedded:model", "nf4", "float32")
    tokenizer = load_tokenizer("embedded:model")
    known, unseen = (load_sequences(f"embedded:{name}.jsonl", tokenizer)["input_ids"] for name in ("forget", "holdout"))
    rows = [row[: 22 + i] for i, row in enumerate([*known[4::6], *unseen[:2]])]
    sequences = as_sequences(rows, prefix_tokens=10)
    by_definition = [naive_continuations(model, row) for row in rows]
    for batch_size in (1, 7):
        measured = greedy.measure(model, sequences, list(GENERATED), batch_size)
        for i, (row, (written, gap)) in enumerate(zip(rows, by_definition)):
            expected = {name: naive(written[10], row[10:]) for name, naive in NAIVE.items()}
            assert gap >= NEAR_TIE and measured[i] == pytest.approx({EL: naive_el(row, written), **expected}, abs=1e-9)
    values = [measured[i][EL] for i in range(len(rows))]
    assert max(values) > 0.9 and max(values[-2:]) < 0.1


def test_what_is_not_finite_is_no_number(folders, sequences):
    model = load_base(folders("llama"), "none", "float32").train()
    with torch.no_grad():
        model.get_input_embeddings().weight[rows_to_score()[0][-2]] = math.nan
    found = greedy.measure(model, sequences.select([0, 6]), [EL])
    assert found == {0: {EL: NOT_FINITE}, 1: {EL: 1.0}}
    assert model.training


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHAPES)
def test_48_long_sequences(architecture):
    """12 for each architecture: repetitive ones as taught, with late misses, and with an unknown second half."""
    known = [*random_rows(0, (128, 110)), *(repetitive(i, 110 + i, 3 + i) for i in (2, 5))]
    model = memorize(SHAPES[architecture], known, steps=200)
    changed = [[*row[:-4], (row[-4] + 1) % VOCABULARY, *row[-3:]] for row in known]
    half = [row[:60] + other[60:] for row, other in zip(known, random_rows(3, map(len, known)))]
    sequences = as_sequences([*known, *changed, *half])
    values = assert_as_defined(model, sequences, batch_size=16)
    late = late_misses(model, sequences)
    spread = f"from {min(values):.3f} to {max(values):.3f}"
    print(f"{architecture}: {len(values)} of {len(sequences)} compared, EL {spread}, late misses in {sorted(late)}")
    assert max(values) > 0.9 and min(values) < 0.5
    assert sum(i in late for i in range(4, 8)) >= 3, "changed three tokens before the end, they must err there"
    assert {2, 3, 6, 7} & late.keys(), "repetitive text must be among those with late misses"
