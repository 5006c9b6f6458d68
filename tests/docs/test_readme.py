"""README's commands and snippets, run one after the other as a reader would, on the embedded default.

Only the trainings are shortened: what the README runs for minutes is run here for one epoch.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from adapter_unlearn import assets, cli

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
ONE_EPOCH = (
    "--model.dtype float32 --data.synthetic 4 --training.learning_rate 1e-3 --training.max_epochs 1 --adapter.r 4"
)
EXAMPLE_FILES = ("forget", "retain", "holdout", "validation", "test")


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(README.read_text(encoding="utf-8"))


def commands(block: str) -> list[list[str]]:
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_every_command_is_in_a_block_that_is_run():
    text = README.read_text(encoding="utf-8")
    run = "".join(block for kind, block in blocks() if kind == "bash")
    named = re.findall(r"^\| `(\w+)` \|", text.partition("## Commands")[2], re.MULTILINE)
    assert named == list(cli.COMMANDS), "the table of commands"
    assert set(named) - {"demo"} == {words[1] for words in commands(run)}, "demo is `make demo`"


@pytest.mark.usefixtures("without_figures")
def test_readme_runs(tmp_path, monkeypatch, capsys):
    model = tmp_path / "base"  # a folder, as a user's model is
    shutil.copytree(assets.resolve("embedded:model"), model)
    for name in EXAMPLE_FILES:
        rows = Path(assets.resolve(f"embedded:{name}.jsonl")).read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(rows[:8]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for kind, block in blocks():
        if kind == "python":
            source = block.replace('"MODEL"', repr(str(model)))
            source = source.replace("output_dir=", "training=Training(max_epochs=1), output_dir=")
            exec(compile(source, "README.md", "exec"), namespace | vars(pytest.importorskip("adapter_unlearn.recipe")))
            continue
        for program, *words in commands(block):
            assert program == "adapter-unlearn"
            words = [str(model) if word == "MODEL" else word for word in words]
            if words[0] == "unlearn":
                words += ONE_EPOCH.split()
            assert cli.main(words) == 0, (words, capsys.readouterr().err)
    made = {path.name for path in (tmp_path / "runs").iterdir()}
    assert made == {"mine", "sga", "evaluation", "comparison", "negated", "weaker", "merged"}
    assert (tmp_path / "my.yaml").is_file()
