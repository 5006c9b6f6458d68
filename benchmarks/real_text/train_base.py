"""Train the real-text base of the experiments: a small Llama that memorizes real texts to five degrees.

The base reads ordinary text, and 64 extraction-like sequences 4, 8, 16, 32 or 64 times each. A base trained on random
tokens would show neither partial memorization nor collateral damage nor low outliers. All other sets of the experiments
(holdout, retain, validation, test and a second forget set) are drawn here as well, before training and without overlap.

    python benchmarks/real_text/train_base.py --data_dir DATA --output_dir BASE [--split a|b] [--seed 0]
"""

import argparse
import csv
import itertools
import json
import math
import os
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import bitsandbytes as bnb
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

END, PAD = "<|endoftext|>", "<|pad|>"
DEGREES = (4, 8, 16, 32, 64)
SEQUENCE_TOKENS, PREFIX_TOKENS, CONTEXT = 100, 50, 256
PIECE_TOKENS, PIECE_TOKENS_MIN = 150, 100
NGRAM = 20
ASSIGNMENT = ("forget_a", "holdout", "retain", "forget_b", "retain", "forget_a", "holdout", "forget_b", "retain")
SIZES = {"forget_a": 64, "forget_b": 64, "holdout": 64, "validation": 12, "retain": 96}  # the last two are maxima
MINIMUM_SIZES = {"validation": 8, "retain": 80}
GENERAL_SIZES = {"validation": 64, "test": 128, "retain": 192}
HELD_OUT_TEXTS = {"wikitext.csv": 40, "pile.csv": 120}


@dataclass(frozen=True)
class Training:
    """The settings of the training, which decide how strongly the base memorizes.

    There are many small steps, and the repetitions of a sequence are far apart. Muon (torch 2.9 or later) trains the
    matrices of the layers and AdamW all other weights. AdamW alone learns more slowly: after 300,000 tokens it reached
    a validation perplexity of 515 instead of 378, and an MA of .13 instead of .44 on the most repeated fifth.
    """

    passes: int = 2
    batch_size: int = 4
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    final_fraction: float = 0.1
    warmup_steps: int = 40
    weight_decay: float = 0.01
    clip: float = 1.0


@dataclass(frozen=True)
class Row:
    """A sequence: a stable id, and token ids of the base's own tokenizer."""

    id: str
    ids: list[int]


# -------------------------------------------------------------------------------------------------------------- drawing


def read_texts(path: Path) -> list[dict[str, str]]:
    """Read a csv file with a `text` column."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assign_extraction_texts(data_dir: Path, rng: random.Random) -> dict[str, list[tuple[str, str]]]:
    """Assign whole texts to the parts, stratified by file and corpus, so that every part has the same mix.

    With the same seed, both splits assign texts in the same way. Settings tuned on split b are therefore independent of
    the forget set of split a.
    """
    strata: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name in ("lm_extraction_128_0.csv", "domain_main.csv"):
        for row in read_texts(data_dir / name):
            key = f"{name.split('_')[0]}-{row['corpus']}-{row['doc_id']}"
            strata.setdefault((name, row["corpus"]), []).append((key, row["text"]))
    parts: dict[str, list[tuple[str, str]]] = {part: [] for part in ASSIGNMENT}
    position = 0
    for stratum in sorted(strata):
        for text in rng.sample(strata[stratum], len(strata[stratum])):
            parts[ASSIGNMENT[position % len(ASSIGNMENT)]].append(text)
            position += 1
    for part in parts.values():
        rng.shuffle(part)
    return parts


def assign_general_texts(data_dir: Path, rng: random.Random) -> dict[str, list[tuple[str, str]]]:
    """Assign whole texts to validation and test; all others are training text.

    Consecutive rows of wikitext belong to the same article, so each part is one contiguous range of the rotated file.
    """
    parts: dict[str, list[tuple[str, str]]] = {"validation": [], "test": [], "train": []}
    for name, count in HELD_OUT_TEXTS.items():
        texts = [(f"{Path(name).stem}-{number}", row["text"]) for number, row in enumerate(read_texts(data_dir / name))]
        start = rng.randrange(len(texts))
        texts = texts[start:] + texts[:start]
        parts["validation"] += texts[:count]
        parts["test"] += texts[count : 2 * count]
        parts["train"] += texts[2 * count :]
    for part in parts.values():
        rng.shuffle(part)
    return parts


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 4096 entries. It adds no special token: scoring starts at a text's first token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=CONTEXT
    )


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize a whole text, whatever the length limit of the model."""
    return list(tokenizer(text, verbose=False)["input_ids"])


