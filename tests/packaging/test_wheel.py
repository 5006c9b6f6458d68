"""The built wheel holds everything: it works away from the repository, and under `accelerate launch`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from helpers import launch

ROOT = Path(__file__).parents[2]

USE = """
import os, runpy, sys
import adapter_unlearn
from adapter_unlearn import cli
from adapter_unlearn.recipe import shipped
installed = sys.argv[1]
assert "ACCELERATE_MIXED_PRECISION" in os.environ, "not under accelerate launch"
assert adapter_unlearn.__file__.startswith(installed), adapter_unlearn.__file__
assert str(shipped.folder()).startswith(installed)
assert "tiny-cpu" in shipped.names("models")
assert cli.main(["recipes", "copy", "tiny-cpu", "sga", "my.yaml"]) == 0
assert cli.main(["score", "--model", "embedded:model", "--forget", "embedded:forget.jsonl", "--dtype", "float32"]) == 0
sys.argv[1:] = ["--config", "my.yaml", "--training.max_epochs", "1", "--method.retain_sequences", "8"]
sys.argv += ["--data.retain", "embedded:holdout.jsonl", "--data.validation", "null", "--data.test", "null"]
sys.argv += ["--stop.max_perplexity_increase", "null", "--output_dir", "run"]
runpy.run_path(str(shipped.folder() / "unlearn.py"), run_name="__main__")
"""


def test_the_wheel_works_away_from_the_repository(tmp_path):
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    offline = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", str(ROOT), "--no-build-isolation", *offline, "-w", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("adapter_unlearn-*.whl")
    assert wheel.stat().st_size < 5 * 2**20
    install = [*pip, "install", "--no-compile", *offline, "--target", str(installed), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (tmp_path / "use.py").write_text(USE)
    launch(tmp_path / "use.py", str(installed), processes=1, path=[installed], cwd=elsewhere)
    assert (elsewhere / "run" / "report.html").is_file()
    assert json.loads((elsewhere / "run" / "unlearning.json").read_text())["cost"]["processes"] == 1
