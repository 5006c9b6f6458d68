"""The built wheel holds everything: it works away from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

USE = """
import adapter_unlearn
from adapter_unlearn import assets, cli
from adapter_unlearn.recipe import shipped
assert adapter_unlearn.__file__.startswith(INSTALLED), adapter_unlearn.__file__
assert str(shipped.folder()).startswith(INSTALLED)
assert "tiny-cpu" in shipped.names("models") and (shipped.folder() / "unlearn.py").is_file()
assert cli.main(["recipes", "copy", "tiny-cpu", "sga", "my.yaml"]) == 0
flags = ["--training.max_epochs", "1", "--method.retain_sequences", "8", "--output_dir", "run"]
flags += ["--data.retain", "embedded:holdout.jsonl", "--data.validation", "null", "--data.test", "null"]
flags += ["--stop.max_perplexity_increase", "null"]
assert cli.main(["unlearn", "--config", "my.yaml", *flags]) == 0
assert cli.main(["score", "--model", "embedded:model", "--forget", "embedded:forget.jsonl", "--dtype", "float32"]) == 0
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
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    code = f"INSTALLED = {str(installed)!r}\n{USE}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (elsewhere / "run" / "report.html").is_file()