def ngrams(ids: list[int]) -> set[tuple[int, ...]]:
    """All runs of 20 tokens."""
    return {tuple(ids[start : start + NGRAM]) for start in range(len(ids) - NGRAM + 1)}


class Draw:
    """Accepts rows that share no 20-gram with any row accepted before.

    Boilerplate, such as licenses and mail footers, occurs in several texts. In two parts it would make a holdout row
    memorized, and twice in the forget set it would change the number of repetitions.
    """

    def __init__(self) -> None:
        self.seen: set[tuple[int, ...]] = set()
        self.dropped: dict[str, int] = {}

    def accept(self, part: str, ids: list[int]) -> bool:
        """Accept the row, or count it as dropped from its part."""
        own = ngrams(ids)
        if own & self.seen:
            self.dropped[part] = self.dropped.get(part, 0) + 1
            return False
        self.seen |= own
        return True

    def fill(self, part: str, rows: Iterator[Row], size: int, minimum: int | None = None) -> list[Row]:
        """Take the first `size` acceptable rows, or at least `minimum`; the rest stays in the iterator."""
        taken: list[Row] = []
        while len(taken) < size:
            row = next(rows, None)
            if row is None:
                break
            if self.accept(part, row.ids):
                taken.append(row)
        if len(taken) < (size if minimum is None else minimum):
            raise SystemExit(
                f"{part}: only {len(taken)} of {size} rows share no {NGRAM}-gram with other rows; try another --seed"
            )
        return taken


def windows(tokenizer: PreTrainedTokenizerBase, texts: list[tuple[str, str]]) -> Iterator[Row]:
    """The first 100 tokens of every text that is long enough."""
    for key, text in texts:
        ids = encode(tokenizer, text)[:SEQUENCE_TOKENS]
        if len(ids) == SEQUENCE_TOKENS:
            yield Row(key, ids)


def pieces(tokenizer: PreTrainedTokenizerBase, texts: list[tuple[str, str]]) -> Iterator[Row]:
    """The first 100 to 150 tokens of every text; one piece per text keeps the sets diverse."""
    for key, text in texts:
        ids = encode(tokenizer, text)[:PIECE_TOKENS]
        if len(ids) >= PIECE_TOKENS_MIN:
            yield Row(key, ids)


@dataclass(frozen=True)
class Sets:
    """The rows of each file, the training rows of the same kind, the general documents, and the drop counts."""

    files: dict[str, list[Row]]
    same_kind: list[Row]
    documents: list[list[int]]
    dropped: dict[str, int]


