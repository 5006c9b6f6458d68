"""Checkpoints: damaged files, and files with hostile values, up to where training would go on."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from fuzz.inputs import changed, damaged, nested
from helpers import CONFIGS, as_sequences, random_rows
from hypothesis import strategies as st
from synthetic_runs import SPREAD, measurement
from transformers import AutoModelForCausalLM

from adapter_unlearn import Adapter, Permissions, models, recipe
from adapter_unlearn.data import Sets
from adapter_unlearn.pipeline import resuming
from adapter_unlearn.runs import checkpoint_file
from adapter_unlearn.runs.checkpoint_file import Saved
from adapter_unlearn.unlearning.plan import Term
from adapter_unlearn.unlearning.records import Outcome
from adapter_unlearn.unlearning.run_state import Position, RunState
from adapter_unlearn.unlearning.selection import at_least
from adapter_unlearn.unlearning.step import Part, trainable
from adapter_unlearn.unlearning.targets import MatchedTargets

BASE = {"fingerprint": "sha256:1"}
_shapes = st.sampled_from([(), (0,), (1,), (3, 2), (2, 64), (4096,)])
_tensors = st.tuples(
    _shapes, st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
).map(lambda pair: torch.ones(pair[0], dtype=pair[1]))


class Run:
    """A run that stands in the middle of its first stage."""

    def __init__(self, output_dir) -> None:
        torch.manual_seed(0)
        settings = {"model": {"name": "m"}, "data": {"forget": "f.jsonl"}, "output_dir": str(output_dir)}
        self.recipe = recipe.from_mapping(settings | {"method": {"name": "sga"}})
        self.model = models.attach(AutoModelForCausalLM.from_config(CONFIGS["llama"]), Adapter(r=2, alpha=4))
        self.optimizer = torch.optim.AdamW(trainable(self.model), lr=1e-3)
        for parameter in trainable(self.model):
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()
        term = Term("forget", "forget", at_least, "ascent", 1.0, {})
        self.parts = [Part(term, as_sequences(random_rows(0)[:2]), state=MatchedTargets([torch.ones(23, 2).numpy()]))]
        self.before = measurement("base", SPREAD).forget
        self.sets = Sets(as_sequences(random_rows(0)[:2]), holdout=as_sequences(random_rows(1)[:2]))
        self.accelerator = Accelerator()

    def write(self) -> None:
        checkpoints = resuming.checkpoints(
            self.recipe, None, self.model, BASE, self.before, self.sets, self.accelerator
        )
        outcome = Outcome([{"epoch": 0}, {"epoch": 1}], 1, pd.DataFrame({"id": ["a"], "loss": [0.5]}))
        position = Position(outcome, outcome.scored, {"state": 1}, (1, 0.5), [torch.ones(2)], 2, 1)
        checkpoints.run = RunState(position=position)
        checkpoints.write(self.model, self.optimizer, self.parts)

    def resume(self) -> None:
        saved = resuming.check(self.recipe, Permissions(resume=True))
        checkpoints = resuming.checkpoints(
            self.recipe, saved, self.model, BASE, self.before, self.sets, self.accelerator
        )
        assert checkpoints.epochs >= 0
        checkpoints.restore_adapters(self.model)
        checkpoints.restore_stage(self.model, self.optimizer, self.parts)


@pytest.mark.parametrize("kind", ["damaged", "hostile"])
def test_a_checkpoint(fuzzer, kind):
    run = Run(fuzzer.given / "out")
    run.write()
    path = checkpoint_file.path_of(run.recipe.output_dir)
    content, valid = path.read_bytes(), checkpoint_file.read(path)
    values = changed(valid.values, nested([*valid.values, *valid.values["position"]]))
    tensors = st.dictionaries(st.sampled_from(sorted(valid.tensors)), _tensors, max_size=2)
    hostile = st.tuples(values | st.just(valid.values), tensors)
    inputs = {"damaged": damaged(content) | damaged(content[:3000]) | st.just(content), "hostile": hostile}

    def example(value) -> None:
        if kind == "damaged":
            path.write_bytes(value)
        else:
            checkpoint_file.write(path, Saved(value[0], valid.tensors | value[1]))
        fuzzer.check(run.resume)

    fuzzer.run(inputs[kind], example, few=160 if kind == "damaged" else 40)
