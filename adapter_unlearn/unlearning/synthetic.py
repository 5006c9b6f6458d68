"""Synthetic retain texts: the base continues short pieces of the retain set.

A hundred retain texts of a kind preserve the model on those texts only. Synthetic texts cover more of that kind. They
are trained with a divergence to the base (retain_loss kl), so they need not be true or well written: pseudo-rehearsal
(Robins, 1995).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, concatenate_datasets
from transformers import GenerationConfig

from adapter_unlearn import models, progress, scoring
from adapter_unlearn.data import bos_tokens, overlaps

AT_ONCE = 4096
"""Tokens in a batch that is generated: a step costs little more for many rows than for few."""

PIECE, SHARED = 12, 10
"""Tokens of a retain text that the base continues; and the length of a run of tokens that no synthetic text may share
with the forget set, so that recited text is not preserved."""


def with_synthetic(
    model: Any, retain: Dataset, forget: Dataset, number: int, seed: int, accelerator: Accelerator
) -> Dataset:
    """The retain set with up to `number` synthetic texts added.

    Args:
        model: the base, or the base with a fresh adapter, which changes nothing yet.
        retain: pieces are taken from its texts in turn, each at a random position; a synthetic text is as long as its
            source.
        forget: synthetic texts that share a run of SHARED tokens with it are left out.
        number: texts to generate, sampled from the full distribution at temperature 1.
        seed: of the positions and of the sampling.
        accelerator: the first process generates, all processes get the same texts.
    """
    first = accelerator.is_main_process
    rows = models.broadcast(_generate(model, retain, number, seed) if first else None, accelerator)
    names = [f"synthetic-{index}" for index in range(len(rows))]
    columns: dict[str, list[Any]] = {name: [None] * len(names) for name in retain.column_names}
    columns |= {"id": names, "document": names, "input_ids": rows}
    columns |= {"prefix_tokens": [len(row) // 2 for row in rows], "scored_from": [1] * len(names)}
    added = Dataset.from_dict(columns, features=retain.features, info=retain.info.copy())
    recited = {name for name, _ in overlaps(added, forget, SHARED)}
    return concatenate_datasets([retain, added.select([i for i, name in enumerate(names) if name not in recited])])


def _generate(model: Any, retain: Dataset, number: int, seed: int) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    bos, sources = bos_tokens(retain), retain["input_ids"]
    tasks = []  # (opening, tokens to generate)
    for index in range(number):
        ids = list(sources[index % len(sources)])
        lead, body = (ids[:1], ids[1:]) if ids[0] in bos else ([], ids)
        length = min(PIECE, max(1, len(body) // 2))
        start = int(generator.integers(0, max(1, len(body) - length)))
        piece = [*lead, *body[start : start + length]]
        tasks.append((piece, max(1, len(ids) - len(piece))))
    at_once = max(1, AT_ONCE // max((len(piece) + more for piece, more in tasks), default=1))
    tasks.sort(key=lambda task: (len(task[0]), task[1]))  # openings of one length need no padding
    rows: list[list[int]] = []
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with (
        torch.random.fork_rng(devices),
        torch.no_grad(),
        models.evaluating(model),
        models.generator(model) as generate,
        progress.bar("generate synthetic texts", number, "text") as bar,
    ):
        torch.manual_seed(seed)
        while tasks:
            batch = [task for task in tasks[:at_once] if len(task[0]) == len(tasks[0][0])]
            tasks = tasks[len(batch) :]
            openings = torch.tensor([opening for opening, _ in batch], device=scoring.device_of(model))
            longest = max(more for _, more in batch)
            settings = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=longest)
            mask = torch.ones_like(openings)
            generated = generate(input_ids=openings, attention_mask=mask, generation_config=settings, use_cache=True)
            rows += [row[: len(opening) + more] for row, (opening, more) in zip(generated.tolist(), batch)]
            bar.update(len(batch))
    return rows
