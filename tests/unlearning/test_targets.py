"""The state of `match`: matched sequences, their target values, the assignment to tokens, and dual ascent."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from helpers import as_sequences, random_rows
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adapter_unlearn import InputError, models
from adapter_unlearn.unlearning import losses, targets

NAN = math.nan
NUMBERS = st.floats(-50, 50, width=32)


def frame(rows):
    return pd.DataFrame(rows, columns=["memorization_accuracy", "loss"], dtype=float)


SCORES = st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9, NAN]), st.floats(0, 9) | st.just(NAN))
ROWS = st.lists(SCORES, min_size=1, max_size=25)
SCORED = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 9)), min_size=1, max_size=25)


# --- matched sequences ---


def naive_ordinary(holdout):
    """Holdout rows between the quantiles of those with both scores, by the sorted list itself."""
    known = [i for i, (accuracy, loss) in enumerate(holdout) if not math.isnan(accuracy + loss)]
    ranked = sorted(holdout[i][0] for i in known)
    low, high = (ranked[math.floor(q * (len(ranked) - 1) + 1e-9)] for q in targets.CENTRAL)
    return [i for i in known if low <= holdout[i][0] <= high]


@given(ROWS, ROWS)
def test_every_row_with_a_loss_has_a_match_that_is_ordinary_and_scored(forget, holdout):
    if not any(not math.isnan(accuracy + loss) for accuracy, loss in holdout):
        with pytest.raises(InputError, match=r"data\.holdout"):
            targets.match_sequences(frame(forget), frame(holdout))
        return
    matches = targets.match_sequences(frame(forget), frame(holdout))
    assert sorted(matches) == [i for i, (_, loss) in enumerate(forget) if not math.isnan(loss)]
    assert set(matches.values()) <= set(naive_ordinary(holdout))


@given(SCORED, SCORED)
def test_ranks_of_loss_are_kept_and_matches_are_spread_evenly(forget, holdout):
    matches = targets.match_sequences(frame(forget), frame(holdout))
    for (a, match_a), (b, match_b) in itertools.combinations(matches.items(), 2):
        if forget[a][1] < forget[b][1]:
            assert holdout[match_a][1] <= holdout[match_b][1]
    ordinary = naive_ordinary(holdout)
    shares = [list(matches.values()).count(row) for row in ordinary]
    assert max(shares) - min(shares) <= 1 and sum(shares) == len(forget)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_tiny_holdout_set(number):
    """Of few rows the least memorized are the ordinary ones; some row always is."""
    holdout = frame([(0.1, 5.0), (0.3, 4.0), (0.2, 6.0)][:number])
    matches = targets.match_sequences(frame([(0.9, 1.0), (0.8, 0.5), (1.0, 0.1), (0.7, 2.0)]), holdout)
    expected = {1: {0: 0, 1: 0, 2: 0, 3: 0}, 2: {0: 0, 1: 0, 2: 0, 3: 0}, 3: {2: 0, 1: 0, 0: 2, 3: 2}}
    assert matches == expected[number]


def test_what_has_no_score_has_and_is_no_match():
    forget = frame([(0.9, 1.0), (NAN, NAN), (0.8, 2.0)])
    assert targets.match_sequences(forget, frame([(NAN, NAN), (0.2, 5.0), (0.2, NAN), (NAN, 5.0)])) == {0: 1, 2: 1}


# --- target values ---


@given(arrays(np.float32, st.tuples(st.integers(1, 40), st.just(2)), elements=NUMBERS), st.integers(1, 90))
def test_targets_are_ascending_and_within_the_match_s_values(match, length):
    (values,) = targets.target_values({0: 0}, [length], [match])
    assert values.shape == (length, 2)
    assert (np.diff(values, axis=0) >= 0).all()
    assert (values >= match.min(0)).all() and (values <= match.max(0)).all()
    if length == len(match):
        assert values == pytest.approx(np.sort(match, axis=0), abs=1e-9)
    if length == 1:
        assert values[0] == pytest.approx(np.median(match, axis=0), abs=1e-4)


@given(arrays(np.float64, st.tuples(st.integers(1, 20), st.just(2)), elements=NUMBERS), st.integers(2, 6))
def test_a_longer_sequence_does_not_differ_in_the_mean(match, times):
    (values,) = targets.target_values({0: 0}, [len(match) * times], [match])
    assert values.mean(0) == pytest.approx(match.mean(0), abs=np.ptp(match) / times / len(match) + 1e-9)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_a_shorter_sequence_takes_the_median_of_each_token_s_share(length, times, seed):
    """Not the ends: five tokens with both ends of the log-probabilities' long tail would be over-forgotten."""
    match = -np.random.default_rng(seed).gamma(1.0, 4.0, (length * times, 2))
    (values,) = targets.target_values({0: 0}, [length], [match])
    assert values == pytest.approx(np.median(np.sort(match, axis=0).reshape(length, times, 2), axis=1), abs=1e-9)


