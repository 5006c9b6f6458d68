"""What the tests want of two processes, in one launch, because a start takes seconds: two_processes.py FOLDER MODEL.

The recipes FOLDER/NAME.yaml are trained: the first one is interrupted and resumed, the last one is trained by the
script that users launch. FOLDER/rows.jsonl is scored into
FOLDER/scores, then once more on a disk that is full; process i writes what it saw to FOLDER/i.json.
"""

from __future__ import annotations

import itertools
import json
import runpy
import signal
import sys
from pathlib import Path

import helpers
import pytest
import scoring_helpers
from accelerate import PartialState

from adapter_unlearn import OutputError, Permissions, pipeline, signals, unlearn
from adapter_unlearn.recipe import shipped
from adapter_unlearn.scoring import scores
from adapter_unlearn.unlearning import learning_rate_search


def score(folder: Path, model: str) -> None:
    options = scoring_helpers.options(model, str(folder / "rows.jsonl"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "PART", 7)  # the last part has one row
        overview = pipeline.score_files(**options, output_dir=folder / "scores")
        state = PartialState()
        seen = [state.num_processes, overview.n, overview.means.tolist()]
        (folder / f"{state.process_index}.json").write_text(json.dumps(seen))
        if state.is_main_process:
            scoring_helpers.fill_the_disk(patch)
        with pytest.raises(OutputError, match="No space left"):
            pipeline.score_files(**options, output_dir=folder / "full")


def stop_and_resume(file: Path) -> None:
    """Train a recipe. Only the second process gets a signal, in an epoch; both stop, and both continue."""
    calls, second = itertools.count(1), PartialState().process_index == 1
    with pytest.MonkeyPatch.context() as patch, pytest.raises(signals.Interrupted):
        patch.setattr(signals, "received", lambda: signal.SIGTERM if second and next(calls) == 5 else None)
        unlearn(file)
    unlearn(file, Permissions(resume=True))


def main(folder: Path, model: str) -> None:
    score(folder, model)
    *recipes, last = sorted(folder.glob("*.yaml"))
    with pytest.MonkeyPatch.context() as patch:
        helpers.draw_no_figures(patch)
        patch.setattr(learning_rate_search, "STEPS", helpers.TRIAL_STEPS)
        stop_and_resume(recipes[0])
        for file in recipes[1:]:
            unlearn(file)
    sys.argv[1:] = ["--config", str(last)]
    runpy.run_path(str(shipped.folder() / "unlearn.py"), run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
