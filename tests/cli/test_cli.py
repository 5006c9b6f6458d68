"""The command line as a user meets it: what it prints, what it refuses, and what its flags come from."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonargparse
import pandas as pd
import pytest
import yaml
from helpers import random_rows

import adapter_unlearn
from adapter_unlearn import cli, load_recipe, pipeline, recipe
from adapter_unlearn.recipe import Data, Evaluation, Model, Permissions, shipped
from adapter_unlearn.runs import run_folder

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


def plain(arguments, adapters) -> tuple[Model, Any, Data]:
    """What evaluate takes first."""
    model = Model(arguments["--model.name"], quantization="none", dtype="float32")
    return model, adapters, Data(arguments["--data.forget"])


def unlearn(arguments, debug=False, **changes):
    given = arguments | {f"--{key}": value for key, value in changes.items()}
    command = ["--debug", "unlearn"] if debug else ["unlearn"]
    return cli.main([*command, *(word for pair in given.items() if pair[1] is not None for word in pair)])


# --- help ---


@pytest.mark.parametrize("name", [None, *cli.COMMANDS])
def test_help_loads_nothing_heavy(name):
    words = ["--help"] if name is None else [name, "--help"]
    code = f"import sys; from adapter_unlearn.cli import main; main({words}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "jsonargparse" in loaded and not loaded & {"torch", "transformers", "datasets", "pandas", "numpy"}
    assert f"adapter-unlearn {name or 'COMMAND'}" in done.stdout


def flags_of(name: str) -> dict[str, Any]:
    """The arguments of a command, by flag."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    cli.COMMANDS[name].add_arguments(parser)
    return {action.dest: action for action in parser._actions}


def test_flags_are_the_fields_of_the_recipe():
    score, evaluate, merge = (flags_of(name) for name in ("score", "evaluate", "merge"))
    assert evaluate["max_tokens"].default == Data.max_tokens and evaluate["bounds"].default == Evaluation.bounds
    assert evaluate["quantization"].default == Model.quantization and merge["quantization"].default == "none"
    assert tuple(evaluate["quantization"].choices) == get_args(get_type_hints(Model)["quantization"])
    assert tuple(evaluate["forms"].choices) == get_args(recipe.Form) and evaluate["forms"].nargs == "+"
    assert score["forget"].required and score["forget"].nargs == "+" and not flags_of("negate")["forget"].required
    assert all(action.help for action in evaluate.values())


def test_permissions_are_flags_of_every_command_that_loads_a_model():
    for name in ("score", "evaluate", "compare", "negate", "merge"):
        assert {field.name for field in fields(Permissions)} - {"resume"} <= flags_of(name).keys()


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


def put(folder: Path, name: str, content: str | bytes) -> str:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)


