"""The state of a loss: what it keeps from step to step and adapts from epoch to epoch. That of `match` is in here.

Every forget sequence has a matched holdout sequence, whose log-probabilities and margins, sorted, are its targets.
Within a sequence they are assigned by order, so that the sequence changes as little as possible. Dual weights and
offsets, one pair per sequence, are adapted after every epoch.

The training loop only knows the interface, `LossState`: `prepare` makes the state before a stage, `for_rows` gives
what the loss takes in a step, `after_epoch` adapts it, and `arrays` and `load` keep it in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from adapter_unlearn import progress, scoring
from adapter_unlearn.errors import InputError
from adapter_unlearn.unlearning.loss_table import LOSSES
from adapter_unlearn.unlearning.losses import per_token, values_of
from adapter_unlearn.unlearning.plan import Term
from adapter_unlearn.unlearning.records import Task
from adapter_unlearn.unlearning.reference import as_reference

CENTRAL = (0.20, 0.80)
"""Quantiles of the holdout set's memorization accuracy between which a sequence may be a match: no forget sequence is
to become an outlier because its match is one."""

NEAR = np.array([1.0, 0.2])
"""The largest miss, of loss (nats) and of accuracy, at which the offsets are adapted. Beyond it only the weights are: a
Huber distance pulls no harder for being longer, and offsets would accumulate in vain."""

GAIN, MAX_STEP, MAX_OFFSET = np.array([0.4, 2.0]), 0.05, 1.0
"""The share of a miss that is added to the offset in an epoch, in nats per nat of loss and per unit of accuracy; the
most that is added in an epoch, and the largest offset."""

TOLERATED, RATE, MAX_WEIGHT = NEAR / 4, np.array([0.1, 0.5]), 20.0
"""The miss that is tolerated; the share of what is missed beyond it that is added to the dual weight in an epoch; the
largest weight."""

TYPICAL_WEIGHT = 3.0
"""The mean dual weight in a run: 2.1 to 3.9 from epoch 10 on, on two models."""

Measure = Callable[[Callable[..., torch.Tensor]], torch.Tensor]
"""Applies a function of (logits, labels) to all tokens of a batch, without gradient; see losses.per_token."""


class LossState:
    """What a loss keeps from step to step. This one is the state of a loss that keeps nothing."""

    def for_rows(self, rows: Sequence[int], measure: Measure) -> tuple[torch.Tensor, ...]:
        """What the loss's function takes besides logits and labels, each of shape (tokens of these rows, ...).

        Args:
            rows: the sequences of a batch.
            measure: gives the model's present values for the batch's tokens.
        """
        return ()

    def after_epoch(self, scores: pd.DataFrame) -> None:
        """Adapt the state to the forget set's scores after an epoch."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps: everything that `prepare` can't compute again."""
        return {}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Continue from what `arrays` returned."""


class Duals(NamedTuple):
    """Per forget sequence, for its log-probabilities and for its margins; both arrays have shape (rows, 2).

    Attributes:
        offsets: subtracted from the targets, in nats.
        weights: of the distances to the targets.
    """

    offsets: np.ndarray
    weights: np.ndarray


