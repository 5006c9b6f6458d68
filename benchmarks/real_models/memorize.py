"""Fine-tune a pretrained model until it has memorized passages to three degrees, and write the sets of a run.

    python benchmarks/real_models/memorize.py models/smollm2-135m BED --data_dir DATA [--seed 0]

DATA holds `wikitext.csv` and `pile.csv`, both with a column `text`. Passages of 64 tokens from distinct articles of the
first are drawn in one shuffle: 12 to forget, 200 to retain, 128 for the holdout set. The second gives 48 texts for
validation and 80 for the test set. The model is trained (all weights, AdamW) on the retain set once, and on four
forget passages in every step, four in every second and four in every fourth. It stops when the memorization accuracies
are high enough, and nothing else is tuned.

Writes BED/model, BED/forget.jsonl, retain.jsonl, holdout.jsonl, validation.jsonl, test.jsonl and BED/bed.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapter_unlearn import load_sequences, score

TOKENS = 64
SIZES = {"forget": 12, "retain": 200, "holdout": 128}
GENERAL = {"validation": 48, "test": 80}
PERIODS = (1, 2, 4)
"""A third of the forget set is in every step, a third in every second, a third in every fourth."""
MAX_STEPS, RETAIN_ROWS, LEARNING_RATE, MEAN_ACCURACY = 60, 5, 5e-5, 0.9


def main() -> None:
    """Draw the sets, train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("bed", type=Path)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.bed.mkdir(parents=True)
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    sets = draw(tokenizer, options.data_dir, random.Random(options.seed))
    for name, rows in sets.items():
        lines = [json.dumps({"id": f"{name}-{i}", "input_ids": row}) + "\n" for i, row in enumerate(rows)]
        (options.bed / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    started = time.monotonic()
    steps, scores = train(model, sets, load_sequences(options.bed / "forget.jsonl"), random.Random(options.seed))
    model.to(torch.bfloat16).save_pretrained(options.bed / "model")
    tokenizer.save_pretrained(options.bed / "model")
    about = {"seed": options.seed, "steps": steps, "seconds": round(time.monotonic() - started), "forget": scores}
    (options.bed / "bed.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def draw(tokenizer: Any, data: Path, generator: random.Random) -> dict[str, list[list[int]]]:
    """Every set as rows of token ids; no article or text is in two sets."""
    passages = [ids[:TOKENS] for ids in texts(tokenizer, data / "wikitext.csv", TOKENS)]
    general = [ids[:TOKENS] for ids in texts(tokenizer, data / "pile.csv", TOKENS)]
    sets = {}
    for rows, sizes in ((passages, SIZES), (general, GENERAL)):
        generator.shuffle(rows)
        for name, size in sizes.items():
            sets[name], rows = rows[:size], rows[size:]
            assert len(sets[name]) == size, f"{name}: only {len(sets[name])} texts are long enough"
    return sets


def texts(tokenizer: Any, file: Path, least: int) -> list[list[int]]:
    """The token ids of each text, from a third of its length on, where there are enough."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows = [row["text"].strip() for row in csv.DictReader(stream)]
    cut = [row[len(row) // 3 :].split(" ", 1)[-1] for row in rows]
    tokens = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in cut)
    return [ids for ids in tokens if len(ids) >= least]


def train(
    model: Any, sets: dict[str, list[list[int]]], forget: Any, generator: random.Random
) -> tuple[int, dict[str, list[float]]]:
    """Train until the forget set is memorized; the number of steps, and the forget set's scores."""
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)
    rows, third = sets["forget"], len(sets["forget"]) // 3
    queue = list(sets["retain"])
    generator.shuffle(queue)
    scores: dict[str, list[float]] = {}
    for step in range(1, MAX_STEPS + 1):
        batch = [row for i, row in enumerate(rows) if step % PERIODS[i // third] == 0]
        batch += [queue.pop() for _ in range(min(RETAIN_ROWS, len(queue)))]
        ids = torch.tensor(batch)
        model.train()
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 8 == 0:
            model.eval()
            frame = score(model, forget, ["memorization_accuracy", "extractable", "loss"])
            scores = {name: frame[name].astype(float).round(4).tolist() for name in frame.columns[2:5]}
            accuracy = float(frame["memorization_accuracy"].mean())
            print(f"step {step}: loss {loss.item():.3f}, forget MA {accuracy:.3f}", flush=True)
            if accuracy >= MEAN_ACCURACY and not queue:
                break
    return step, scores


if __name__ == "__main__":
    main()