IDS = random_rows(0)[0]
ROW, LONG = json.dumps({"input_ids": IDS}), json.dumps({"input_ids": IDS * 9})
FORGET = "data.forget"
BAD_INPUTS: dict[str, tuple[Callable[[Path], dict[str, str | None]], str]] = {
    "missing file": (lambda p: {FORGET: str(p / "none.jsonl")}, "none.jsonl"),
    "empty file": (lambda p: {FORGET: put(p, "void.jsonl", "")}, "void.jsonl"),
    "blank text": (lambda p: {FORGET: put(p, "blank.jsonl", f'{ROW}\n{{"input_ids": []}}\n')}, "2"),
    "invalid utf-8": (lambda p: {FORGET: put(p, "latin.csv", b"text\ncaf\xe9\n")}, "latin.csv"),
    "broken json": (lambda p: {FORGET: put(p, "broken.jsonl", f'{{"text": "{SECRET}')}, "broken.jsonl"),
    "wrong column": (lambda p: {FORGET: put(p, "wrong.jsonl", '{"body": "x"}\n')}, "text"),
    "text without tokenizer": (lambda p: {FORGET: put(p, "t.txt", SECRET)}, "tokenizer"),
    "token outside the vocabulary": (lambda p: {FORGET: put(p, "v.jsonl", '{"input_ids": [1, 999]}')}, "v.jsonl"),
    "negative token": (lambda p: {FORGET: put(p, "n.jsonl", '{"input_ids": [1, -1]}')}, "n.jsonl"),
    "no row can be scored": (lambda p: {FORGET: put(p, "s.jsonl", '{"input_ids": [1]}')}, "scored"),
    "pickled array": (lambda p: {FORGET: put(p, "p.npy", b"\x80\x04pickle")}, "p.npy"),
    "unknown ending": (lambda p: {FORGET: put(p, "a.docx", SECRET)}, "a.docx"),
    "unknown key": (lambda p: {"training.speed": "9"}, "training.speed"),
    "threshold out of range": (lambda p: {"method.name": "sga", "method.threshold": "1.5"}, "method.threshold"),
    "unknown method": (lambda p: {"method.name": "magic"}, "magic"),
    "no method and no holdout": (lambda p: {"method.name": None}, "data.holdout"),
    "unknown metric": (lambda p: {"evaluation.metrics": "[vibes]"}, "vibes"),
    "wrong type": (lambda p: {"training.batch_size": "many"}, "training.batch_size"),
    "retain weight without retain set": (lambda p: {"method.name": "ga", "method.retain_weight": "1.0"}, "data.retain"),
    "holdout level without holdout": (lambda p: {"stop.max_below": "holdout"}, "data.holdout"),
    "no such model": (lambda p: {"model.name": str(p / "nothing")}, "nothing"),
    "model without weights": (lambda p: {"model.name": str(p / "weightless")}, "weights"),
    "folder that is no model": (lambda p: {"model.name": str(p / "empty")}, "config.json"),
    "missing target module": (lambda p: {"adapter.target_modules": "[warp_drive]"}, "adapter.target_modules"),
    "sequence too long": (lambda p: {"data.max_tokens": "500", FORGET: put(p, "l.jsonl", LONG)}, "max_tokens"),
    "frozen adapter missing": (lambda p: {"model.adapter": str(p / "empty")}, "adapter_config.json"),
    "output holds a run": (lambda p: {"output_dir": str(p / "old")}, "--overwrite"),
    "output holds other files": (lambda p: {"output_dir": str(p / "photos")}, "photos"),
    "output is a file": (lambda p: {"output_dir": put(p, "file", "mine")}, "file"),
    "unknown tracker": (lambda p: {"tracking": "abacus"}, "abacus"),
    "tracker not installed": (lambda p: {"tracking": "comet_ml"}, "comet_ml"),
    "empty list": (lambda p: {FORGET: "[]"}, "data"),
    "seed too large": (lambda p: {"seed": str(2**32)}, "seed"),
    "method is a list": (lambda p: {"method.name": "[sga]"}, "method.name"),
    "half a sequence": (lambda p: {"method.name": "sga", "method.retain_sequences": "2.5"}, "method.retain_sequences"),
    "no form": (lambda p: {"evaluation.forms": "[]"}, "evaluation.forms"),
    "star is no pattern": (lambda p: {"adapter.target_modules": "*"}, "target_modules"),
    "rank beyond memory": (lambda p: {"adapter.r": "100000000000"}, "adapter"),
    "output inside a file": (lambda p: {"output_dir": put(p, "plain", "mine") + "/run"}, "plain"),
    "output name too long": (lambda p: {"output_dir": str(p / ("x" * 300))}, "output_dir"),
    "output is the model": (lambda p: dict.fromkeys(("model.name", "output_dir"), str(p / "weightless")), "weightless"),
    "set of short rows": (lambda p: {"data.holdout": put(p, "r.jsonl", '{"input_ids": [1]}')}, "holdout"),
}  # fmt: skip
"""Name -> (makes the changes to a run that works, what the message must name)."""


@pytest.fixture
def place(memorizers, tmp_path):
    """A folder with a model without weights, and folders that must not be written to."""
    for name in ("weightless", "empty", "photos", "old"):
        (tmp_path / name).mkdir()
    put(tmp_path / "weightless", "config.json", (memorizers("llama") / "config.json").read_text())
    put(tmp_path / "photos", "cat.png", "mine")
    (tmp_path / "old").rmdir()
    with run_folder.new_folder(tmp_path / "old") as old:
        run_folder.write_json(old / run_folder.MANIFEST, run_folder.provenance())
    return tmp_path


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_one_line_and_leaves_nothing(name, arguments, place, capfd):
    make, named = BAD_INPUTS[name]
    changes = make(place)
    before = listing(place)
    assert unlearn(arguments, **changes) == 2
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("adapter-unlearn: error: "), err
    assert named in lines[0], lines[0]
    assert SECRET not in out + err and "Traceback" not in err
    assert listing(place) == before, "something was left behind"