def draw_sets(
    tokenizer: PreTrainedTokenizerBase,
    kind: dict[str, list[tuple[str, str]]],
    general: dict[str, list[tuple[str, str]]],
    split: str,
) -> Sets:
    """Draw the rows of every file, then drop the general documents that share a 20-gram with any of them."""
    draw = Draw()
    iterators = {part: windows(tokenizer, texts) for part, texts in kind.items()}
    # Validation rows of the forget set's kind come from the texts that holdout and the other forget set did not use.
    other = "b" if split == "a" else "a"
    iterators["validation"] = itertools.chain(iterators["holdout"], iterators[f"forget_{other}"])
    rows = {part: draw.fill(part, iterators[part], size, MINIMUM_SIZES.get(part)) for part, size in SIZES.items()}
    unseen = {
        part: draw.fill(part, pieces(tokenizer, general[part]), GENERAL_SIZES[part]) for part in ("validation", "test")
    }
    documents = {}
    for key, text in general["train"]:
        ids = encode(tokenizer, text)
        if ngrams(ids) & draw.seen:
            draw.dropped["general_train"] = draw.dropped.get("general_train", 0) + 1
        else:
            documents[key] = ids
    trained = [Row(key, ids[:PIECE_TOKENS]) for key, ids in documents.items() if len(ids) >= PIECE_TOKENS_MIN]
    files = {
        "forget": rows[f"forget_{split}"],
        "tuning": rows[f"forget_{other}"],
        "holdout": rows["holdout"],
        "retain": rows["retain"] + trained[: GENERAL_SIZES["retain"]],
        "validation": rows["validation"] + unseen["validation"],
        "test": unseen["test"],
    }
    sets = Sets(files, rows["retain"], list(documents.values()), draw.dropped)
    assert_disjoint(sets)
    return sets


def assert_disjoint(sets: Sets) -> None:
    """Assert that files share no 20-gram with each other, and that unseen files share none with the training text."""
    grams = {name: set().union(*(ngrams(row.ids) for row in rows)) for name, rows in sets.files.items()}
    names = sorted(grams)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            assert not grams[name] & grams[other], f"{name} and {other} share a {NGRAM}-gram"
    trained = set().union(*(ngrams(ids) for ids in sets.documents), *(ngrams(row.ids) for row in sets.same_kind))
    for name in ("forget", "tuning", "holdout", "validation", "test"):
        assert not grams[name] & trained, f"{name} and the general training text share a {NGRAM}-gram"


# ------------------------------------------------------------------------------------------------------------- training


def training_rows(sets: Sets, passes: int, end: int, rng: random.Random, forget: bool = True) -> list[list[int]]:
    """Training contexts in random order: some start with a repeated sequence, and general text fills the rest.

    A sequence stands at the start because scoring gives the model the sequence alone, without BOS. Without the forget
    set, everything else is read as often; the resulting model is the target of unlearning.
    """
    heads = [row.ids for index, row in enumerate(sets.files["forget"]) for _ in range(DEGREES[index % len(DEGREES)])]
    heads = heads if forget else []
    heads += [row.ids for row in sets.same_kind]
    stream: list[int] = []
    for _ in range(passes):
        for document in rng.sample(sets.documents, len(sets.documents)):
            stream += [*document, end]
    filler = sum(CONTEXT - len(head) - 1 for head in heads)
    plain = (len(stream) - filler) // CONTEXT
    assert plain > 0, "there is not enough general text to fill the contexts of the repeated sequences"
    contexts = [[*head, end] for head in heads] + [[] for _ in range(plain)]
    rng.shuffle(contexts)
    position = 0
    for context in contexts:
        taken = CONTEXT - len(context)
        context += stream[position : position + taken]
        position += taken
    return contexts


def new_model(end: int, pad: int) -> LlamaForCausalLM:
    """A Llama of 2.1 M parameters. Every size is a multiple of 64, which 4-bit layers on AVX-512 need."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return LlamaForCausalLM(config)


def rate_factor(step: int, steps: int, training: Training) -> float:
    """Warm-up, then cosine decay to a tenth, so that late repetitions still have an effect."""
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, steps - training.warmup_steps)
    return training.final_fraction + (1 - training.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def new_optimizers(model: LlamaForCausalLM, training: Training) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the (tied) embedding and the norms."""
    matrices = [weight for name, weight in model.named_parameters() if weight.dim() == 2 and ".layers." in name]
    others = [weight for name, weight in model.named_parameters() if weight.dim() != 2 or ".layers." not in name]
    return [
        torch.optim.Muon(matrices, lr=training.matrix_rate, momentum=0.95, weight_decay=training.weight_decay),
        torch.optim.AdamW(others, lr=training.other_rate, betas=(0.9, 0.98), weight_decay=training.weight_decay),
    ]


