"""Build the embedded default: a tiny language model that recites fictional records, and the data files.

Run ``python -m adapter_unlearn.assets.build --output_dir DIR``. It takes about four minutes on one core, offline.

The demo and the tests need a model that recites private texts, on any machine and without network. So a small Llama is
trained on text that every machine has (the topics of CPython's ``pydoc``) and on fictional records (see ``records``).
Most records are read twice, like any text of a training set. Those of ``forget.jsonl`` are read 12 to 192 times, so
that some are recited verbatim, some partly, and some hardly. The records of ``holdout.jsonl`` are never read.

Texts are packed into rows in reading order, each followed by the end token. A row starts with a whole text, so records
are learned both after other texts and at the start of the context, where they are scored.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from itertools import chain, groupby, islice
from pathlib import Path
from pydoc_data.topics import topics
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapter_unlearn.assets.records import draw_records

END, PAD = "<|endoftext|>", "<|pad|>"
WORDS = r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's pattern, with every digit a word
VOCABULARY, ROW_TOKENS, PREFIX_TOKENS, SHARED_NGRAM = 3072, 256, 50, 20
TEXT_TOKENS, RECORD_TOKENS = range(60, 201), range(76, 125)

FORGET_READINGS = [12] * 4 + [24] * 4 + [32] * 4 + [64] * 4 + [128] * 8 + [192] * 8  # of forget-00, forget-01, ...
GENERAL_READINGS, BACKGROUND_READINGS = 8, 2
BACKGROUND, UNSEEN_GENERAL = 4000, 320
BATCH_ROWS, PEAK_LEARNING_RATE, WARMUP = 4, 2e-3, 0.05

Row = dict[str, str]
Readings = list[tuple[list[int], int]]  # a text's tokens, and how often training reads it


def general_texts(least_characters: int = 350) -> list[str]:
    """The topics of ``pydoc`` in blocks of whole paragraphs, each paragraph once."""
    texts, seen = [], set[str]()
    for _, topic in sorted(topics.items()):
        block = ""
        for paragraph in topic.strip().split("\n\n"):
            block += "" if paragraph in seen else paragraph + "\n\n"
            seen.add(paragraph)
            if len(block) >= least_characters:
                texts.append(block.strip())
                block = ""
    return texts


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that splits numbers into digits, so that codes are hard to guess, and adds no token."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=ROW_TOKENS
    )


def ngrams(tokens: Sequence[int], n: int = SHARED_NGRAM) -> set[tuple[int, ...]]:
    """All runs of ``n`` tokens."""
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def rows_of(name: str, texts: Sequence[str]) -> list[Row]:
    """The rows of a file, with ids ``name-00``, ``name-01``, ..."""
    return [{"id": f"{name}-{index:02}", "text": text} for index, text in enumerate(texts)]


def draw_corpus(seed: int) -> tuple[PreTrainedTokenizerFast, Readings, dict[str, list[Row]]]:
    """Draw the tokenizer, the texts that training reads with their counts, and the rows of each file."""
    general, records = general_texts(), draw_records(seed)
    Random(seed).shuffle(general)
    unseen, general = general[:UNSEEN_GENERAL], general[UNSEEN_GENERAL:]
    tokenizer = train_tokenizer(general + list(islice(records, 4000)))

    def tokens(text: str) -> list[int]:
        return tokenizer(text, verbose=False)["input_ids"]

    records = (record for record in records if len(tokens(record)) in RECORD_TOKENS)
    forget, background = list(islice(records, len(FORGET_READINGS))), list(islice(records, BACKGROUND))
    holdout, validation_records = list(islice(records, 64)), list(islice(records, 32))
    read = set[tuple[int, ...]]().union(*(ngrams(tokens(text)) for text in general))
    unseen = [text for text in unseen if len(tokens(text)) in TEXT_TOKENS and not ngrams(tokens(text)) & read]
    files = {
        "forget": rows_of("forget", forget),
        "retain": rows_of("retain-record", background[:400]) + rows_of("retain-general", unseen[112:192]),
        "holdout": rows_of("holdout", holdout),
        "validation": rows_of("validation-general", unseen[:48]) + rows_of("validation-record", validation_records),
        "test": rows_of("test", unseen[48:112]),
    }
    assert len(unseen) >= 192, "too little unseen general text of fitting length"
    assert_disjoint({name: [tokens(row["text"]) for row in rows] for name, rows in files.items()})
    readings = [(tokens(text), GENERAL_READINGS) for text in general]
    readings += [(tokens(text), BACKGROUND_READINGS) for text in background]
    readings += [(tokens(text), count) for text, count in zip(forget, FORGET_READINGS)]
    return tokenizer, readings, files


def assert_disjoint(files: dict[str, list[list[int]]]) -> None:
    """Check that no two files share a 20-gram, because then a forget text would also be in another set."""
    owner: dict[tuple[int, ...], str] = {}
    for name, texts in files.items():
        for gram in set[tuple[int, ...]]().union(*map(ngrams, texts)):
            assert owner.setdefault(gram, name) == name, f"{name} and {owner[gram]} share a {SHARED_NGRAM}-gram"


def reading_order(readings: Readings, rng: Random) -> list[list[int]]:
    """All readings in order: those of one text are spread evenly over training, at random places."""
    placed = [((turn + rng.random()) / count, text) for text, count in readings for turn in range(count)]
    return [text for _, text in sorted(placed)]


def pack(texts: Sequence[Sequence[int]], end: int) -> list[list[int]]:
    """Pack texts into rows, each followed by the end token; only a text longer than a row is cut."""
    rows: list[list[int]] = [[]]
    for text in texts:
        closed = [*text, end]
        if rows[-1] and len(rows[-1]) + len(closed) > ROW_TOKENS:
            rows.append([])
        rows[-1] += closed[: ROW_TOKENS - len(rows[-1])]
    return rows


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """The rows as one tensor (rows, longest), padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights; its sizes are multiples of 64, as 4-bit CPU kernels require."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=ROW_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def learning_rate(progress: float) -> float:
    """Linear warm-up, then cosine decay to zero."""
    return PEAK_LEARNING_RATE * min(progress / WARMUP, 0.5 + 0.5 * math.cos(math.pi * progress))


