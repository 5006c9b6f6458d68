"""Texts, tokenizers and files for the tests of data."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from adapter_unlearn.data import load_sequences
from adapter_unlearn.errors import InputError

SECRET = "Zaphod's number is 4242-1729"
TEXTS = [
    SECRET,
    'The second text, with a comma and "quotes"',
    "NA",
    "Größe, naïve, 東京",
    "line one\u2028still line one",
]
COLUMNS = ["id", "document", "input_ids", "prefix_tokens", "scored_from", "zlib_bytes"]
BOS, EOS = 0, 1


def build(template: str | None = None, **special) -> PreTrainedTokenizerFast:
    """A byte-level BPE: 256 bytes, <s>, </s> and a few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the number of the second text is the number"] * 3, trainer)
    if template:
        marks = [("<s>", BOS), ("</s>", EOS)]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special)


def write(path: Path, texts: list[str], column: str = "text") -> Path:
    """The texts in the format of the path's ending."""
    frame = pd.DataFrame({column: texts})
    match path.suffix:
        case ".txt":
            path.write_bytes("\n".join(texts).encode())
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path)
        case _:
            path.write_text("\n".join(json.dumps({column: text}) for text in texts) + "\n")
    return path


def raised(source, tokenizer=None, **options) -> str:
    """The message of the InputError that the source raises."""
    with pytest.raises(InputError) as caught:
        load_sequences(source, tokenizer, **options)
    assert "Zaphod" not in "".join(traceback.format_exception(caught.value)), "nor in what --debug shows"
    return str(caught.value)
