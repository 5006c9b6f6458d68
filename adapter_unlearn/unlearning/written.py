"""Retain text that the base writes itself: what stands near the forget set is held where no file has text.

An adapter that is held on a hundred texts of a kind is held on those, and the neighbourhood is larger. The base can
write as much of it as is wanted: it goes on from short pieces of the retain set. Held by a divergence to the base
(retain_loss kl) such text need not be true or good, only what the base would say: pseudo-rehearsal (Robins, 1995).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets
from transformers import GenerationConfig

from adapter_unlearn import models, scoring
from adapter_unlearn.data import bos_tokens, overlaps

if TYPE_CHECKING:
    from accelerate import Accelerator

PIECE, SHARED = 12, 10
"""Tokens of a retain text that the base goes on from; and the run of tokens that no written text may share with the
forget set: what is recited by chance must not be held."""


def with_written(
    model: Any, retain: Dataset, forget: Dataset, number: int, batch_size: int, seed: int, accelerator: Accelerator
) -> Dataset:
    """The retain set, and up to `number` texts more that the model writes.

    Args:
        model: as it stands; a fresh adapter does nothing yet.
        retain: where the pieces are taken from, in turn, each at a random place; a text gets as long as its source.
        forget: a written text that shares a run of SHARED tokens with it is left out.
        number: texts to write; sampled from the whole distribution, at temperature 1.
        batch_size: texts written at once.
        seed: of the places and of the sampling.
        accelerator: the first process writes, all get the same.
    """
    rows: list[Any] = [None]
    if accelerator.is_main_process:
        rows = [_written(model, retain, number, batch_size, seed)]
    if accelerator.num_processes > 1:
        rows = broadcast_object_list(rows)
    names = [f"written-{index}" for index in range(len(rows[0]))]
    columns: dict[str, list[Any]] = {name: [None] * len(names) for name in retain.column_names}
    columns |= {"id": names, "document": names, "input_ids": rows[0]}
    columns |= {"prefix_tokens": [len(row) // 2 for row in rows[0]], "scored_from": [1] * len(names)}
    made = Dataset.from_dict(columns, features=retain.features, info=retain.info.copy())
    recited = {name for name, _ in overlaps(made, forget, SHARED)}
    return concatenate_datasets([retain, made.select([i for i, name in enumerate(names) if name not in recited])])


def _written(model: Any, retain: Dataset, number: int, batch_size: int, seed: int) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    bos, sources = bos_tokens(retain), retain["input_ids"]
    tasks = []  # (opening, tokens to write)
    for index in range(number):
        ids = list(sources[index % len(sources)])
        lead, body = (ids[:1], ids[1:]) if ids[0] in bos else ([], ids)
        length = min(PIECE, max(1, len(body) // 2))
        start = int(generator.integers(0, max(1, len(body) - length)))
        piece = [*lead, *body[start : start + length]]
        tasks.append((piece, max(1, len(ids) - len(piece))))
    tasks.sort(key=lambda task: (len(task[0]), task[1]))  # openings of one length need no padding
    rows: list[list[int]] = []
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices), torch.no_grad(), models.generator(model) as generate:
        torch.manual_seed(seed)
        while tasks:
            batch = [task for task in tasks[:batch_size] if len(task[0]) == len(tasks[0][0])]
            tasks = tasks[len(batch) :]
            openings = torch.tensor([opening for opening, _ in batch], device=scoring.device_of(model))
            longest = max(more for _, more in batch)
            settings = GenerationConfig(
                do_sample=True, temperature=1.0, top_k=0, top_p=1.0, use_cache=True, max_new_tokens=longest,
            )  # fmt: skip
            made = generate(
                input_ids=openings, attention_mask=torch.ones_like(openings), generation_config=settings
            ).tolist()
            rows += [row[: len(opening) + more] for row, (opening, more) in zip(made, batch)]
    model.train(was_training)
    return rows
