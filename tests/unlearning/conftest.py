"""Fixtures of the unlearning tests: a model that memorized, what it has to forget, and the context of a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import as_sequences, random_rows

from adapter_unlearn import load_base, models, score, scoring
from adapter_unlearn.evaluation.criteria import PAPER, Criteria
from adapter_unlearn.recipe import Adapter, Stop
from adapter_unlearn.unlearning import methods, records, stopping
from adapter_unlearn.unlearning.checkpoint import Checkpoints
from adapter_unlearn.unlearning.context import RunContext
from adapter_unlearn.unlearning.plan import Term
from adapter_unlearn.unlearning.selection import at_least
from adapter_unlearn.unlearning.targets import Duals, MatchedTargets


@pytest.fixture(scope="session")
def base_scores():
    """Quantization -> the scores of the forget set and of the never-seen rows under the base; a fresh adapter is 0."""
    return {}


@pytest.fixture
def problem(memorizers, base_scores):
    """Build a model with a fresh adapter, and the task of making it forget what it memorized."""

    def build(quantization="none", validation=True, holdout=True, alpha=8, **adapter):
        folder = memorizers("llama")  # training it draws random numbers: before the seed
        torch.manual_seed(0)
        model = models.attach(load_base(str(folder), quantization, "float32"), Adapter(r=4, alpha=alpha, **adapter))
        forget, unseen = as_sequences(random_rows(0)), as_sequences(random_rows(7))
        if quantization not in base_scores:
            base_scores[quantization] = score(model, forget), score(model, unseen)
        before, unseen_scores = (frame.copy() for frame in base_scores[quantization])
        task = records.Task(
            forget=forget,
            before=before,
            criteria=Criteria(PAPER),
            retain=unseen,
            validation=unseen if validation else None,
            validation_perplexity=scoring.perplexity(unseen_scores, unseen) if validation else None,
            holdout=unseen if holdout else None,
            holdout_scores=unseen_scores if holdout else None,
        )
        return model, task

    return build


@pytest.fixture
def context():
    """Build a run's context; keywords that are not its own are those of Stop."""

    def build(task, training, goal=None, budget=None, seed=0, on_epoch=lambda record: None, **stop):
        stop = Stop(max_perplexity_increase=budget, **stop)
        accelerator = Accelerator()
        checkpoints = Checkpoints(accelerator)
        return RunContext(
            task, training, stop, goal or stopping.Goal(), accelerator, checkpoints, seed, on_epoch=on_epoch
        )

    return build


@pytest.fixture
def stage():
    """The one stage, or the first one, of a method: `stage("sga", threshold=0.5)`."""
    return lambda name, **options: methods.stages({"name": name} | options)[0]


@pytest.fixture
def adapted(memorizers):
    """Build a model with an adapter that changes something: at first B is zero, and A has no gradient."""

    def build(quantization="none", architecture="llama", std=0.05, **options):
        folder = memorizers(architecture)  # training it draws random numbers: before the seed
        torch.manual_seed(0)
        model = models.attach(load_base(str(folder), quantization, "float32"), Adapter(r=4, alpha=8, **options))
        return randomized(model, std=std)

    return build


def randomized(model, seed=0, std=0.05):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std)
    return model


@pytest.fixture
def term():
    """Build a term on the whole forget set: `term("npo", beta=0.05)`."""
    return lambda loss, **options: Term("forget", "forget", at_least, loss, 1.0, options)


@pytest.fixture
def some_targets():
    """Build the state of `match` for sequences of these lengths: targets on both sides of what the memorizers have."""

    def build(lengths, seed=0):
        generator = np.random.default_rng(seed)
        values, weights = [], []
        for length in lengths:
            values.append(np.sort(generator.normal(-2.0, 3.0, (length, 2)), axis=0))
            weights.append(generator.uniform(0.5, 2.0, 2))
        state = MatchedTargets(values)
        state.duals = Duals(state.duals.offsets, np.array(weights))
        return state

    return build


@pytest.fixture
def log_likelihoods():
    """The log-likelihood of each row under the model, in nats."""

    def build(model, rows):
        frame = score(model, as_sequences(rows), ["loss"])
        return -frame["loss"].to_numpy() * np.array([len(row) - 1 for row in rows])

    return build


@pytest.fixture
def all_but_seconds():
    """A record without its duration."""
    return lambda record: {key: value for key, value in record.items() if key != "seconds"}
