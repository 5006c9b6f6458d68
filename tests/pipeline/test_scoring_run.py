"""`score_files`: its rows are on disk as they come, and are those of `score`; whole, or not there."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scoring_helpers
from datasets import Dataset
from helpers import CONFIGS, random_rows
from scoring_helpers import METRICS, ROWS, fill_the_disk, options
from transformers import AutoModelForCausalLM

from adapter_unlearn import InputError, ModelError, OutputError, load_base, load_sequences, pipeline, scoring
from adapter_unlearn.data import Sets
from adapter_unlearn.pipeline import scoring_run
from adapter_unlearn.pipeline.loading import Loaded
from adapter_unlearn.recipe import Permissions
from adapter_unlearn.scoring import scores


@pytest.fixture
def given(memorizers, write_rows):
    """What score_files takes, and its sequences."""
    file = write_rows("forget.jsonl", ROWS)
    return options(str(memorizers("llama")), file), load_sequences(file)


def expected(given) -> pd.DataFrame:
    arguments = given[0]
    return scoring_helpers.expected(arguments["model"].name, arguments["data"].forget)


@pytest.mark.parametrize("part", [1024, 4, 1])
def test_the_file_holds_what_score_gives(given, tmp_path, monkeypatch, part):
    monkeypatch.setattr(scores, "PART", part)
    frame = expected(given)
    overview = pipeline.score_files(**given[0], output_dir=tmp_path / "scores")
    assert {path.name for path in (tmp_path / "scores").iterdir()} == {"scores.json", "sequences.parquet"}
    written = pd.read_parquet(tmp_path / "scores" / "sequences.parquet")
    exact = {"rtol": 1e-5, "atol": 1e-6} if part < len(frame) else {"check_exact": True}
    pd.testing.assert_frame_equal(written, frame, **exact)
    frame.to_parquet(tmp_path / "whole.parquet", index=False)
    schemas = [pq.read_schema(tmp_path / name) for name in ("whole.parquet", "scores/sequences.parquet")]
    assert schemas[0].equals(schemas[1], check_metadata=True)
    assert overview.n == len(frame)
    pd.testing.assert_series_equal(overview.means, frame[METRICS].mean(), rtol=1e-5)
    assert overview.means.isin([-np.inf]).sum() == 1, "log_p_z of what can't be drawn"
    in_order = frame.sort_values("memorization_accuracy", ascending=False, kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(overview.top, in_order, **exact)


def test_without_a_folder_nothing_is_written(given, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "PART", 4)
    before = sorted(tmp_path.rglob("*"))
    assert pipeline.score_files(**given[0]).n == len(given[1]) and sorted(tmp_path.rglob("*")) == before


def test_the_overview_keeps_the_most_memorized(given, monkeypatch):
    monkeypatch.setattr(scores, "PART", 4)
    arguments, sequences = given
    model = load_base(arguments["model"].name, "none", "float32")
    frame = expected(given)[["id", "n_tokens", "loss", "note"]].sort_values("loss", kind="stable", ignore_index=True)
    overview = scoring.Overview(max_rows=3)
    for rows in scoring.score_parts(model, sequences, ["loss"], 4):
        assert len(rows) <= 4
        overview.add(rows)
        assert len(overview.top) <= 3
    assert overview.top["id"].tolist() == frame["id"][:3].tolist(), "a low loss is a memorized one"


def spy_on_parts(monkeypatch, seen) -> None:
    """Call `seen` with the number of each part before it is scored."""
    monkeypatch.setattr(scores, "PART", 4)
    whole, number = scores._table, iter(range(100))

    def spied(*arguments):
        seen(next(number))
        return whole(*arguments)

    monkeypatch.setattr(scores, "_table", spied)


def test_rows_are_on_disk_before_the_next_are_scored(given, tmp_path, monkeypatch):
    sizes = []

    def look(_):
        assert not (tmp_path / "out" / "scores").exists()
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "out").glob(".scores.*.partial/*")))

    spy_on_parts(monkeypatch, look)
    pipeline.score_files(**given[0], output_dir=tmp_path / "out" / "scores")
    assert len(sizes) == 4 and sizes[0] == 0 and (np.diff(sizes) > 0).all()


@pytest.mark.parametrize("failure", [RuntimeError("it died"), KeyboardInterrupt()])
def test_what_dies_leaves_what_was_there(given, tmp_path, monkeypatch, failure):
    place = tmp_path / "out" / "scores"
    pipeline.score_files(**given[0], output_dir=place)
    before = (place / "sequences.parquet").read_bytes()

    def die(part):
        if part == 2:
            raise failure

    spy_on_parts(monkeypatch, die)
    with pytest.raises(type(failure)):
        pipeline.score_files(**given[0], output_dir=place, permissions=Permissions(overwrite=True))
    assert list(place.parent.iterdir()) == [place] and (place / "sequences.parquet").read_bytes() == before


def test_a_full_disk_is_one_line(given, tmp_path, monkeypatch):
    fill_the_disk(monkeypatch)
    monkeypatch.setattr(scores, "PART", 4)
    with pytest.raises(OutputError, match=r"scores: .*No space left on device"):
        pipeline.score_files(**given[0], output_dir=tmp_path / "out" / "scores")
    assert not any((tmp_path / "out").iterdir())


def test_a_folder_that_came_up_meanwhile_is_not_replaced(given, tmp_path, monkeypatch):
    place = tmp_path / "scores"

    def other(part):
        if part == 1:
            place.mkdir()
            (place / "sequences.parquet").write_bytes(b"another's")

    spy_on_parts(monkeypatch, other)
    with pytest.raises(OutputError, match=r"scores: .*sequences\.parquet.*scores\.result$"):
        pipeline.score_files(**given[0], output_dir=place)
    assert (place / "sequences.parquet").read_bytes() == b"another's"
    assert len(pd.read_parquet(tmp_path / "scores.result" / "sequences.parquet")) > 0, "the result is not lost"
    assert {entry.name for entry in tmp_path.iterdir() if "scores" in entry.name} == {"scores", "scores.result"}


def test_a_set_that_says_nothing_is_refused_as_a_whole(given, write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "PART", 2)
    model, place = given[0]["model"].name, tmp_path / "scores"
    short = [[number] for number in range(5)]
    for metrics in (["loss"], ["loss", "rouge_l"]):
        with pytest.raises(InputError, match="no sequence can be scored: loss"):
            pipeline.score_files(**options(model, write_rows("short.jsonl", short), metrics), output_dir=place)
    assert not (tmp_path / "scores").exists()
    late = write_rows("late.jsonl", [*short, [1, 2, 3]])  # whole parts without a number before the first one
    assert pipeline.score_files(**options(model, late, ["loss"]), output_dir=place).means.notna().all()


def test_a_broken_model_is_refused(given, memorizers, write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "PART", 4)
    model = AutoModelForCausalLM.from_pretrained(memorizers("llama"))
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    broken = options(str(tmp_path / "broken"), write_rows("rows.jsonl", random_rows(0)))
    with pytest.raises(ModelError, match="not finite"):
        pipeline.score_files(**broken, output_dir=tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def high_water() -> int:
    """Peak resident bytes of this process since it was last reset (Linux)."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.slow
