"""Turn rows into sequences: check them, tokenize them once, and cut their token ids into windows.

No message holds a text or a token. Rows, lines, default ids and windows are counted from 1.
"""

import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd

from adapter_unlearn.data.overlap import DESCRIPTION
from adapter_unlearn.data.reading import COLUMNS, EXPECTED, Row, Table, read
from adapter_unlearn.errors import InputError

MAX_CHARACTERS = 2_000_000
"""In one text. A tokenizer takes a few GiB for a text of ten times that."""
MAX_ID = 500
_USUAL = {
    *COLUMNS, "answer", "article", "body", "code", "content", "context", "conversations", "document", "index", "input",
    "instruction", "label", "lang", "language", "messages", "meta", "metadata", "name", "output", "prefix", "question",
    "response", "row", "source", "split", "suffix", "target", "title", "tokens", "url",
}  # fmt: skip
_SURROGATE = re.compile("[\ud800-\udfff]")
_FORMS = (["text"], ["input_ids"], ["prompt", "completion"])
_STRING, _INTEGER = datasets.Value("string"), datasets.Value("int32")
_FEATURES = {"id": _STRING, "document": _STRING, "input_ids": datasets.Sequence(_INTEGER)}
_FEATURES |= {"prefix_tokens": _INTEGER, "scored_from": _INTEGER, "zlib_bytes": _INTEGER}


class _Tokens(NamedTuple):
    lead: list[int]  # the bos, where there is one
    body: list[int]
    prompt: int  # how many tokens of the body are prompt


def load_sequences(
    source: Any,
    tokenizer: Any = None,
    *,
    max_tokens: int = 200,
    stride: int = 150,
    prefix_tokens: int = 50,
    vocab_size: int | None = None,
) -> datasets.Dataset:
    """Read texts or token ids, and return a Dataset of sequences that is held in memory.

    A row has `text`, or `input_ids`, or `prompt` and `completion`, and optionally `id`; the default id is the row's
    number over all files. Texts longer than `max_tokens` become windows that start every `stride` tokens (at most a
    window's length); the last window ends with the text.

    Args:
        source: a path (.jsonl, .json, .csv, .parquet, .txt, .npy; `embedded:forget.jsonl` is a shipped file); a list
            of paths (.npy files are joined along axis 1, others one after another); a dataset folder or a hub id
            `owner/name`, both with `:split` unless it is train; a Dataset; a DataFrame; a list of dicts or of texts.
        tokenizer: required for text. Its leading bos is added if it adds one by default, and no other special token.
        max_tokens: maximum length of a sequence.
        stride: tokens from the start of one window to the next.
        prefix_tokens: tokens given as the prefix.
        vocab_size: of the model; token ids must be below it.

    Returns:
        One row per sequence: `id` (str; `document#1`, … for windows of a long text), `document` (str), `input_ids`
        (T ints, T <= `max_tokens`), `prefix_tokens` (int: min(`prefix_tokens`, T // 2), or the length of the prompt),
        `scored_from` (int: index of the first token whose prediction counts: 1, or the length of the prompt),
        `zlib_bytes` (int: compressed size of the text without prompt and bos, decoded from its tokens; None without a
        tokenizer). Rows with T < 2 are kept.

    Raises:
        InputError: the source or one of the numbers can't be used.
    """
    _check_lengths(max_tokens, stride, prefix_tokens)
    tables = read(source)
    form = _form(tables)
    rows = [row for table in tables for row in table.rows]
    documents = _documents(rows, own=any("id" in table.columns for table in tables))
    bos = _default_bos(tokenizer)
    used: dict[str, str] = {}
    sequences: list[tuple[Any, ...]] = []
    for row, document, tokens in zip(rows, documents, _tokens(rows, form, tokenizer, bos), strict=True):
        _check_vocabulary(row, tokens, vocab_size, form)
        windows = [
            (ids, prefix, max(1, prompted), _zlib_bytes(tokenizer, ids[max(len(tokens.lead), prompted) :]))
            for ids, prefix, prompted in _windows(tokens, max_tokens, stride, prefix_tokens)
        ]
        ids = [document] if len(windows) == 1 else [f"{document}#{k}" for k in range(1, len(windows) + 1)]
        for name in {document, *ids}:
            if name in used:
                raise InputError(f"{row.place}: its id or a window's id is also that of {used[name]}; change one")
            used[name] = row.place
        sequences += [(name, document, *window) for name, window in zip(ids, windows, strict=True)]
    columns = dict(zip(_FEATURES, map(list, zip(*sequences, strict=True)), strict=True))
    description = "" if bos is None else f"{DESCRIPTION}{bos}"
    info = datasets.DatasetInfo(description=description, features=datasets.Features(_FEATURES))
    return datasets.Dataset.from_dict(columns, info=info)