@pytest.mark.parametrize("key", ["model.trust_remote_code", "overwrite", "force"])
def test_no_file_grants_permissions(key, arguments, tmp_path, capfd):
    section, _, name = key.rpartition(".")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({section: {name: True}} if section else {name: True}))
    words = [word for pair in arguments.items() for word in pair]
    assert cli.main(["unlearn", "--config", str(tmp_path / "r.yaml"), *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert name in line and ("--trust_remote_code" in line or not section)


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


CODES = "\x1b[31m\x9b2J\r\u202e"


def test_no_control_character_reaches_the_terminal(arguments, tmp_path, monkeypatch, capfd):
    """From ids in the table and in notes, keys, names of files and of commands."""
    monkeypatch.setattr(logging.root, "handlers", [])  # those of pytest; the command line adds its own
    rows = [{"id": f"{CODES}{i}", "input_ids": IDS} for i in range(2)]  # duplicates, so that a note names them
    forget = put(tmp_path, "codes.jsonl", "\n".join(map(json.dumps, rows)))
    model = ["--model", arguments["--model.name"], "--quantization", "none", "--dtype", "float32"]
    assert cli.main(["score", *model, "--forget", forget]) == 0
    twice = put(tmp_path, "twice.jsonl", json.dumps(rows[0]) + "\n" + json.dumps(rows[0]))
    recipe_file = put(tmp_path, "r.yaml", json.dumps({"seed": 1, CODES: 1}))
    for words in (
        ["score", *model, "--forget", twice],
        ["score", *model, "--forget", f"{CODES}.jsonl"],
        ["score", *model, f"--{CODES}", "1"],
        ["unlearn", "--config", recipe_file],
        ["unlearn", f"--{CODES}", "1"],
        [CODES],
    ):
        assert cli.main(words) == 2
    out, err = capfd.readouterr()
    assert "\\x1b[31m" in out and "near-duplicates" in err and "\\x1b[31m" in err
    assert not [line for line in (out + err).splitlines() if not line.isprintable()]


def test_texts_in_place_of_files_are_not_quoted(arguments, tmp_path, capfd):
    texts = put(tmp_path, "texts.txt", f"{SECRET}: one\n{SECRET}: two\n")
    model = ["--model", arguments["--model.name"], "--quantization", "none"]
    evaluate = ["evaluate", *model, "--adapter", "a", "b", "--forget"]
    for words in (
        ["unlearn", "--config", texts],
        ["unlearn", "--config", SECRET],
        ["compare", "--config", texts, "--output_dir", str(tmp_path / "x")],
        ["score", *model, "--forget", SECRET],
        ["score", *model, "--forget", SECRET, "another text"],
        ["score", *model, "--forget", ""],
        ["score", *model, "--forget", texts, "--max_tokens", SECRET],
        [*evaluate, SECRET, SECRET, "--matrix"],
    ):
        assert cli.main(words) == 2, words
        err = capfd.readouterr().err
        assert len(err.splitlines()) == 1 and "correct horse" not in err
    assert unlearn(arguments, **{"data.forget": json.dumps([SECRET, "another text"])}) == 2
    err = capfd.readouterr().err
    assert "data.forget" in err and "correct horse" not in err and "another" not in err


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch, capfd):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["recipes", "list"]) == 2
    assert "working directory" in capfd.readouterr().err


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


