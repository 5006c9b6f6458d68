"""The command line as a user meets it: what it prints, what it refuses, and that it answers at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers import random_rows

import adapter_unlearn
from adapter_unlearn import cli, load_recipe, pipeline
from adapter_unlearn.recipe import shipped

PLAIN = {"quantization": "none", "dtype": "float32"}
SECRET = "correct horse battery staple"


@pytest.fixture
def arguments(memorizers, write_rows, tmp_path):
    """Flags of a small run that works."""
    return {
        "--model.name": str(memorizers("llama")),
        "--model.quantization": "none",
        "--model.dtype": "float32",
        "--data.forget": write_rows("forget.jsonl", random_rows(0)),
        "--method.name": "sga",
        "--training.max_epochs": "2",
        "--output_dir": str(tmp_path / "run"),
    }


def unlearn(arguments, debug=False, **changes):
    given = arguments | {f"--{key}": value for key, value in changes.items()}
    verb = ["--debug", "unlearn"] if debug else ["unlearn"]
    return cli.main([*verb, *(word for pair in given.items() if pair[1] is not None for word in pair)])


# --- help and verbs ---


@pytest.mark.parametrize("verb", [None, *cli.COMMANDS])
def test_help_is_quick_and_loads_no_torch(verb):
    words = ["--help"] if verb is None else [verb, "--help"]
    code = f"import sys; from adapter_unlearn.cli import main; main({words}); print('torch' in sys.modules)"
    took = []
    for _ in range(3):  # the machine may be busy: the best of three
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        took.append(time.monotonic() - started)
        if took[-1] < 1.5:
            break
    assert done.stdout.splitlines()[-1] == "False"
    assert min(took) < 1.5
    assert f"adapter-unlearn {verb or 'COMMAND'}" in done.stdout


def test_public_names_are_there():
    assert sorted(adapter_unlearn.__all__) == adapter_unlearn.__all__
    assert set(adapter_unlearn._MODULES) == set(adapter_unlearn.__all__)
    for name in adapter_unlearn.__all__:
        assert getattr(adapter_unlearn, name).__doc__
    with pytest.raises(AttributeError):
        adapter_unlearn.nothing  # noqa: B018


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == adapter_unlearn.__version__


# --- bad input: one line, exit code 2, nothing left ---


def text_file(folder: Path, name: str, content: str | bytes) -> str:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)


def bad_inputs(tmp_path: Path, memorizers):
    """name -> (changes to a run that works, what the message must name)."""
    ids = random_rows(0)[0]
    row, long = json.dumps({"input_ids": ids}), json.dumps({"input_ids": ids * 9})
    weightless, empty = tmp_path / "weightless", tmp_path / "empty"
    weightless.mkdir(), empty.mkdir()
    (weightless / "config.json").write_text((memorizers("llama") / "config.json").read_text())
    (tmp_path / "photos").mkdir()
    text_file(tmp_path / "photos", "cat.png", "mine")
    (tmp_path / "old").mkdir()
    text_file(tmp_path / "old", "unlearning.json", "{}")
    data = "data.forget"
    return {
        "missing file": ({data: str(tmp_path / "none.jsonl")}, "none.jsonl"),
        "empty file": ({data: text_file(tmp_path, "void.jsonl", "")}, "void.jsonl"),
        "blank text": ({data: text_file(tmp_path, "blank.jsonl", f'{row}\n{{"input_ids": []}}\n')}, "2"),
        "invalid utf-8": ({data: text_file(tmp_path, "latin.csv", b"text\ncaf\xe9\n")}, "latin.csv"),
        "broken json": ({data: text_file(tmp_path, "broken.jsonl", f'{{"text": "{SECRET}')}, "broken.jsonl"),
        "wrong column": ({data: text_file(tmp_path, "wrong.jsonl", '{"body": "x"}\n')}, "text"),
        "text without tokenizer": ({data: text_file(tmp_path, "t.txt", SECRET)}, "tokenizer"),
        "token outside the vocabulary": ({data: text_file(tmp_path, "v.jsonl", '{"input_ids": [1, 999]}')}, "v.jsonl"),
        "negative token": ({data: text_file(tmp_path, "n.jsonl", '{"input_ids": [1, -1]}')}, "n.jsonl"),
        "no row can be scored": ({data: text_file(tmp_path, "s.jsonl", '{"input_ids": [1]}')}, "scored"),
        "pickled array": ({data: text_file(tmp_path, "p.npy", b"\x80\x04pickle")}, "p.npy"),
        "unknown ending": ({data: text_file(tmp_path, "a.docx", SECRET)}, "a.docx"),
        "unknown key": ({"training.speed": "9"}, "training.speed"),
        "threshold out of range": ({"method.name": "sga", "method.threshold": "1.5"}, "method.threshold"),
        "unknown method": ({"method.name": "magic"}, "magic"),
        "no method and no holdout": ({"method.name": None}, "data.holdout"),
        "unknown metric": ({"evaluation.metrics": "[vibes]"}, "vibes"),
        "wrong type": ({"training.batch_size": "many"}, "training.batch_size"),
        "retain weight without retain set": ({"method.name": "ga", "method.retain_weight": "1.0"}, "data.retain"),
        "holdout level without holdout": ({"stop.max_below": "holdout"}, "data.holdout"),
        "no such model": ({"model.name": str(tmp_path / "nothing")}, "nothing"),
        "model without weights": ({"model.name": str(weightless)}, "weights"),
        "folder that is no model": ({"model.name": str(empty)}, "config.json"),
        "missing target module": ({"adapter.target_modules": "[warp_drive]"}, "adapter.target_modules"),
        "sequence too long": ({"data.max_tokens": "500", data: text_file(tmp_path, "l.jsonl", long)}, "max_tokens"),
        "carried adapter missing": ({"model.adapter": str(empty)}, "adapter_config.json"),
        "output holds a run": ({"output_dir": str(tmp_path / "old")}, "--overwrite"),
        "output holds other files": ({"output_dir": str(tmp_path / "photos")}, "photos"),
        "output is a file": ({"output_dir": text_file(tmp_path, "file", "mine")}, "file"),
        "unknown tracker": ({"tracking": "abacus"}, "abacus"),
        "tracker not installed": ({"tracking": "comet_ml"}, "comet_ml"),
        "empty list": ({data: "[]"}, "data"),
        "seed too large": ({"seed": str(2**32)}, "seed"),
        "method is a list": ({"method.name": "[sga]"}, "method.name"),
        "half a sequence": ({"method.name": "sga", "method.retain_sequences": "2.5"}, "method.retain_sequences"),
        "no form": ({"evaluation.forms": "[]"}, "evaluation.forms"),
        "star is no pattern": ({"adapter.target_modules": "*"}, "target_modules"),
        "rank beyond memory": ({"adapter.r": "100000000000"}, "adapter"),
        "output inside a file": ({"output_dir": text_file(tmp_path, "plain", "mine") + "/run"}, "plain"),
        "output name too long": ({"output_dir": str(tmp_path / ("x" * 300))}, "output_dir"),
        "output is the model": ({"model.name": str(weightless), "output_dir": str(weightless)}, "weightless"),
        "set of short rows": ({"data.holdout": text_file(tmp_path, "r.jsonl", '{"input_ids": [1]}')}, "holdout"),
    }  # fmt: skip


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("case", range(42))
def test_bad_input_is_one_line_and_leaves_nothing(case, arguments, memorizers, tmp_path, capfd):
    inputs = bad_inputs(tmp_path, memorizers)
    name = list(inputs)[case]
    changes, named = inputs[name]
    before = listing(tmp_path)
    assert unlearn(arguments, **changes) == 2, name
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("adapter-unlearn: error: "), err
    assert named in lines[0], lines[0]
    assert SECRET not in out + err and "Traceback" not in err
    assert listing(tmp_path) == before, "something was left behind"


def test_every_bad_input_is_tested(memorizers, tmp_path):
    assert len(bad_inputs(tmp_path, memorizers)) == 42


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["unlern"], "unlern"),
        (["unlearn", "--config", "none.yaml"], "none.yaml"),
        (["unlearn", "--config=none.yaml"], "none.yaml"),
        (["unlearn"], "model.name"),
        (["score", "--model", "m"], "forget"),
        (["score", "--model", "m", "--forget", "f.jsonl", "--quantization", "nf3"], "nf3"),
        (["evaluate", "--model", "m", "--forget", "f", "--adapter", "a", "--forms", "melted"], "melted"),
        (["merge", "--model", "m", "--adapter", "a"], "output_dir"),
        (["merge", "--model", "m", "--adapter", "a", "--output_dir", "o", "--quantization", "fp4"], "fp4"),
        (["negate", "--adapter", "a", "--output_dir", "o", "--search"], "--model and --forget"),
        (["evaluate", "--model", "m", "--forget", "f", "--adapter", "a", "--matrix", "--limit", "few"], "limit"),
        (["recipes", "copy"], "recipes copy"),
        (["recipes", "copy", "no/such", "sga", "x.yaml"], "no/such"),
        (["recipes", "copy", "tiny-cpu", "../../etc/passwd", "x.yaml"], "passwd"),
    ],
)
def test_bad_flags(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert named in err and len(err.strip().splitlines()) == 1
    assert listing(tmp_path) == []


def test_debug_shows_the_traceback(arguments):
    with pytest.raises(adapter_unlearn.InputError):
        unlearn(arguments, **{"data.forget": "none.jsonl"}, debug=True)


def test_a_full_disk_leaves_nothing(arguments, tmp_path, monkeypatch, capfd):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    assert unlearn(arguments) == 2
    err = capfd.readouterr().err.splitlines()[-1]
    assert "No space left on device" in err and not (tmp_path / "run").exists()
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


# --- verbs that work ---


def test_unlearn_score_and_evaluate(arguments, tmp_path, capfd):
    assert unlearn(arguments, **{"data.holdout": arguments["--data.forget"]}) == 0
    out = capfd.readouterr().out
    assert "PeftModel.from_pretrained" in out and str(tmp_path / "run") in out
    common = ["--model", arguments["--model.name"], "--quantization", "none", "--dtype", "float32"]
    common += ["--forget", arguments["--data.forget"]]
    assert cli.main(["score", *common, "--output_dir", str(tmp_path / "scores"), "--metrics", "loss"]) == 0
    scores = pd.read_parquet(tmp_path / "scores" / "sequences.parquet")
    assert list(scores) == ["id", "n_tokens", "loss", "note"] and "mean over all 10" in capfd.readouterr().out
    evaluation = tmp_path / "evaluation"
    assert cli.main(["evaluate", *common, "--adapter", str(tmp_path / "run"), "--output_dir", str(evaluation)]) == 0
    run = json.loads((tmp_path / "run" / "summary.json").read_text())["forms"]
    again = json.loads((evaluation / "summary.json").read_text())["forms"]
    for form in ("base", "stacked"):
        for key in ("memorization_accuracy_mean", "extractable", "loss_mean"):
            assert again[form][key] == pytest.approx(run[form][key], rel=1e-5)
    assert (evaluation / "report.html").is_file()


def test_overwrite(arguments, tmp_path):
    run = yaml.safe_load("{training: {max_epochs: 1}}")
    assert unlearn(arguments) == 0
    first = json.loads((tmp_path / "run" / "unlearning.json").read_text())
    words = [word for pair in (arguments | {"--training.max_epochs": "1"}).items() for word in pair]
    assert cli.main(["unlearn", *words, "--overwrite"]) == 0
    second = json.loads((tmp_path / "run" / "unlearning.json").read_text())
    assert (first["cost"]["epochs"], second["cost"]["epochs"]) == (2, run["training"]["max_epochs"])


def test_recipes(tmp_path, capsys):
    assert cli.main(["recipes", "list"]) == 0
    listed = capsys.readouterr().out
    for kind in shipped.KINDS:
        assert all(f"  {name} " in listed for name in shipped.names(kind))
    file = str(tmp_path / "my.yaml")
    assert cli.main(["recipes", "copy", "tiny-cpu", "sga", file]) == 0
    assert load_recipe(file) == load_recipe(["models/tiny-cpu", "methods/sga"])
    for words in (["tiny-cpu", "sga", file], ["sga", "tiny-cpu", file + "2"], ["tiny-cpu", file + "2"]):
        assert cli.main(["recipes", "copy", *words]) == 2, "exists, swapped, no file"
    assert [path.name for path in tmp_path.iterdir()] == ["my.yaml"]


def test_negate_and_combine(arguments, tmp_path, capfd):
    assert unlearn(arguments) == 0
    run, taken_back, nothing = (str(tmp_path / name) for name in ("run", "taken-back", "nothing"))
    assert cli.main(["negate", "--adapter", run, "--output_dir", taken_back]) == 0
    both = ["--adapters", run, taken_back, "--weights", "1.0", "1.0", "--rank", "4"]
    assert cli.main(["combine", *both, "--output_dir", nothing]) == 0
    found = pipeline.evaluate(arguments["--model.name"], nothing, arguments["--data.forget"], None, **PLAIN)
    base, stacked = (found.sequences.query(f"form == '{form}'")["loss"].to_numpy() for form in ("base", "stacked"))
    assert stacked == pytest.approx(base, rel=1e-4)
    assert cli.main(["combine", "--adapters", run, "--weights", "1", "2", "--output_dir", str(tmp_path / "x")]) == 2
    assert cli.main(["negate", "--adapter", run, "--output_dir", run]) == 2
    assert cli.main(["negate", "--adapter", str(tmp_path), "--output_dir", str(tmp_path / "x")]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 3 and not (tmp_path / "x").exists()


def test_evaluate_takes_several_adapters(arguments, tmp_path):
    assert unlearn(arguments) == 0
    assert unlearn(arguments, output_dir=str(tmp_path / "second"), seed="1") == 0
    both = [tmp_path / "run", tmp_path / "second"]
    found = pipeline.evaluate(arguments["--model.name"], both, arguments["--data.forget"], **PLAIN)
    single = pipeline.evaluate(arguments["--model.name"], both[0], arguments["--data.forget"], **PLAIN)
    base = found.sequences.query("form == 'base'")["loss"]
    assert base.equals(single.sequences.query("form == 'base'")["loss"])
    assert not found.sequences["loss"].equals(single.sequences["loss"])
    assert re.fullmatch(r"base|stacked", found.sequences["form"].iloc[0])


def test_merge_search_and_matrix(arguments, tmp_path, capfd):
    assert unlearn(arguments, **{"model.quantization": "nf4"}) == 0
    run, model, forget = str(tmp_path / "run"), arguments["--model.name"], arguments["--data.forget"]
    plain = ["--dtype", "float32"]
    merged = str(tmp_path / "merged")
    assert cli.main(["merge", "--model", model, "--adapter", run, "--output_dir", merged, *plain]) == 0
    assert cli.main(["merge", "--model", merged, "--adapter", run, "--output_dir", str(tmp_path / "x")]) == 2
    assert "made for another base" in capfd.readouterr().err
    stored = str(tmp_path / "nf4")
    words = ["merge", "--model", model, "--adapter", run, "--output_dir", stored, "--quantization", "nf4", *plain]
    assert cli.main(words) == 0
    words = ["evaluate", "--model", stored, "--adapter", run, "--forget", forget, "--forms", "merged", *plain]
    assert cli.main([*words, "--force"]) == 2, "nothing is merged into quantized weights"
    assert "stored as nf4" in capfd.readouterr().err
    common = ["--model", model, "--forget", forget, *plain]
    searched = str(tmp_path / "searched")
    words = ["negate", "--adapter", run, "--search", *common, "--scales", "0.5", "1", "--output_dir", searched]
    assert cli.main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "searched" / "scale_search.jsonl").read_text().splitlines()]
    assert {0.0, 0.5, 1.0} <= {row["scale"] for row in rows} and "scaled by" in capfd.readouterr().out
    twice = ["evaluate", "--model", model, "--adapter", run, "--forget", forget, forget, "--matrix", *plain]
    assert cli.main(twice) == 2 and "named twice" in capfd.readouterr().err
    (tmp_path / "other.jsonl").write_text(Path(forget).read_text().split("\n")[0])
    matrix = ["--forget", forget, str(tmp_path / "other.jsonl"), "--matrix", "--output_dir", str(tmp_path / "matrix")]
    assert cli.main(["evaluate", "--model", model, "--adapter", run, searched, *matrix, *plain]) == 0
    assert len(pd.read_parquet(tmp_path / "matrix" / "interference.parquet")) == 4 * 2