def _check_lengths(max_tokens: int, stride: int, prefix_tokens: int) -> None:
    # a prediction needs two tokens
    numbers = {"max_tokens": (max_tokens, 2), "stride": (stride, 1), "prefix_tokens": (prefix_tokens, 1)}
    for name, (value, least) in numbers.items():
        if value < least:
            raise InputError(f"{name} is {value}; give {least} or more")


def _form(tables: list[Table]) -> list[str]:
    """The one form that all tables have, as its columns."""
    for table in tables:
        form = [column for column in COLUMNS[:-1] if column in table.columns]
        if not table.rows:
            raise InputError(f"{table.name}: no rows; give at least one text")
        if form not in _FORMS:
            raise InputError(
                f"{table.name}: can't tell what to read from its columns ({_printable(table.columns)}); "
                f"give exactly one of these: {EXPECTED}"
            )
        if any(column not in tables[0].columns for column in form):
            raise InputError(f"{table.name}: other columns than in {tables[0].name}; load the files separately")
        if repeated := [column for column in COLUMNS if table.columns.count(column) > 1]:
            raise InputError(f"{table.name}: two columns are named {repeated[0]}; rename or remove one")
    return form


def _printable(columns: list[str]) -> str:
    """The usual column names for a message. Any other may be a text: the first line of a CSV file without header."""
    plain = [column for column in columns if column.lower() in _USUAL]
    hidden = [f"{len(columns) - len(plain)} not shown, as they may be text"] if len(plain) < len(columns) else []
    return ", ".join(plain + hidden) or "none"


def _documents(rows: list[Row], own: bool) -> list[str]:
    """The `id` of each row, or its number."""
    if not own:
        return [str(number) for number in range(1, len(rows) + 1)]
    for row in rows:
        value = row.values.get("id")
        if isinstance(value, bool) or not isinstance(value, str | int | np.integer) or not str(value).strip():
            raise InputError(f"{row.place}: column id is neither text nor an integer; give every row an id, or no row")
        if len(str(value)) > MAX_ID:
            raise InputError(f"{row.place}: column id has more than {MAX_ID} characters; give short ids, not texts")
        if _SURROGATE.search(str(value)):
            raise InputError(f"{row.place}: column id holds half a surrogate pair; give valid Unicode")
    return [str(row.values["id"]) for row in rows]


def _text(row: Row, column: str) -> str:
    """The row's text in this column."""
    value = row.values.get(column)
    missing = value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
    if missing or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{row.place}: no text in column {column}; fill it or remove the row")
    if not isinstance(value, str):
        raise InputError(f"{row.place}: column {column} holds a {type(value).__name__}; give a string")
    if len(value) > MAX_CHARACTERS:
        raise InputError(
            f"{row.place}: column {column} has more than {MAX_CHARACTERS:,} characters; split it into several rows"
        )
    if _SURROGATE.search(value):
        raise InputError(f"{row.place}: column {column} holds half a surrogate pair; give valid Unicode")
    return value


def _token_ids(row: Row) -> list[int]:
    """The row's token ids, as Python ints."""
    value = row.values.get("input_ids")
    if isinstance(value, str):  # a CSV file holds the list as JSON
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"{row.place}: no list of token ids in column input_ids; fill it or remove the row")
    if not all(issubclass(kind, int | np.integer) and kind is not bool for kind in set(map(type, value))):
        raise InputError(f"{row.place}: column input_ids holds other values than whole numbers; give token ids")
    return list(map(int, value))