def test_a_hundred_thousand_rows_in_flat_memory(tmp_path, monkeypatch):
    """All metrics of the forward, through score_files, without reading the file, which would hold the set itself."""
    AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(tmp_path / "model")
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 12, 100_000)
    ends = np.concatenate([[0], lengths.cumsum()])
    tokens = pa.array(generator.integers(0, 128, ends[-1]), pa.int32())
    names = pa.array(np.char.mod("row-%d", np.arange(len(lengths))))
    # Straight into Arrow: what Python lists leave behind, free but not given back, would hide tens of MiB of growth.
    columns = {
        "id": names,
        "document": names,
        "input_ids": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), tokens),
    }
    columns |= {"prefix_tokens": pa.array(lengths // 2), "scored_from": pa.array(np.ones_like(lengths))}
    sequences = Dataset(pa.table(columns))

    def peak(number: int) -> int:
        some = sequences.select(range(number))
        monkeypatch.setattr(scoring_run.loading, "load", lambda *_: Loaded(Sets(some), []))
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        arguments = options(str(tmp_path / "model"), "rows.jsonl", ["forward"], 256)
        place = tmp_path / "scores"
        overview = pipeline.score_files(**arguments, output_dir=place, permissions=Permissions(overwrite=True))
        found = high_water()
        assert overview.n == number == pq.read_metadata(tmp_path / "scores" / "sequences.parquet").num_rows
        return found

    peak(10_000)
    few, many = peak(10_000), peak(100_000)
    print(f"peak at 10,000 rows {few / 2**20:.1f} MiB, at 100,000 {many / 2**20:.1f} MiB")
    assert many - few < 8 * 2**20