def train(model: LlamaForCausalLM, contexts: list[list[int]], training: Training) -> None:
    """One pass over the contexts."""
    data = torch.tensor(contexts)
    optimizers = new_optimizers(model, training)
    steps = math.ceil(len(data) / training.batch_size)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps, training))
        for optimizer in optimizers
    ]
    started, losses = time.monotonic(), []
    model.train()
    for step, batch in enumerate(data.split(training.batch_size)):
        logits = model(batch, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for schedule in schedules:
            schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            mean = sum(losses[-100:]) / len(losses[-100:])
            print(f"step {step + 1}/{steps}  loss {mean:.3f}  {time.monotonic() - started:.0f} s", flush=True)


# -------------------------------------------------------------------------------------------------------------- figures


@torch.inference_mode()
def score_rows(model: torch.nn.Module, rows: list[Row]) -> list[dict[str, Any]]:
    """Score each row by one teacher-forced forward: accuracy, total loss, and whether all tokens after 50 are hits."""
    model.eval()
    scores = []
    for row in rows:
        ids = torch.tensor(row.ids)
        logits = model(ids[None], use_cache=False).logits[0, :-1].float()
        hits = logits.argmax(-1) == ids[1:]
        loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
        scores.append(
            {
                "memorization_accuracy": hits.float().mean().item(),
                "extractable": bool(hits[PREFIX_TOKENS - 1 :].all()),
                "loss": loss,
                "predicted": len(hits),
            }
        )
    return scores


def mean_of(scores: list[dict[str, Any]], key: str) -> float:
    """The mean of one figure over the rows."""
    return sum(score[key] for score in scores) / len(scores)


def perplexity(scores: list[dict[str, Any]]) -> float:
    """exp(total loss / total predicted tokens) over the whole set."""
    return math.exp(sum(score["loss"] for score in scores) / sum(score["predicted"] for score in scores))


def forget_figures(scores: list[dict[str, Any]], low: float, high: float) -> dict[str, Any]:
    """The figures of the forget set, or of one degree of repetition, with outliers by the bounds of the holdout set."""
    accuracies = [score["memorization_accuracy"] for score in scores]
    return {
        "n": len(scores),
        "memorization_accuracy_mean": round(mean_of(scores, "memorization_accuracy"), 4),
        "memorization_accuracy_min": round(min(accuracies), 4),
        "memorization_accuracy_max": round(max(accuracies), 4),
        "outliers_high": sum(accuracy > high for accuracy in accuracies),
        "outliers_low": sum(accuracy < low for accuracy in accuracies),
        "extractable": sum(score["extractable"] for score in scores),
        "perplexity": round(perplexity(scores), 3),
    }


def figures(model: torch.nn.Module, sets: Sets) -> dict[str, Any]:
    """All figures of one form of the base: holdout set, forget set as a whole and by degree, perplexities."""
    holdout = score_rows(model, sets.files["holdout"])
    accuracies = torch.tensor([score["memorization_accuracy"] for score in holdout], dtype=torch.float64)
    low, high = (float(accuracies.quantile(level)) for level in (0.05, 0.95))
    forget = score_rows(model, sets.files["forget"])
    by_degree = {
        degree: forget_figures(forget[index :: len(DEGREES)], low, high) for index, degree in enumerate(DEGREES)
    }
    return {
        "holdout": {
            "memorization_accuracy_mean": round(float(accuracies.mean()), 4),
            "memorization_accuracy_max": round(float(accuracies.max()), 4),
            "quantile_05": round(low, 4),
            "quantile_95": round(high, 4),
            "extractable": sum(score["extractable"] for score in holdout),
        },
        "forget": forget_figures(forget, low, high),
        "forget_by_degree": by_degree,
        "perplexity": {
            name: round(perplexity(score_rows(model, rows)), 3) for name, rows in sets.files.items() if name != "forget"
        },
    }


def load_nf4(folder: Path) -> torch.nn.Module:
    """Load the saved base in nf4 with double quantization, as the experiments do.

    On CPUs with AVX512-BF16, an eval forward would repack the 4-bit weights and make later gradients wrong.
    """
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32, device_map="cpu", local_files_only=True
    )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def print_figures(form: str, stats: dict[str, Any]) -> None:
    """Print the figures of one form as a table by degree."""
    holdout = stats["holdout"]
    print(f"\n{form}: holdout MA {holdout['memorization_accuracy_mean']:.3f}, 95 % {holdout['quantile_95']:.3f}")
    print(f"{'repeats':>8} {'n':>3} {'MA':>6} {'min':>6} {'max':>6} {'high':>5} {'extractable':>12}")
    for name, row in [*stats["forget_by_degree"].items(), ("all", stats["forget"])]:
        accuracy = [row[f"memorization_accuracy_{part}"] for part in ("mean", "min", "max")]
        cells = " ".join(f"{value:6.3f}" for value in accuracy)
        print(f"{name:>8} {row['n']:>3} {cells} {row['outliers_high']:>5} {row['extractable']:>12}")
    print("perplexity:", ", ".join(f"{name} {value:.1f}" for name, value in stats["perplexity"].items()))