def _check_vocabulary(row: Row, tokens: _Tokens, vocab_size: int | None, form: list[str]) -> None:
    limit = 2**31 if vocab_size is None else vocab_size
    ids = tokens.lead + tokens.body
    if min(ids) < 0 or max(ids) >= limit:
        fix = "give ids of this model's tokenizer" if form == ["input_ids"] else "give the model's own tokenizer"
        raise InputError(f"{row.place}: a token id is outside the vocabulary, 0 to {limit - 1}; {fix}")


def _default_bos(tokenizer: Any) -> int | None:
    """The bos that the tokenizer adds by default. It is probed with a text, because on "" an eos looks the same."""
    if tokenizer is None or tokenizer.bos_token_id is None:
        return None
    bos: int = tokenizer.bos_token_id
    usual, plain = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    return bos if usual[:1] == [bos] != plain[:1] else None


def _encode(tokenizer: Any, texts: list[str]) -> Iterator[list[int]]:
    """Token ids without special tokens, in batches, because the tokenizer's records are much larger than the ids."""
    for start in range(0, len(texts), 1000):
        batch = texts[start : start + 1000]
        # verbose=False: no warning about texts longer than the model's context, which are cut into windows
        yield from tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _tokens(rows: list[Row], form: list[str], tokenizer: Any, bos: int | None) -> Iterator[_Tokens]:
    """The tokens of each row. Prompt and completion are tokenized separately: the prompt is what an attacker types."""
    parts: Iterable[tuple[list[int], ...]]
    if form == ["input_ids"]:
        parts = ((_token_ids(row),) for row in rows)
    elif tokenizer is None:
        raise InputError(
            f"{rows[0].place}: text needs a tokenizer, and the model's can't be loaded; add it, or give input_ids"
        )
    else:
        texts = [[_text(row, column) for row in rows] for column in form]
        parts = zip(*(_encode(tokenizer, column) for column in texts), strict=True)
    for row, (*prompts, rest) in zip(rows, parts, strict=True):
        if not rest:
            raise InputError(f"{row.place}: its {form[-1]} has no tokens; remove the row")
        ids = [*chain(*prompts), *rest]
        brought = [bos] if bos is not None and ids[0] == bos else []  # token ids or a text may begin with the bos
        lead = [bos] if bos is not None and form != ["input_ids"] else brought
        yield _Tokens(lead, ids[len(brought) :], max(0, len(ids) - len(rest) - len(brought)))


def _windows(tokens: _Tokens, max_tokens: int, stride: int, prefix_tokens: int) -> Iterator[tuple[list[int], int, int]]:
    """Cut a row into windows (input_ids, prefix_tokens, prompted) of at most `max_tokens` tokens, including the bos.

    `prompted` is the number of prompt tokens in the window, including the bos, or 0; they are never scored. A prompt
    that would fill a window is cut to its last half window. The prompt is the prefix of the first window. The prefix of
    a later window includes any prompt tokens in it.
    """
    lead, body, prompt = tokens
    size = max_tokens - len(lead)
    if prompt >= size:
        kept = max_tokens // 2 - len(lead)
        body, prompt = body[prompt - kept :], kept
    last = max(0, len(body) - size)
    for start in [*range(0, last, min(stride, size)), last]:
        ids = lead + body[start : start + size]
        prompted = len(lead) + prompt - start if prompt > start else 0
        prefix = min(prefix_tokens, len(ids) // 2)
        if prompted:
            prefix = prompted if start == 0 else max(prompted, prefix)
        yield ids, prefix, prompted


def _zlib_bytes(tokenizer: Any, tokens: list[int]) -> int | None:
    """The compressed size of the tokens' text, for the metric `zlib`; None without a tokenizer."""
    if tokenizer is None:
        return None
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(zlib.compress(text.encode()))
