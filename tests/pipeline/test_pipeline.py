"""A run from recipe to folder on the embedded default: what the folder holds, that plain PEFT loads it, and privacy."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from adapter_unlearn import (
    Data,
    Evaluation,
    Model,
    assets,
    evaluate,
    load_recipe,
    load_sequences,
    models,
    recipe,
    unlearn,
)  # fmt: skip
from adapter_unlearn.evaluation.summary import to_json
from adapter_unlearn.runs import checkpoint_file, run_folder

MODEL = assets.resolve("embedded:model")
PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from peft import PeftModel
torch.set_num_threads(1)
base_folder, run, out = sys.argv[1:]
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                            bnb_4bit_compute_dtype=torch.float32)
ids = torch.arange(1, 61)[None]
for quantization in ("nf4", "none"):
    base = AutoModelForCausalLM.from_pretrained(
        base_folder, quantization_config=config if quantization == "nf4" else None, dtype=torch.float32)
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        before = base(input_ids=ids).logits
        model = PeftModel.from_pretrained(base, run).eval()
        stacked = model(input_ids=ids).logits
        with model.disable_adapter():
            off = model(input_ids=ids).logits
    torch.save({"before": before, "stacked": stacked, "off": off}, f"{out}/{quantization}.pt")
assert "adapter_unlearn" not in sys.modules
"""


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Parts of the embedded sets as flags of a recipe."""
    folder = tmp_path_factory.mktemp("sets")
    for name, rows in (("forget", 16), ("retain", 32), ("holdout", 24), ("validation", 16), ("test", 16)):
        lines = Path(assets.resolve(f"embedded:{name}.jsonl")).read_text().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(lines[:rows]))
    return {f"data.{path.stem}": str(path) for path in folder.iterdir()}


def short_recipe(sets: dict[str, str], output_dir: Path, **changes: str) -> recipe.Recipe:
    """A few epochs of the demo's recipe."""
    flags = {
        **sets,
        "output_dir": str(output_dir),
        "method.retain_sequences": "16",
        "training.max_epochs": "3",
        "stop.max_perplexity_increase": "null",
        **changes,
    }
    return load_recipe(
        ["models/tiny-cpu", "methods/sga"], [word for key, value in flags.items() for word in (f"--{key}", value)]
    )


@pytest.fixture(scope="module")
def places(sets, tmp_path_factory):
    """Two folders with all that a short nf4 run leaves: after it was killed, and after it was resumed and finished.

    It runs in processes of its own with an empty HF cache, as a user starts it.
    """
    place = tmp_path_factory.mktemp("runs")
    (place / "recipe.yaml").write_text(recipe.to_yaml(short_recipe(sets, place / "run")))
    environment = os.environ | {"HF_HOME": str(place / "hf"), "OMP_NUM_THREADS": "1", "TMPDIR": str(place)}
    words = [sys.executable, "-m", "adapter_unlearn", "unlearn", "--config", str(place / "recipe.yaml"), "--resume"]
    with (place / "stdout.log").open("w") as output, (place / "stderr.log").open("w") as errors:
        process = subprocess.Popen(words, stdout=output, stderr=errors, env=environment, cwd=place)
        while process.poll() is None and not checkpoint_file.path_of(place / "run").exists():
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (place / "stderr.log").read_text()
    killed = shutil.copytree(place, tmp_path_factory.mktemp("killed") / "place")
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=place, check=False)
    assert done.returncode == 0, done.stderr
    (place / "stdout.log").write_text(done.stdout)
    (place / "stderr.log").write_text(done.stderr)
    return {"killed": killed, "finished": place}


@pytest.fixture(scope="module")
def run(places):
    """The folder of the run."""
    return places["finished"] / "run"


def test_the_folder_holds_what_is_promised(run):
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names >= {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "recipe.yaml", "unlearning.json",
        "summary.json", "sequences.parquet", "holdout.parquet", "train_log.jsonl", "report.html",
    }  # fmt: skip
    assert any(name.startswith("figures/") and name.endswith(".png") for name in names)
    manifest = json.loads((run / "unlearning.json").read_text())
    assert manifest["base"]["name"] == "embedded:model"
    assert manifest["base"]["fingerprint"] == run_folder.fingerprint(MODEL)
    assert manifest["method"]["name"] == "sga" and manifest["cost"]["epochs"] == 3 and manifest["seed"] == 0
    assert manifest["adapter"]["bytes"] == (run / "adapter_model.safetensors").stat().st_size < 2**20
    log = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [0, 1, 2, 3]
    assert load_recipe(run / "recipe.yaml").method == manifest["method"]


