"""Dialogue replies: how many words of the true reply are in the model's greedy one."""

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
from adapter_unlearn.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLY_TOKENS = 32

_SPACES = str.maketrans(dict.fromkeys(string.punctuation, " "))
_ARTICLES = ("a", "an", "the")


class Dialogue(NamedTuple):
    """What was said, and what was answered."""

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
    """Let the model answer each dialogue greedily, with at most 32 tokens, and compare with the true reply.

    The context is given as it stands, with the special tokens that the tokenizer adds by itself; one that leaves no
    room for the reply is cut at its left end. The end token may come first; what follows it does not count. Of the
    model's own generation settings none is used, so that a base and its finetuned child are asked alike.

    Args:
        model: a causal language model, with or without adapters, in eval mode.
        tokenizer: the model's.
        source: a .jsonl or .json file, see read_dialogues.
        limit: only the first so many dialogues.
        batch_size: dialogues that are answered at once, padded on the left.

    Returns:
        A row a dialogue, in the order of the file: doc_id, f1 (see unigram_f1).

    Raises:
        InputError: the file can't be used, or a context makes no token.
    """
    dialogues = read_dialogues(source)[:limit]
    replies = _answer(model, tokenizer, _prompts(model, tokenizer, dialogues, str(source)), batch_size)
    texts = tokenizer.batch_decode(replies, skip_special_tokens=True)
    scores = [unigram_f1(text, dialogue.reply) for text, dialogue in zip(texts, dialogues, strict=True)]
    return pd.DataFrame({"doc_id": [dialogue.id for dialogue in dialogues], "f1": scores})


def unigram_f1(reply: str, truth: str) -> float:
    """The harmonic mean of precision and recall of the reply's words, each word counted as often as it occurs.

    Words are what is left, between white space, of the lower-cased text after every ASCII punctuation mark has become
    a space and the words `a`, `an` and `the` are gone. With o words in common (with repeats), F1 = 2 o / (words of the
    reply + words of the truth); 0 where nothing is in common, also where one of the two has no words.
    """
    words, true_words = _words(reply), _words(truth)
    shared = sum((Counter(words) & Counter(true_words)).values())
    return 2 * shared / (len(words) + len(true_words)) if shared else 0.0


def _words(text: str) -> list[str]:
    return [word for word in text.lower().translate(_SPACES).split() if word not in _ARTICLES]


def read_dialogues(source: str | Path) -> list[Dialogue]:
    """Read dialogues: a .jsonl file with one object a line, or a .json file with a list of objects.

    An object holds `prompt` or `context` (all that was said before, as the model is to read it) and `reply`, both
    strings, and perhaps `id`; without, its number in the file is its id. Raises InputError.
    """
    path = Path(assets.resolve(str(source)))
    rows = list(_objects(path))
    if not rows:
        raise InputError(f"{path}: no dialogues; give at least one object with prompt and reply")
    found: dict[str, Dialogue] = {}
    for number, (place, row) in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{place}: not a JSON object; write objects with prompt and reply")
        if ("prompt" in row) == ("context" in row):
            raise InputError(f"{place}: give either prompt or context, and reply")
        key = "prompt" if "prompt" in row else "context"
        for name in (key, "reply"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise InputError(f"{place}: no text in {name}; fill it or remove the row")
        name = str(row.get("id", number))
        if name in found:
            raise InputError(f"{place}: its id is that of another row; change one")
        found[name] = Dialogue(name, row[key], row["reply"])
    return list(found.values())


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    """What stands in the file, and where."""
    if path.suffix not in (".json", ".jsonl"):
        raise InputError(f"{path}: dialogues are read from .json and .jsonl files; convert it")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); check the path and its permissions") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save the file as UTF-8") from None
    if path.suffix == ".json":
        rows = _parsed(text, str(path))
        if not isinstance(rows, list):
            raise InputError(f"{path}: not a list; write a list of objects with prompt and reply")
        yield from ((f"{path}, object {number}", row) for number, row in enumerate(rows, 1))
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"{path}, line {number}", _parsed(line, f"{path}, line {number}")


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{place}: not valid JSON; mend it") from None


def _prompts(model: Any, tokenizer: PreTrainedTokenizerBase, dialogues: list[Dialogue], source: str) -> list[list[int]]:
    """Token ids of every context, each short enough that a whole reply fits behind it."""
    positions = getattr(model.config, "max_position_embeddings", None)  # some architectures have no end
    room = None if positions is None else positions - REPLY_TOKENS
    # verbose=False: that a context is longer than the model's is no news, it will be cut
    encoded = tokenizer([dialogue.context for dialogue in dialogues], verbose=False)["input_ids"]
    plain = tokenizer([dialogue.context for dialogue in dialogues], add_special_tokens=False, verbose=False)
    found = []
    for dialogue, ids, body in zip(dialogues, encoded, plain["input_ids"], strict=True):
        if not body:
            raise InputError(f"{source}: the tokenizer makes no token of the context of row {dialogue.id}; remove it")
        if room is not None and len(ids) > room:
            lead = ids[: len(ids) - len(body)] if ids[len(ids) - len(body) :] == body else []
            ids = lead + body[len(body) - (room - len(lead)) :]
        found.append(ids)
    return found


def _answer(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], batch_size: int
) -> list[list[int]]:
    """The greedy replies' token ids, up to the end token."""
    from transformers import GenerationConfig

    end = tokenizer.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=REPLY_TOKENS,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=end,
        pad_token_id=end if end is not None else 0,  # masked before the prompt, cut off behind the end
    )
    replies: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding
    with models.generator(model) as generate:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = max(len(prompts[i]) for i in batch)
            ids = [[0] * (longest - len(prompts[i])) + prompts[i] for i in batch]
            mask = [[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in batch]
            made = generate(
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                generation_config=settings,
            )
            for i, row in zip(batch, made[:, longest:].tolist(), strict=True):
                replies[i] = row[: row.index(end)] if end in row else row
    return replies