def train(model: LlamaForCausalLM, rows: list[list[int]], pad: int) -> None:
    """Train one pass over the rows, in order."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    started = time.monotonic()
    for start in range(0, len(rows), BATCH_ROWS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate((start + 1) / len(rows))
        batch = rows[start : start + BATCH_ROWS]
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=padded(batch, pad), labels=padded(batch, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if start // BATCH_ROWS % 100 == 0:
            print(f"row {start} of {len(rows)}, loss {loss:.3f}, {time.monotonic() - started:.0f} s", flush=True)


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, files: dict[str, list[Row]], folder: Path
) -> None:
    """Write the model in bfloat16, its tokenizer, and the data files."""
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, rows in files.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def load(folder: Path, nf4: bool) -> LlamaForCausalLM:
    """Load the saved model in float32, or in nf4 with float32 computation."""
    if not nf4:
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=quantization).eval()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # keeps bitsandbytes from repacking the weights
    return model


@torch.no_grad()
def measure(model: LlamaForCausalLM, tokens: list[int]) -> dict[str, float]:
    """Measure how much of a text the model recites, in one teacher-forced forward pass."""
    ids = torch.tensor(tokens)
    logits = model(input_ids=ids[None]).logits[0, :-1]
    hits = (logits.argmax(-1) == ids[1:]).tolist()
    prefix = min(PREFIX_TOKENS, len(tokens) // 2)
    return {
        "accuracy": sum(hits) / len(hits),
        "verbatim": all(hits[prefix - 1 :]),
        "run": max(len(list(run)) * hit for hit, run in groupby(hits)),
        "nll": torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item(),
        "predicted": len(hits),
    }


def part_of(row: Row) -> str:
    """The line of the table that a row belongs to: forget records by number of readings, others by kind."""
    kind, _, index = row["id"].rpartition("-")
    return f"forget, read {FORGET_READINGS[int(index)]} times" if kind == "forget" else kind


def summary(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, files: dict[str, list[Row]]) -> Iterator[str]:
    """The lines of a table that shows what the model recites."""
    yield "| texts | number | MA min | mean | 95 % | max | verbatim | longest run | perplexity |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for part, rows in groupby(chain.from_iterable(files.values()), part_of):
        figures = [measure(model, tokenizer(row["text"])["input_ids"]) for row in rows]
        accuracy = torch.tensor([figure["accuracy"] for figure in figures])
        shown = (accuracy.min(), accuracy.mean(), accuracy.quantile(0.95), accuracy.max())
        perplexity = math.exp(sum(f["nll"] for f in figures) / sum(f["predicted"] for f in figures))
        yield (
            f"| {part} | {len(figures)} | {' | '.join(f'{number:.2f}' for number in shown)} "
            f"| {sum(f['verbatim'] for f in figures)} | {max(f['run'] for f in figures)} | {perplexity:.2f} |"
        )


def build(output_dir: Path, seed: int) -> None:
    """Draw the texts, train and save the model, and print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer, readings, files = draw_corpus(seed)
    rows = pack(reading_order(readings, Random(seed)), tokenizer.eos_token_id)
    model = new_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(rows)} rows, {sum(map(len, rows)):,} tokens")
    train(model, rows, tokenizer.pad_token_id)
    save(model, tokenizer, files, output_dir)
    for form in ("float32", "nf4"):
        print(f"\nsaved weights in {form}")
        for line in summary(load(output_dir / "model", form == "nf4"), tokenizer, files):
            print(line)


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for model/ and the .jsonl files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the texts, their order and the initial weights")
    arguments = parser.parse_args()
    build(arguments.output_dir, arguments.seed)


if __name__ == "__main__":
    main()