def test_summary_and_rows_agree(run):
    forms = json.loads((run / "summary.json").read_text())["forms"]
    rows = pd.read_parquet(run / "sequences.parquet")
    holdout = pd.read_parquet(run / "holdout.parquet")
    assert list(forms) == ["base", "stacked"]
    wanted = [
        "id",
        "form",
        "n_tokens",
        "memorization_accuracy",
        "extractable",
        "extractable_50",
        "extractable_any_prefix",
        "longest_verbatim_run",
    ]
    assert list(rows) == [*wanted, "loss", "note"]
    low, high = np.quantile(holdout.query("form == 'base'")["memorization_accuracy"], [0.05, 0.95])
    for form, summary in forms.items():
        mine = rows[rows["form"] == form].reset_index(drop=True)
        base = rows[rows["form"] == "base"].reset_index(drop=True)
        accuracy = mine["memorization_accuracy"]
        assert summary["n_sequences"] == len(mine)
        assert summary["memorization_accuracy_mean"] == pytest.approx(accuracy.mean())
        assert summary["memorization_accuracy_max"] == accuracy.max()
        assert summary["extractable"] == mine["extractable"].sum()
        assert summary["longest_verbatim_run_max"] == mine["longest_verbatim_run"].max()
        assert summary["loss_mean"] == pytest.approx(mine["loss"].mean())
        assert summary["bounds"] == {"kind": "holdout", "low": pytest.approx(low), "high": pytest.approx(high)}
        assert summary["outliers_high"] == (accuracy > high).sum()
        assert summary["outliers_low"] == (accuracy < low).sum()
        assert summary["outliers_low_new"] == ((accuracy < low) & ~(base["memorization_accuracy"] < low)).sum()
        assert summary["paper_bounds"]["outliers_high"] == (accuracy >= 0.6).sum()
        for name in ("holdout", "retain", "validation", "test"):
            assert summary[f"{name}_perplexity"] > 1
    assert forms["base"]["extractable"] > 0 and forms["base"]["membership_auc_loss"] > 0.9
    stacked = rows[rows["form"] == "stacked"]["loss"].mean()
    assert stacked > rows[rows["form"] == "base"]["loss"].mean(), "three epochs must make the forget set less likely"