def test_rows_of_every_length_each_from_its_own_match():
    holdout = [np.full((3, 2), 1.0), np.zeros((0, 2)), np.full((9, 2), 2.0)]
    values = targets.target_values({0: 2, 1: 0, 3: 0}, [4, 0, 6, 1], holdout)
    assert [part.shape for part in values] == [(4, 2), (0, 2), (0, 2), (1, 2)], "row 1 is all prompt, row 2 unmatched"
    assert (values[0] == 2.0).all() and (values[3] == 1.0).all()


# --- assignment ---

PAIRS = st.integers(0, 5).flatmap(
    lambda n: st.tuples(*[arrays(np.float64, (n, 2), elements=NUMBERS) for _ in range(2)])
)


@given(PAIRS)
def test_the_mean_distance_is_the_wasserstein_distance(pair):
    """In one dimension no other assignment is nearer: all are tried."""
    now, values = pair[0], np.sort(pair[1], axis=0)
    assigned = targets.assign(now, values)
    assert assigned.shape == now.shape and (np.sort(assigned, axis=0) == values).all()
    for column in range(2):
        nearest = min(
            sum(abs(a - b) for a, b in zip(now[:, column], order))
            for order in itertools.permutations(values[:, column])
        )
        assert np.abs(now[:, column] - assigned[:, column]).sum() == pytest.approx(nearest, rel=1e-9, abs=1e-9)
        for a, b in itertools.combinations(range(len(now)), 2):
            if now[a, column] < now[b, column]:
                assert assigned[a, column] <= assigned[b, column]
    assert (targets.assign(assigned, values) == assigned).all(), "a target that is met stays"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_targets_keep_their_precision(dtype):
    now = np.array([[0.3, 1], [-2, 3], [0.1, 2]], dtype=np.float32)
    values = np.array([[-1, -5], [1 / 3, 0], [1, 1]], dtype=dtype)
    assigned = targets.assign(now, values)
    assert assigned.dtype == dtype and assigned.tolist() == [
        [values[2, 0], values[0, 1]], [values[0, 0], values[2, 1]], [values[1, 0], values[1, 1]]
    ]  # fmt: skip


@given(arrays(np.float64, st.tuples(st.integers(1, 12), st.just(7)), elements=st.floats(-8, 8)), st.integers(0, 99))
def test_a_sequence_like_its_match_is_left_as_it_is(logits, seed):
    """Its tokens in any order: no loss and no gradient, except for the other tokens' proportions."""
    generator = np.random.default_rng(seed)
    labels = torch.tensor(generator.integers(0, 7, len(logits)))
    leaf = torch.tensor(logits, requires_grad=True)
    now = losses.values_of(leaf.detach(), labels).numpy()
    (values,) = targets.target_values({0: 0}, [len(now)], [generator.permutation(now)])
    assigned = torch.tensor(targets.assign(now, values))
    weights = torch.tensor(generator.uniform(0.5, 2.0, assigned.shape))
    alone = losses.match(leaf, labels, torch.zeros_like(leaf), assigned, weights, others=0.0)
    (gradient,) = torch.autograd.grad(alone.sum(), leaf)
    assert float(alone.detach().abs().max()) < 1e-12 and float(gradient.abs().max()) < 1e-6
    both = losses.match(leaf, labels, torch.zeros_like(leaf), assigned, weights, others=1.0)
    left = leaf.detach().scatter(1, labels[:, None], -math.inf).log_softmax(-1)
    divergence = [-math.log(6) - sum(v for v in row if v > -math.inf) / 6 for row in left.tolist()]
    assert both.tolist() == pytest.approx(divergence, abs=1e-9)


