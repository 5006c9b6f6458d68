"""Score a file's sequences: each row is on disk soon after it is known, so that a set may be larger than its table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from adapter_unlearn import models, recipe, scoring
from adapter_unlearn.metrics import table
from adapter_unlearn.pipeline import loading
from adapter_unlearn.pipeline.common import check_output, load_base, new_accelerator, on_first_process
from adapter_unlearn.runs import run_folder

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator

    from adapter_unlearn.models import Quantization
    from adapter_unlearn.recipe import Source


def score_files(
    model: str,
    forget: Source,
    adapter: Sequence[str | Path] = (),
    quantization: Quantization = "nf4",
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    metrics: Sequence[str] = scoring.DEFAULT_METRICS,
    max_tokens: int = 200,
    prefix_tokens: int = 50,
    batch_size: int = 16,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    force: bool = False,
) -> scoring.Overview:
    """Score the sequences of a file with a model, named as on the command line.

    No more of the table is held than a part of it and what is returned; the file holds what scoring.score gives.

    Args:
        model: folder or hub id.
        forget: the texts to score.
        adapter: adapter folders to stack on the model.
        quantization: nf4, int8 or none.
        dtype: of what is not quantized.
        metrics: rows of the metrics table.
        max_tokens: longer texts become windows.
        prefix_tokens: tokens given before the rest must be recited.
        batch_size: sequences in one forward.
        output_dir: where to write sequences.parquet; None writes nothing.
        overwrite: replace scores that stand there.
        force: go on where an adapter was made for another base.

    Returns:
        How many rows there are, the mean of every metric, and the most memorized rows.

    Raises:
        UserError: a file, the model, an adapter or the folder can't be used.
    """
    table.resolve(metrics)
    run = recipe.checked(recipe.Recipe(
        model=recipe.Model(name=model, quantization=quantization, dtype=dtype),
        data=recipe.Data(forget, max_tokens=max_tokens, prefix_tokens=prefix_tokens),
        evaluation=recipe.Evaluation(metrics=list(metrics), batch_size=batch_size),
    ))  # fmt: skip
    if output_dir is not None:
        check_output(output_dir, overwrite, run.model, run.data, adapter)
    accelerator = new_accelerator()
    given, _ = loading.load(run.model, run.data)
    base: Any = load_base(run.model, adapter, force)
    scored = models.stack(base, adapter) if adapter else base
    overview = scoring.Overview()
    with _rows_file(output_dir, overwrite, accelerator) as write:
        for part in scoring.score_parts(scored, given.forget, metrics, batch_size, accelerator):
            write(part)
            overview.add(part)
        overview.check()
    return overview


@contextmanager
def _rows_file(
    output_dir: str | Path | None, overwrite: bool, accelerator: Accelerator
) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield what appends rows to output_dir/sequences.parquet; the folder takes its place when all are written.

    The first process writes. What fails there fails everywhere, so that none waits for ever.

    Args:
        output_dir: the folder to be; None writes nothing.
        overwrite: replace scores that stand there.
        accelerator: this process's place among the others.

    Raises:
        OutputError: the folder can't be written.
    """
    if output_dir is None:
        yield lambda part: None
        return
    with ExitStack() as opened:  # on the first process: the staging folder, and then the file in it
        place: list[Path] = []
        writer: list[pq.ParquetWriter] = []

        def enter() -> None:
            place.append(opened.enter_context(run_folder.new_folder(output_dir, overwrite)))

        def write(part: pd.DataFrame) -> None:
            with run_folder.telling_of_the_disk(output_dir):
                schema = writer[0].schema if writer else None
                table = pa.Table.from_pandas(part, schema, preserve_index=False)
                if not writer:
                    file = pq.ParquetWriter(place[0] / "sequences.parquet", table.schema)
                    writer.append(opened.enter_context(file))
                writer[0].write_table(table)

        on_first_process(accelerator, enter)
        yield lambda part: on_first_process(accelerator, lambda: write(part))
        on_first_process(accelerator, opened.close)