@pytest.fixture(scope="module")
def plain_logits(run, tmp_path_factory):
    """The folder of the logits that plain PEFT gives, in a process without this package."""
    folder = tmp_path_factory.mktemp("plain")
    words = [sys.executable, "-c", PLAIN, MODEL, str(run), str(folder)]
    subprocess.run(words, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return folder


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_plain_peft_gives_the_stacked_form_and_the_base_back(run, plain_logits, quantization):
    plain = torch.load(plain_logits / f"{quantization}.pt", weights_only=True)
    ids = torch.arange(1, 61)[None]
    with torch.no_grad():
        stacked = models.stack(models.load_base(MODEL, quantization, "float32"), [run])
        assert torch.equal(stacked(input_ids=ids).logits, plain["stacked"])
        with models.active(stacked, []):
            assert torch.equal(stacked(input_ids=ids).logits, plain["before"])
    assert torch.equal(plain["off"], plain["before"])
    assert not torch.equal(plain["stacked"], plain["before"])


@pytest.mark.usefixtures("without_figures")
def test_evaluate_gives_the_run_s_own_figures(run, sets):
    data = Data(sets["data.forget"], holdout=sets["data.holdout"], test=sets["data.test"])
    report = evaluate(Model("embedded:model", dtype="float32"), run, data, Evaluation(batch_size=7))
    again, summary = to_json(report.summary)["forms"], json.loads((run / "summary.json").read_text())["forms"]
    for form in ("base", "stacked"):
        for key in ("memorization_accuracy_mean", "loss_mean", "test_perplexity", "holdout_perplexity"):
            assert again[form][key] == pytest.approx(summary[form][key], rel=1e-4)


# --- privacy ---

FORGET = Path(assets.resolve("embedded:forget.jsonl"))


@pytest.fixture(scope="module")
def needles() -> list[bytes]:
    """The forget set's texts, and any 8 of their tokens in a row as text or ids, as bytes of a file."""
    tokenizer = models.load_tokenizer(MODEL)
    found = [json.loads(line)["text"].encode() for line in FORGET.read_text().splitlines()]
    for row in load_sequences(FORGET, tokenizer)["input_ids"]:
        for start in range(0, len(row) - 7):
            eight = row[start : start + 8]
            found.append(tokenizer.decode(eight).strip().encode())
            found += [mark.join(map(str, eight)).encode() for mark in (", ", ",", " ", "\n")]
            found += [np.array(eight, kind).tobytes() for kind in ("int64", "int32", "int16")]
    return [needle for needle in found if len(needle) > 12]


def leaks(folder: Path, needles: list[bytes]) -> list[str]:
    """The names of the files that hold one of the needles."""
    names = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += pd.read_parquet(path).to_csv().encode()
        if holds_any(content, needles):
            names.append(path.name)
    return names


def holds_any(content: bytes, needles: list[bytes]) -> bool:
    """any(needle in content for needle in needles), a hundred times as fast: first by the first 8 bytes."""
    by_start: dict[bytes, list[bytes]] = {}
    for needle in needles:
        by_start.setdefault(needle[:8], []).append(needle)
    eights = np.lib.stride_tricks.sliding_window_view(np.frombuffer(content.ljust(8, b"\0"), np.uint8), 8)
    starts = np.frombuffer(b"".join(by_start), np.uint64)
    hits = np.flatnonzero(np.isin(np.ascontiguousarray(eights).view(np.uint64)[:, 0], starts))
    return any(content.startswith(needle, hit) for hit in hits for needle in by_start[content[hit : hit + 8]])


def test_the_search_is_that_of_the_definition():
    generator = np.random.default_rng(0)
    content = generator.integers(0, 3, 400).astype(np.uint8).tobytes()
    needles = [generator.integers(0, 3, 13).astype(np.uint8).tobytes() for _ in range(300)]
    assert not holds_any(content, [needle for needle in needles if needle not in content])
    for start in (0, 1, 200, 387):
        assert holds_any(content, [*needles, content[start : start + 13]])
    assert not holds_any(b"", needles)


def test_no_forgotten_text_anywhere(places, needles):
    """Not in the run folder, the checkpoint, the logs, HF_HOME or the temporary folder, killed or finished."""
    finished, killed = ({path.name for path in places[name].rglob("*")} for name in ("finished", "killed"))
    assert {"stdout.log", "stderr.log", "report.html", "sequences.parquet"} <= finished
    assert {"stdout.log", "stderr.log", "run.checkpoint"} <= killed and "report.html" not in killed
    assert leaks(places["killed"], needles) == [] == leaks(places["finished"], needles)


@pytest.mark.parametrize("name", ["run.checkpoint", "stderr.log", "hf/datasets/cache.arrow", "adapter-unlearn/rows"])
def test_a_leak_of_a_killed_run_is_found(places, needles, tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    content = (places["killed"] / name).read_bytes() if (places["killed"] / name).is_file() else b""
    file.write_bytes(content + json.dumps(tokens(2)[5:15]).encode())
    assert leaks(tmp_path, needles) == [file.name]


def tokens(row: int) -> list[int]:
    return load_sequences(FORGET, models.load_tokenizer(MODEL))[row]["input_ids"]


def decoded(row: int) -> str:
    return json.loads(FORGET.read_text().splitlines()[row])["text"]


PLANTS = {
    "text": lambda file: file.write_text("x" + decoded(3)),
    "a few words": lambda file: file.write_text(models.load_tokenizer(MODEL).decode(tokens(1)[20:40])),
    "ids in JSON": lambda file: file.write_text(json.dumps({"ids": tokens(2)[5:15]})),
    "ids in an array": lambda file: np.array(tokens(4)[:9], "int32").tofile(file),
    "a cell of a table": lambda file: pd.DataFrame({"note": ["", decoded(0)]}).to_parquet(file),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_leak_is_found(run, needles, tmp_path, plant):
    copy = shutil.copytree(run / "figures", tmp_path / "run" / "figures")
    file = copy / ("leak.parquet" if "table" in plant else "leak.bin")
    PLANTS[plant](file)
    assert leaks(tmp_path, needles) == [file.name]


# --- a frozen base adapter ---


@pytest.mark.usefixtures("without_figures")
def test_a_frozen_base_adapter_is_part_of_the_base(run, sets, tmp_path):
    changes = {"model.adapter": str(run), "training.max_epochs": "1"}
    second = unlearn(short_recipe(sets, tmp_path / "second", **changes))
    forms = json.loads((second / "summary.json").read_text())["forms"]
    before = json.loads((run / "summary.json").read_text())["forms"]
    assert forms["base"]["loss_mean"] == pytest.approx(before["stacked"]["loss_mean"], rel=1e-4)
    names = {name.split(".lora_")[1] for name in load_file(second / "adapter_model.safetensors")}
    assert names == {"A.weight", "B.weight"}
    model = Model("embedded:model", dtype="float32", adapter=str(run))
    report = evaluate(model, second, Data(sets["data.forget"]))
    again = to_json(report.summary)["forms"]
    for form in ("base", "stacked"):
        assert again[form]["loss_mean"] == pytest.approx(forms[form]["loss_mean"], rel=1e-4)