# --- values under the reference model ---


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_holdout_values_are_those_of_the_model_s_own_logits(adapted, monkeypatch, quantization):
    """Without the adapter, whatever the batch and chunks; a row that is all prompt has none."""
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CPU_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CPU_CHUNK_TOKENS", 7)
    model = adapted(quantization)
    rows, prompts = random_rows(0)[:5], [1, 32, 7, 27, 1]
    columns = {"id": list("abcde"), "document": list("abcde"), "input_ids": rows}
    sequences = Dataset.from_dict(columns | {"prefix_tokens": prompts, "scored_from": prompts})
    expected = []
    with torch.no_grad(), models.active(model, []):
        for row, prompt in zip(rows, prompts):
            logits = model(input_ids=torch.tensor([row])).logits[0, prompt - 1 : -1].double()
            values = []
            for z, label in zip(logits, row[prompt:]):
                rival = max(v for i, v in enumerate(z.tolist()) if i != label)
                values.append([float(z.log_softmax(-1)[label]), float(z[label]) - rival])
            expected.append(np.array(values).reshape(-1, 2))
    model.train()
    for batch_size in (7, 2, 1):
        values = targets.holdout_values(model, sequences, batch_size)
        assert [part.shape for part in values] == [(len(row) - prompt, 2) for row, prompt in zip(rows, prompts)]
        for one, other in zip(values, expected):
            assert np.abs(one - other).max(initial=0) < 1e-3
    assert model.training and values[1].shape == (0, 2)
    with_adapter = targets.holdout_values(model, sequences, 2, ["default"])
    assert np.abs(with_adapter[0] - expected[0]).max() > 0.1, "the frozen adapters are those of the reference model"
    alone = targets.holdout_values(model, as_sequences(rows[:1]), 2)
    assert np.abs(alone[0] - expected[0]).max() < 1e-3


# --- dual ascent ---

DUALS = st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(1, 20), st.floats(1, 20))


@given(st.lists(st.tuples(DUALS, st.floats(0, 9), st.floats(0, 1)), min_size=1, max_size=6), st.integers(0, 9))
def test_weights_grow_with_the_miss_and_offsets_follow_a_small_one(rows, seed):
    """A loss that is too low, or an accuracy that is too high, lowers the targets; and the other way round."""
    generator = np.random.default_rng(seed)
    values = [np.sort(generator.normal(-1, 3, size=(int(generator.integers(1, 9)), 2)), axis=0) for _ in rows]
    before = np.array([duals for duals, *_ in rows])
    scores = frame([(accuracy, loss) for _, loss, accuracy in rows])
    after = targets.dual_ascent(targets.Duals(before[:, :2], before[:, 2:]), scores, values)
    for old, offsets, weights, match, (_, loss, accuracy) in zip(before, after.offsets, after.weights, values, rows):
        too_likely = -sum(match[:, 0]) / len(match) - loss
        too_often = accuracy - sum(margin > 0 for margin in match[:, 1]) / len(match)
        steps = [
            0.0 if abs(miss) >= near else min(max(gain * miss, -0.05), 0.05)
            for miss, gain, near in ((too_likely, 0.4, 1.0), (too_often, 2.0, 0.2))
        ]
        assert offsets == pytest.approx([min(max(b + s, -1.0), 1.0) for b, s in zip(old[:2], steps)])
        gained = (0.1 * (abs(too_likely) - 0.25), 0.5 * (abs(too_often) - 0.05))
        assert weights == pytest.approx([min(max(b + g, 1.0), 20.0) for b, g in zip(old[2:], gained)])


MATCH, NONE = np.array([[-3.0, -1.0], [-1.0, 0.5]]), np.zeros((0, 2))


def same_order(function):
    """The measure of a batch whose tokens have the values 0, 1, …"""
    return torch.arange(4.0).view(2, 2)


def test_the_state_follows_the_scores_after_an_epoch():
    state = targets.MatchedTargets([MATCH, NONE])
    state.duals = targets.Duals(np.array([[0.3, -0.2], [0.0, 0.0]]), np.array([[4.0, 1.0], [1.0, 1.0]]))
    state.after_epoch(frame([(0.5, 2.0), (NAN, NAN)]))
    assert state.duals.offsets.tolist() == [[0.3, -0.2], [0.0, 0.0]], "the first row meets its match"
    assert state.duals.weights == pytest.approx(np.array([[3.975, 1.0], [1.0, 1.0]]))
    values, weights = state.for_rows([0], same_order)
    assert values.numpy() == pytest.approx(np.array([[-3.3, -0.8], [-1.3, 0.7]]))
    assert weights.numpy() == pytest.approx(np.array([[3.975, 1.0]] * 2))
    values, weights = state.for_rows([1], lambda function: torch.zeros(0, 2))
    assert values.shape == weights.shape == (0, 2)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_a_state_starts_with_the_match_s_own_values(weight):
    values, weights = targets.MatchedTargets([MATCH], weight).for_rows([0], same_order)
    assert values.tolist() == MATCH.tolist() and weights.tolist() == [[weight, weight]] * 2


def test_a_loss_without_a_state_takes_nothing():
    state = targets.LossState()
    state.after_epoch(frame([(0.5, 2.0)]))
    assert state.for_rows([0], same_order) == ()
