"""What the tests of `score_files` share: its arguments, what it must give, and a disk that fills up."""

from __future__ import annotations

import errno
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from helpers import random_rows

from adapter_unlearn import load_base, load_sequences, score
from adapter_unlearn.recipe import Data, Evaluation, Model

METRICS = ["loss", "rouge_l", "memorization_accuracy", "extraction_likelihood", "extractable_50", "log_p_z"]
ROWS = [[5], *random_rows(0), [5, 6], *random_rows(1, (20, 33, 8))]
"""Some are too short for some metrics, the first for every one."""


def options(model: str, forget: str, metrics=METRICS, batch_size: int = 4) -> dict[str, Any]:
    """Arguments of score_files for an unquantized model."""
    evaluation = Evaluation(metrics=list(metrics), batch_size=batch_size)
    return {
        "model": Model(model, quantization="none", dtype="float32"),
        "data": Data(forget),
        "evaluation": evaluation,
    }


def expected(model: str, forget: str) -> pd.DataFrame:
    return score(load_base(model, "none", "float32"), load_sequences(forget), METRICS, 4)


def fill_the_disk(monkeypatch) -> None:
    """The second part finds no room."""
    whole, number = pq.ParquetWriter.write_table, iter(range(100))

    def full(self, *arguments):
        if next(number) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(self, *arguments)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
