"""Dialogue replies: the overlap of the model's greedy reply with the true one, in words."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch

from adapter_unlearn import assets, models
from adapter_unlearn.data import reading
from adapter_unlearn.errors import InputError, path_name, word

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLY_TOKENS = 32

_SPACES = str.maketrans(dict.fromkeys(string.punctuation, " "))
_ARTICLES = ("a", "an", "the")


class Dialogue(NamedTuple):
    """A dialogue so far, and the reply to it."""

    id: str
    context: str
    reply: str


def score_replies(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    source: str | Path,
    *,
    limit: int | None = None,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Generate a greedy reply of at most 32 tokens to each dialogue and compare it with the true reply.

    The context is encoded as it is, with the tokenizer's own special tokens. A context that leaves no room for the
    reply is truncated on the left. The reply ends at the end token. The model's own generation settings are not used,
    so that a base and a model finetuned from it are decoded alike.

    Args:
        model: a causal language model, with or without adapters, in eval mode.
        tokenizer: the model's.
        source: a .jsonl or .json file; see read_dialogues.
        limit: use only the first dialogues, at most this many.
        batch_size: dialogues per batch, padded on the left.

    Returns:
        One row per dialogue, in the order of the file: task (`replies`), metric (`f1`), doc_id (str), value.

    Raises:
        InputError: the file can't be used, or a context has no token.
    """
    dialogues = read_dialogues(source)[:limit]
    replies = _answer(model, tokenizer, _prompts(model, tokenizer, dialogues, str(source)), batch_size)
    texts = tokenizer.batch_decode(replies, skip_special_tokens=True)
    scores = [unigram_f1(text, dialogue.reply) for text, dialogue in zip(texts, dialogues, strict=True)]
    ids = [dialogue.id for dialogue in dialogues]
    return pd.DataFrame({"task": "replies", "metric": "f1", "doc_id": ids, "value": scores})


def unigram_f1(reply: str, truth: str) -> float:
    """Harmonic mean of the precision and recall of the reply's words, each counted as often as it occurs.

    The text is lower-cased, ASCII punctuation becomes spaces, the words `a`, `an` and `the` are removed, and the rest
    is split at white space. With o common words (with repeats), F1 = 2 o / (words of the reply + words of the truth).
    It is 0 if nothing is in common, also where one of the two has no words.
    """
    words, true_words = _words(reply), _words(truth)
    shared = sum((Counter(words) & Counter(true_words)).values())
    return 2 * shared / (len(words) + len(true_words)) if shared else 0.0


def _words(text: str) -> list[str]:
    return [word for word in text.lower().translate(_SPACES).split() if word not in _ARTICLES]


def read_dialogues(source: str | Path) -> list[Dialogue]:
    """Read dialogues from a .jsonl file with one object per line, or a .json file with a list of objects.

    An object has `prompt` or `context` (the dialogue so far, as the model shall read it) and `reply`, both strings. Its
    `id` is optional and defaults to its number in the file.

    Raises:
        InputError: the file can't be read, or an object is not as described.
    """
    path = Path(assets.resolve(source))
    dialogues: dict[str, Dialogue] = {}
    for number, (place, row) in enumerate(_objects(path), 1):
        if not isinstance(row, dict):
            raise InputError(f"{place}: not a JSON object; write objects with prompt and reply")
        if ("prompt" in row) == ("context" in row):
            raise InputError(f"{place}: give either prompt or context, and reply")
        key = "prompt" if "prompt" in row else "context"
        for field in (key, "reply"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise InputError(f"{place}: no text in {field}; add it or remove the row")
        name = str(row.get("id", number))
        if name in dialogues:
            raise InputError(f"{place}: its id occurs twice; change one")
        dialogues[name] = Dialogue(name, row[key], row["reply"])
    if not dialogues:
        raise InputError(f"{path}: no dialogues; give at least one object with prompt and reply")
    return list(dialogues.values())


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    """The place and the value of each object in the file."""
    if path.suffix not in (".json", ".jsonl"):
        raise InputError(f"{path_name(path, 'replies')}: not a .json or .jsonl file; give the path of one")
    lines = dict(reading.numbered_lines(path))
    if path.suffix == ".jsonl":
        for place, line in ((f"{path}, line {number}", line) for number, line in lines.items() if line.strip()):
            yield place, _parse(line, place)
        return
    rows = _parse("\n".join(lines.values()), str(path))
    if not isinstance(rows, list):
        raise InputError(f"{path}: not a list; write a list of objects with prompt and reply")
    yield from ((f"{path}, object {number}", row) for number, row in enumerate(rows, 1))


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{place}: not valid JSON; correct it") from None


def _prompts(model: Any, tokenizer: PreTrainedTokenizerBase, dialogues: list[Dialogue], source: str) -> list[list[int]]:
    """Token ids of every context, each short enough that a whole reply fits after it."""
    positions = getattr(model.config, "max_position_embeddings", None)  # None: no maximum length
    available = None if positions is None else positions - REPLY_TOKENS
    contexts = [dialogue.context for dialogue in dialogues]
    # verbose=False: no warning about long contexts, which are truncated below
    encoded = tokenizer(contexts, verbose=False)["input_ids"]
    plain = tokenizer(contexts, add_special_tokens=False, verbose=False)["input_ids"]
    prompts = []
    for dialogue, ids, body in zip(dialogues, encoded, plain, strict=True):
        if not body:
            raise InputError(f"{source}: the context of row {word(dialogue.id)} has no token; remove the row")
        if available is not None and len(ids) > available:
            special = ids[: len(ids) - len(body)] if ids[len(ids) - len(body) :] == body else []
            ids = special + body[len(body) - (available - len(special)) :]
        prompts.append(ids)
    return prompts


def _answer(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], batch_size: int
) -> list[list[int]]:
    """Token ids of the greedy replies, up to the end token."""
    from transformers import GenerationConfig

    end = tokenizer.eos_token_id
    pad = end if end is not None else 0  # masked on the left, cut off after the end token
    settings = GenerationConfig(
        max_new_tokens=REPLY_TOKENS, do_sample=False, num_beams=1, use_cache=True, eos_token_id=end, pad_token_id=pad
    )
    replies: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths: little padding
    with models.generator(model) as generate:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = max(len(prompts[i]) for i in batch)
            ids = [[0] * (longest - len(prompts[i])) + prompts[i] for i in batch]  # (B, longest)
            mask = [[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in batch]
            output = generate(
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                generation_config=settings,
            )
            for i, row in zip(batch, output[:, longest:].tolist(), strict=True):
                replies[i] = row[: row.index(end)] if end in row else row
    return replies