class MatchedTargets(LossState):
    """Target log-probabilities and margins of every forget sequence, with dual weights and offsets."""

    def __init__(self, values: Sequence[np.ndarray], weight: float = 1.0) -> None:
        """Start without offsets and with equal weights.

        Args:
            values: of each forget sequence, from `target_values`.
            weight: the first dual weight of every sequence.
        """
        self.values = values
        self.duals = Duals(np.zeros((len(values), 2)), np.full((len(values), 2), weight))

    def for_rows(self, rows: Sequence[int], measure: Measure) -> tuple[torch.Tensor, torch.Tensor]:
        """Targets and weights of each token of these rows, both of shape (tokens, 2)."""
        now = measure(values_of).cpu().numpy()
        lengths = [len(self.values[row]) for row in rows]
        targets = [
            assign(part, self.values[row] - self.duals.offsets[row])
            for part, row in zip(np.split(now, np.cumsum(lengths)[:-1]), rows)
        ]
        weights = np.repeat(self.duals.weights[list(rows)], lengths, axis=0)
        return torch.tensor(np.concatenate(targets), dtype=torch.float32), torch.tensor(weights, dtype=torch.float32)

    def after_epoch(self, scores: pd.DataFrame) -> None:
        """One step of dual ascent; see `dual_ascent`."""
        self.duals = dual_ascent(self.duals, scores, self.values)

    def arrays(self) -> dict[str, np.ndarray]:
        """Offsets and weights, both of shape (rows, 2)."""
        return self.duals._asdict()

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Continue with these offsets and weights."""
        self.duals = Duals(**arrays)


def prepare(
    model: torch.nn.Module, term: Term, task: Task, batch_size: int, frozen: Sequence[str], typical: bool = False
) -> LossState:
    """The state of a term's loss as a stage begins.

    Args:
        model: with the stage's adapter active.
        term: names the loss.
        task: the sets and their scores under the base.
        batch_size: sequences in one forward.
        frozen: the adapters of the reference model.
        typical: start as the state is on average in the course of a run, not as it is at first.
    """
    if not LOSSES[term.loss].matched:
        return LossState()
    assert task.holdout is not None and task.holdout_scores is not None, "checked by methods.check_sets"
    matches = match_sequences(task.before, task.holdout_scores)
    rows = sorted(set(matches.values()))
    values = dict(zip(rows, holdout_values(model, task.holdout.select(rows), batch_size, frozen)))
    targets = target_values(matches, scoring.predicted_tokens(task.forget), values)
    return MatchedTargets(targets, TYPICAL_WEIGHT if typical else 1.0)


def match_sequences(forget: pd.DataFrame, holdout: pd.DataFrame) -> dict[int, int]:
    """Give every forget sequence a matched holdout sequence by rank of loss, among those of ordinary accuracy.

    Args:
        forget, holdout: scores under the base, with memorization_accuracy and loss; NaN where there is no score. A
            sequence without scores has no match, and is none.

    Returns:
        Forget row -> holdout row. Ranks are kept, so that the forget set takes on the holdout set's spread and not only
        its mean.

    Raises:
        InputError: no holdout sequence has scores.
    """
    scores = holdout[["memorization_accuracy", "loss"]].to_numpy(dtype=float)
    known = np.flatnonzero(~np.isnan(scores).any(axis=1))
    if not len(known):
        raise InputError("data.holdout: no row could be scored, so that none can be matched; give longer texts")
    accuracy = scores[known, 0]
    low, high = np.quantile(accuracy, CENTRAL, method="lower")  # values of the set, so that some row is within
    ordinary = known[(accuracy >= low) & (accuracy <= high)]
    ordinary = ordinary[scores[ordinary, 1].argsort(kind="stable")]
    losses = forget["loss"].to_numpy(dtype=float)
    order = losses.argsort(kind="stable")[: int((~np.isnan(losses)).sum())]  # NaN last
    return {int(row): int(ordinary[int((rank + 0.5) / len(order) * len(ordinary))]) for rank, row in enumerate(order)}


def holdout_values(
    model: torch.nn.Module, sequences: Dataset, batch_size: int, frozen: Sequence[str] = ()
) -> list[np.ndarray]:
    """Log-probability and margin of each sequence's tokens under the reference model, shape (predicted tokens, 2)."""
    values: dict[int, np.ndarray] = {}
    with as_reference(model, frozen), progress.bar("measure holdout values", len(sequences), "seq") as bar:
        indices = list(range(len(sequences)))
        for batch in scoring.batches(sequences, indices, scoring.rows_per_forward(model, batch_size)):
            chosen = sequences[batch]
            predicted = scoring.hidden_states(model, chosen["input_ids"], chosen["scored_from"])
            chunks = scoring.chunks(predicted[0], scoring.vocabulary_of(model))
            tokens = per_token(values_of, predicted, chunks).cpu().numpy()
            values |= zip(batch, np.split(tokens, np.cumsum(scoring.predicted_tokens(sequences, batch))[:-1]))
            bar.update(len(batch))
    return [values[index] for index in indices]


def target_values(
    matches: dict[int, int], forget_lengths: Sequence[int], holdout: Mapping[int, np.ndarray]
) -> list[np.ndarray]:
    """Each forget sequence's target log-probabilities and margins: its match's, sorted, one pair per predicted token.

    Args:
        matches: from `match_sequences`.
        forget_lengths: predicted tokens of each forget sequence.
        holdout: the values of each matched holdout row, shape (its predicted tokens, 2).

    Returns:
        For each forget sequence, shape (its predicted tokens, 2), every column ascending: quantiles of the match's
        values, in the middle of each token's share, so that a short sequence does not get the extremes of a long match.
        Without a match the shape is (0, 2).
    """
    return [
        np.quantile(holdout[matches[row]], (np.arange(length) + 0.5) / length, axis=0, method="hazen")
        if row in matches and length
        else np.zeros((0, 2))
        for row, length in enumerate(forget_lengths)
    ]


def assign(now: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Assign the k-th smallest target to the token with the k-th smallest value, column by column.

    Args:
        now: the sequence's values, shape (tokens, 2).
        targets: the same shape, every column ascending.

    Returns:
        The targets in the tokens' order. Their mean distance to `now` is the Wasserstein distance of the two.
    """
    assigned = np.empty_like(targets)
    np.put_along_axis(assigned, now.argsort(axis=0, kind="stable"), targets, axis=0)
    return assigned


def dual_ascent(duals: Duals, scores: pd.DataFrame, values: Sequence[np.ndarray]) -> Duals:
    """Adapt weights and offsets to how far each sequence's loss and accuracy are from those of its match.

    A weighted sum of forget and retain loss has its minimum where neither is 0. This is dual ascent on the constraint
    that a sequence's loss and accuracy equal its match's: the weights of a sequence grow while it misses them and
    shrink once it meets them. The offsets move its targets beyond the match by what is still missed once that is small.

    Args:
        duals: of the epoch before.
        scores: the forget set's, with loss and memorization_accuracy.
        values: from `target_values`.

    Returns:
        Offsets within MAX_STEP of the old ones and MAX_OFFSET of 0, weights from 1 to MAX_WEIGHT. Sequences without a
        match have offset 0 and weight 1.
    """
    matched = np.array([len(rows) > 0 for rows in values])[:, None]
    goal = np.array([[-rows[:, 0].mean(), (rows[:, 1] > 0).mean()] if len(rows) else [0.0, 0.0] for rows in values])
    miss = np.stack([goal[:, 0] - scores["loss"], scores["memorization_accuracy"] - goal[:, 1]], axis=1)
    step = np.where(np.abs(miss) < NEAR, np.clip(GAIN * miss, -MAX_STEP, MAX_STEP), 0.0)
    offsets = np.clip(duals.offsets + step, -MAX_OFFSET, MAX_OFFSET)
    weights = np.clip(duals.weights + RATE * (np.abs(miss) - TOLERATED), 1.0, MAX_WEIGHT)
    return Duals(np.where(matched, offsets, 0.0), np.where(matched, weights, 1.0))
