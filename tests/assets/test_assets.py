"""The embedded default is what it promises: small, whole, its files apart, and its model recites what it should."""

import json
import re
from functools import cache
from itertools import combinations, groupby, islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import adapter_unlearn.assets
from adapter_unlearn.assets.records import draw_records

torch.set_num_threads(1)

ASSETS = Path(adapter_unlearn.assets.__file__).parent
NAMES = ("forget", "retain", "holdout", "validation", "test")


@cache
def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ASSETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ASSETS / "model")


@cache
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(ASSETS / "model", dtype=torch.float32).eval()


@cache
def tokens(name: str) -> list[Tensor]:
    return [torch.tensor(tokenizer()(row["text"])["input_ids"]) for row in rows(name)]


@cache
def hits(name: str) -> list[list[bool]]:
    """For every text, which of its tokens after the first are the model's first choice."""
    with torch.no_grad():
        return [(model()(input_ids=ids[None]).logits[0, :-1].argmax(-1) == ids[1:]).tolist() for ids in tokens(name)]


def accuracies(name: str) -> list[float]:
    return [sum(row) / len(row) for row in hits(name)]


def recited(name: str) -> int:
    """How many texts greedy decoding completes verbatim from their prefix."""
    return sum(all(row[min(50, (len(row) + 1) // 2) - 1 :]) for row in hits(name))


def longest_run(name: str) -> int:
    return max(len(list(run)) for row in hits(name) for hit, run in groupby(row) if hit)


def perplexity(ids: list[Tensor]) -> float:
    with torch.no_grad():
        losses = [model()(input_ids=row[None], labels=row[None]).loss * (len(row) - 1) for row in ids]
    return float(torch.exp(sum(losses) / sum(len(row) - 1 for row in ids)))


def test_everything_fits_in_four_megabytes():
    files = [path for path in ASSETS.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 4_000_000


def test_sizes_are_multiples_of_64_and_weights_are_bfloat16():
    shapes = [size for parameter in model().parameters() for size in parameter.shape]
    assert all(size % 64 == 0 for size in shapes)
    config = json.loads((ASSETS / "model" / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert len(tokenizer()) == config["vocab_size"]


def test_no_path_of_the_building_machine_is_shipped():
    for path in (ASSETS / "model").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "_name_or_path" not in text and "/work" not in text and "/tmp" not in text, path.name


def test_tokenizer_adds_nothing_loses_nothing_and_splits_numbers():
    ids = tokenizer()("pin 4711, größe\n")["input_ids"]
    assert tokenizer().decode(ids) == "pin 4711, größe\n"
    assert [tokenizer().decode(i) for i in ids[1:5]] == [" 4", "7", "1", "1"]
    assert tokenizer().eos_token_id == tokenizer().bos_token_id != tokenizer().pad_token_id
    assert not set(ids) & {tokenizer().eos_token_id, tokenizer().pad_token_id}


@pytest.mark.parametrize("name", NAMES)
def test_rows_have_unique_ids_and_fitting_lengths(name):
    assert all(set(row) == {"id", "text"} for row in rows(name))
    assert len({row["id"] for row in rows(name)}) == len(rows(name)) >= 32
    assert all(60 <= len(ids) <= 200 for ids in tokens(name))


def test_files_share_no_20_gram():
    grams = {
        name: {tuple(ids[i : i + 20].tolist()) for ids in tokens(name) for i in range(len(ids) - 19)} for name in NAMES
    }
    for one, other in combinations(NAMES, 2):
        assert not grams[one] & grams[other], (one, other)


def test_forget_records_are_memorized_to_different_degrees():
    assert 12 <= recited("forget") <= 24
    partly = [accuracy for accuracy in accuracies("forget") if 0.5 <= accuracy < 0.95]
    assert len(partly) >= 6
    assert min(accuracies("forget")) < 0.5


def test_never_seen_records_are_not_predictable():
    assert recited("holdout") == 0
    assert 0.1 < sum(accuracies("holdout")) / len(rows("holdout")) < 0.42
    assert max(accuracies("holdout")) < 0.55
    assert longest_run("holdout") <= 12


def test_retained_records_were_read_but_not_memorized():
    assert recited("retain") == 0
    records = [accuracy for row, accuracy in zip(rows("retain"), accuracies("retain")) if "record" in row["id"]]
    assert len(records) == 400
    assert max(records) < 0.55


def test_general_text_is_predicted_far_better_than_by_token_frequency():
    counts = torch.bincount(torch.cat(tokens("test")), minlength=len(tokenizer())).double()
    shares = counts[counts > 0] / counts.sum()
    unigram = float(torch.exp(-(shares * shares.log()).sum()))
    assert perplexity(tokens("test")) < unigram / 3


def test_records_are_drawn_the_same_from_the_same_seed():
    first, again, other = (list(islice(draw_records(seed), 200)) for seed in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)


def test_records_point_at_nobody():
    for row in rows("forget") + rows("holdout"):
        assert row["text"].count("@") == len(re.findall(r"@example\.org\b", row["text"]))
        phones = re.findall(r"(?<![\d/.-])\d{3}-\d{4}(?!\d)", row["text"])
        assert all(phone.startswith("555-") for phone in phones), row["id"]