@pytest.mark.parametrize("place", ["nowhere", "file/below"])
def test_a_place_of_temporary_files_without_use_is_found_first(place, arguments, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    before = listing(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path / place))
        patch.setattr(pipeline.unlearning_run.loading, "load", lambda *_: pytest.fail("the work began"))
        assert unlearn(arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "TMPDIR" in line and listing(tmp_path) == before


@pytest.mark.parametrize("target", ["/dev/full", None])
def test_a_result_that_cannot_be_shown_is_one_line(target):
    words = [sys.executable, "-m", "adapter_unlearn", "recipes", "list"]
    words = words if target else ["sh", "-c", 'exec "$0" "$@" >&-', *words]
    with Path(target or "/dev/null").open("w") as stream:
        done = subprocess.run(words, stdout=stream, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == (2 if target else 0) and len(done.stderr.splitlines()) == (1 if target else 0), (
        done.stderr
    )


# --- commands that work ---


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


@pytest.mark.usefixtures("without_figures")
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


@pytest.mark.usefixtures("without_figures")
def test_negate_and_combine(arguments, tmp_path, capfd):
    assert unlearn(arguments) == 0
    run, taken_back, nothing = (str(tmp_path / name) for name in ("run", "taken-back", "nothing"))
    assert cli.main(["negate", "--adapter", run, "--output_dir", taken_back]) == 0
    both = ["--adapters", run, taken_back, "--weights", "1.0", "1.0", "--rank", "4"]
    assert cli.main(["combine", *both, "--output_dir", nothing]) == 0
    report = pipeline.evaluate(*plain(arguments, nothing))
    base, stacked = (report.sequences.query(f"form == '{form}'")["loss"].to_numpy() for form in ("base", "stacked"))
    assert stacked == pytest.approx(base, rel=1e-4)
    assert cli.main(["combine", "--adapters", run, "--weights", "1", "2", "--output_dir", str(tmp_path / "x")]) == 2
    assert cli.main(["negate", "--adapter", run, "--output_dir", run]) == 2
    assert cli.main(["negate", "--adapter", str(tmp_path), "--output_dir", str(tmp_path / "x")]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 3 and not (tmp_path / "x").exists()


@pytest.mark.usefixtures("without_figures")
def test_evaluate_takes_several_adapters(arguments, tmp_path):
    assert unlearn(arguments) == 0
    assert unlearn(arguments, output_dir=str(tmp_path / "second"), seed="1") == 0
    both = [tmp_path / "run", tmp_path / "second"]
    report = pipeline.evaluate(*plain(arguments, both))
    single = pipeline.evaluate(*plain(arguments, both[0]))
    base = report.sequences.query("form == 'base'")["loss"]
    assert base.equals(single.sequences.query("form == 'base'")["loss"])
    assert not report.sequences["loss"].equals(single.sequences["loss"])
    assert re.fullmatch(r"base|stacked", report.sequences["form"].iloc[0])


@pytest.mark.usefixtures("without_figures")
def test_merge_search_and_matrix(arguments, tmp_path, capfd):
    assert unlearn(arguments, **{"model.quantization": "nf4"}) == 0
    run, model, forget = str(tmp_path / "run"), arguments["--model.name"], arguments["--data.forget"]
    in_float32 = ["--dtype", "float32"]
    merged = str(tmp_path / "merged")
    assert cli.main(["merge", "--model", model, "--adapter", run, "--output_dir", merged, *in_float32]) == 0
    assert cli.main(["merge", "--model", merged, "--adapter", run, "--output_dir", str(tmp_path / "x")]) == 2
    assert "--force" in capfd.readouterr().err
    stored = str(tmp_path / "nf4")
    words = ["merge", "--model", model, "--adapter", run, "--output_dir", stored, "--quantization", "nf4", *in_float32]
    assert cli.main(words) == 0
    words = ["evaluate", "--model", stored, "--adapter", run, "--forget", forget, "--forms", "merged", *in_float32]
    assert cli.main([*words, "--force"]) == 2, "nothing is merged into quantized weights"
    assert "stored as nf4" in capfd.readouterr().err
    common = ["--model", model, "--forget", forget, *in_float32]
    searched = str(tmp_path / "searched")
    words = ["negate", "--adapter", run, "--search", *common, "--scales", "0.5", "1", "--output_dir", searched]
    assert cli.main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "searched" / "scale_search.jsonl").read_text().splitlines()]
    assert {0.0, 0.5, 1.0} <= {row["scale"] for row in rows} and "scaled by" in capfd.readouterr().out
    twice = ["evaluate", "--model", model, "--adapter", run, "--forget", forget, forget, "--matrix", *in_float32]
    assert cli.main(twice) == 2 and "named twice" in capfd.readouterr().err
    (tmp_path / "other.jsonl").write_text(Path(forget).read_text().split("\n")[0])
    matrix = ["--forget", forget, str(tmp_path / "other.jsonl"), "--matrix", "--output_dir", str(tmp_path / "matrix")]
    assert cli.main(["evaluate", "--model", model, "--adapter", run, searched, *matrix, *in_float32]) == 0
    assert len(pd.read_parquet(tmp_path / "matrix" / "interference.parquet")) == 4 * 2