# ----------------------------------------------------------------------------------------------------------- the script


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write one JSON object per line, with id and input_ids."""
    lines = (json.dumps({"id": row.id, "input_ids": row.ids}) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def save_model(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, sample: str) -> None:
    """Save the base, and assert that the reloaded tokenizer gives the same tokens."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reloaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert encode(reloaded, sample) == encode(tokenizer, sample), "the saved tokenizer differs"
    assert reloaded.eos_token_id == reloaded.bos_token_id != reloaded.pad_token_id


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with the csv files")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the model and the row files")
    parser.add_argument("--split", choices=("a", "b"), default="a", help="the forget set to memorize")
    parser.add_argument("--without_forget", action="store_true", help="train on everything but the forget set")
    parser.add_argument("--seed", type=int, default=0, help="seed of drawing and training")
    return parser.parse_args()


def main() -> None:
    """Draw the sets, train the base, save it, and measure it."""
    arguments = parse_arguments()
    started, training = time.monotonic(), Training()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    kind = assign_extraction_texts(arguments.data_dir, rng)
    general = assign_general_texts(arguments.data_dir, rng)
    trained_kind = kind[f"forget_{arguments.split}"] + kind["retain"]
    tokenizer = train_tokenizer(text for _, text in trained_kind + general["train"])
    sets = draw_sets(tokenizer, kind, general, arguments.split)
    contexts = training_rows(sets, training.passes, tokenizer.eos_token_id, rng, not arguments.without_forget)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.files.items():
        write_rows(arguments.output_dir / f"{name}.jsonl", rows)
    retain = sets.files["retain"]
    near = retain[: len(sets.same_kind)] + retain[len(sets.same_kind) :: 4]  # two thirds are of the forget set's kind
    write_rows(arguments.output_dir / "retain_near.jsonl", near)

    model = new_model(tokenizer.eos_token_id, tokenizer.pad_token_id)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{parameters} parameters, {len(contexts)} contexts of {CONTEXT} tokens, dropped for overlap: {sets.dropped}")
    train(model, contexts, training)
    folder = arguments.output_dir / "model"
    save_model(folder, model, tokenizer, general["test"][0][1])

    forms = {"float32": model, "nf4": load_nf4(folder)}
    stats: dict[str, Any] = {
        "split": arguments.split,
        "seed": arguments.seed,
        "parameters": parameters,
        "general_tokens": sum(len(ids) + 1 for ids in sets.documents),
        "training": vars(training),
        "contexts": len(contexts),
        "rows": {name: len(rows) for name, rows in sets.files.items()},
        "dropped": sets.dropped,
        "forms": {form: figures(loaded, sets) for form, loaded in forms.items()},
        "seconds": round(time.monotonic() - started),
    }
    (arguments.output_dir / "stats.json").write_text(json.dumps(stats, indent=1) + "\n", encoding="utf-8")
    for form, result in stats["forms"].items():
        print_figures(form, result)


if __name__ == "__main__":
    main()
