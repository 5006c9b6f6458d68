"""Score the sequences of a file. Rows are written as they are scored, so the table need not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from adapter_unlearn import scoring
from adapter_unlearn.metrics import table
from adapter_unlearn.pipeline import common, loading, manifest
from adapter_unlearn.recipe import Data, Evaluation, Model, Permissions, Recipe, checked
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights import adapter_files

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator


def score_files(
    model: Model,
    data: Data,
    adapters: Sequence[str | Path] = (),
    evaluation: Evaluation = Evaluation(metrics=list(scoring.DEFAULT_METRICS)),
    output_dir: str | Path | None = None,
    permissions: Permissions = Permissions(),
) -> scoring.Overview:
    """Score the forget set's sequences; the file holds what scoring.score returns.

    Args:
        model: the base.
        data: `forget`; other sets are not used.
        adapters: adapter folders to stack on the model.
        evaluation: metrics and batch size; the rest is not used.
        output_dir: folder for sequences.parquet and scores.json, which says what was scored; None writes nothing.
        permissions: `overwrite` earlier scores, `force` an adapter of another base, `trust_remote_code`.

    Returns:
        The number of rows, the mean of every metric, and the most memorized rows.

    Raises:
        UserError: a file, the model, an adapter or the folder can't be used.
    """
    model, data, adapters = Model.of(model), Data.of(data), common.folders_of(adapters)
    table.resolve(evaluation.metrics)
    checked(Recipe(model, data, evaluation=evaluation))
    common.check_output(output_dir, permissions, model, data, adapters)
    adapter_files.check_distinct([*common.frozen_adapters(model), *adapters])
    accelerator = common.new_accelerator()
    sets = loading.load(model, data, permissions).sets
    loaded = common.load_stacked(model, adapters, permissions)
    about = manifest.of_scores(manifest.base_identity(model, loaded), adapters, evaluation.metrics)
    overview = scoring.Overview()
    parts = scoring.score_parts(loaded, sets.forget, evaluation.metrics, evaluation.batch_size, accelerator)
    with _rows_file(output_dir, permissions.overwrite, accelerator, about) as write:
        for part in parts:
            write(part)
            overview.add(part)
        overview.check()
    return overview


@contextmanager
def _rows_file(
    output_dir: str | Path | None, overwrite: bool, accelerator: Accelerator, about: dict[str, Any]
) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield a function that appends rows to output_dir/sequences.parquet; the folder appears when all are written.

    The first process writes; an error there is raised on every process.

    Args:
        output_dir: the folder to write; None writes nothing.
        overwrite: replace earlier scores.
        accelerator: this process among the others.
        about: the manifest, written last.

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
            with run_folder.reporting_disk_errors(output_dir):
                schema = writer[0].schema if writer else None
                rows = pa.Table.from_pandas(part, schema, preserve_index=False)
                if not writer:
                    file = pq.ParquetWriter(place[0] / "sequences.parquet", rows.schema)
                    writer.append(opened.enter_context(file))
                writer[0].write_table(rows)

        def close() -> None:
            with run_folder.reporting_disk_errors(output_dir):
                run_folder.write_json(place[0] / run_folder.SCORES, about)
            opened.close()

        common.on_first_process(accelerator, enter)
        yield lambda part: common.on_first_process(accelerator, lambda: write(part))
        common.on_first_process(accelerator, close)
