"""Twins: who is paired with whom, which levels are lent, and which token takes which."""

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

from adapter_unlearn import InputError, load_base, models
from adapter_unlearn.unlearning import losses, step, targets

NAN = math.nan
NUMBERS = st.floats(-50, 50, width=32)


def frame(rows):
    return pd.DataFrame(rows, columns=["memorization_accuracy", "loss"], dtype=float)


SCORES = st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9, NAN]), st.floats(0, 9) | st.just(NAN))
ROWS = st.lists(SCORES, min_size=1, max_size=25)
SCORED = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 9)), min_size=1, max_size=25)


# --- who with whom ---


def naive_ordinary(holdout):
    """Holdout rows between the quantiles of those with both scores, by the sorted list itself."""
    known = [i for i, (accuracy, loss) in enumerate(holdout) if not math.isnan(accuracy + loss)]
    ranked = sorted(holdout[i][0] for i in known)
    low, high = (ranked[math.floor(q * (len(ranked) - 1) + 1e-9)] for q in targets.CENTRAL)
    return [i for i in known if low <= holdout[i][0] <= high]


@given(ROWS, ROWS)
def test_every_row_with_a_loss_has_a_twin_that_is_ordinary_and_scored(forget, holdout):
    if not any(not math.isnan(accuracy + loss) for accuracy, loss in holdout):
        with pytest.raises(InputError, match=r"data\.holdout: no row could be scored"):
            targets.pair(frame(forget), frame(holdout))
        return
    pairs = targets.pair(frame(forget), frame(holdout))
    assert sorted(pairs) == [i for i, (_, loss) in enumerate(forget) if not math.isnan(loss)]
    assert set(pairs.values()) <= set(naive_ordinary(holdout))


@given(SCORED, SCORED)
def test_ranks_of_loss_are_kept_and_twins_are_shared_out_evenly(forget, holdout):
    pairs = targets.pair(frame(forget), frame(holdout))
    for (a, twin_a), (b, twin_b) in itertools.combinations(pairs.items(), 2):
        if forget[a][1] < forget[b][1]:
            assert holdout[twin_a][1] <= holdout[twin_b][1]
    ordinary = naive_ordinary(holdout)
    shares = [list(pairs.values()).count(twin) for twin in ordinary]
    assert max(shares) - min(shares) <= 1 and sum(shares) == len(forget)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_tiny_holdout_set(number):
    """Of few rows the least recited are the ordinary ones; some row always is."""
    holdout = frame([(0.1, 5.0), (0.3, 4.0), (0.2, 6.0)][:number])
    pairs = targets.pair(frame([(0.9, 1.0), (0.8, 0.5), (1.0, 0.1), (0.7, 2.0)]), holdout)
    expected = {1: {0: 0, 1: 0, 2: 0, 3: 0}, 2: {0: 0, 1: 0, 2: 0, 3: 0}, 3: {2: 0, 1: 0, 0: 2, 3: 2}}
    assert pairs == expected[number]


def test_what_has_no_score_has_and_is_no_twin():
    forget = frame([(0.9, 1.0), (NAN, NAN), (0.8, 2.0)])
    assert targets.pair(forget, frame([(NAN, NAN), (0.2, 5.0), (0.2, NAN), (NAN, 5.0)])) == {0: 1, 2: 1}


# --- what is lent ---


@given(arrays(np.float32, st.tuples(st.integers(1, 40), st.just(2)), elements=NUMBERS), st.integers(1, 90))
def test_levels_are_ascending_and_within_the_twin_s(twin, length):
    (found,) = targets.levels({0: 0}, [length], [twin])
    assert found.shape == (length, 2)
    assert (np.diff(found, axis=0) >= 0).all()
    assert (found >= twin.min(0)).all() and (found <= twin.max(0)).all()
    if length == len(twin):
        assert found == pytest.approx(np.sort(twin, axis=0), abs=1e-9)
    if length == 1:
        assert found[0] == pytest.approx(np.median(twin, axis=0), abs=1e-4)


@given(arrays(np.float64, st.tuples(st.integers(1, 20), st.just(2)), elements=NUMBERS), st.integers(2, 6))
def test_a_longer_sequence_does_not_differ_in_the_mean(twin, times):
    (found,) = targets.levels({0: 0}, [len(twin) * times], [twin])
    assert found.mean(0) == pytest.approx(twin.mean(0), abs=np.ptp(twin) / times / len(twin) + 1e-9)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_a_shorter_sequence_takes_the_median_of_each_token_s_share(length, times, seed):
    """Not the ends: both ends of log-probabilities' long tail in five tokens would be a text that is avoided."""
    twin = -np.random.default_rng(seed).gamma(1.0, 4.0, (length * times, 2))
    (found,) = targets.levels({0: 0}, [length], [twin])
    assert found == pytest.approx(np.median(np.sort(twin, axis=0).reshape(length, times, 2), axis=1), abs=1e-9)


def test_rows_of_every_length_each_from_its_own_twin():
    lent = [np.full((3, 2), 1.0), np.zeros((0, 2)), np.full((9, 2), 2.0)]
    found = targets.levels({0: 2, 1: 0, 3: 0}, [4, 0, 6, 1], lent)
    assert [part.shape for part in found] == [(4, 2), (0, 2), (0, 2), (1, 2)], "row 1 is all prompt, row 2 has no twin"
    assert (found[0] == 2.0).all() and (found[3] == 1.0).all()


# --- who takes which ---

PAIRS = st.integers(0, 5).flatmap(
    lambda n: st.tuples(*[arrays(np.float64, (n, 2), elements=NUMBERS) for _ in range(2)])
)


@given(PAIRS)
def test_the_mean_distance_is_the_wasserstein_distance(pair):
    """In one dimension no other way to share out the levels is nearer: tried, all of them."""
    now, wanted = pair[0], np.sort(pair[1], axis=0)
    found = targets.assigned(now, wanted)
    assert found.shape == now.shape and (np.sort(found, axis=0) == wanted).all()
    for column in range(2):
        nearest = min(
            sum(abs(a - b) for a, b in zip(now[:, column], order))
            for order in itertools.permutations(wanted[:, column])
        )
        assert np.abs(now[:, column] - found[:, column]).sum() == pytest.approx(nearest, rel=1e-9, abs=1e-9)
        for a, b in itertools.combinations(range(len(now)), 2):
            if now[a, column] < now[b, column]:
                assert found[a, column] <= found[b, column]
    assert (targets.assigned(found, wanted) == found).all(), "what is reached stays"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_levels_keep_the_precision_they_are_wanted_in(dtype):
    now = np.array([[0.3, 1], [-2, 3], [0.1, 2]], dtype=np.float32)
    wanted = np.array([[-1, -5], [1 / 3, 0], [1, 1]], dtype=dtype)
    found = targets.assigned(now, wanted)
    assert found.dtype == dtype and found.tolist() == [
        [wanted[2, 0], wanted[0, 1]], [wanted[0, 0], wanted[2, 1]], [wanted[1, 0], wanted[1, 1]]
    ]  # fmt: skip


@given(arrays(np.float64, st.tuples(st.integers(1, 12), st.just(7)), elements=st.floats(-8, 8)), st.integers(0, 99))
def test_a_sequence_like_its_twin_is_left_as_it_is(logits, seed):
    """Its tokens in any order: no distance and no pull, but for the other tokens' proportions."""
    generator = np.random.default_rng(seed)
    labels = torch.tensor(generator.integers(0, 7, len(logits)))
    leaf = torch.tensor(logits, requires_grad=True)
    now = losses.levels(leaf.detach(), labels).numpy()
    (lent,) = targets.levels({0: 0}, [len(now)], [generator.permutation(now)])
    wanted = torch.tensor(targets.assigned(now, lent))
    weights = torch.tensor(generator.uniform(0.5, 2.0, wanted.shape))
    alone = losses.match(leaf, labels, torch.zeros_like(leaf), wanted, weights, others=0.0)
    (pull,) = torch.autograd.grad(alone.sum(), leaf)
    assert float(alone.detach().abs().max()) < 1e-12 and float(pull.abs().max()) < 1e-6
    both = losses.match(leaf, labels, torch.zeros_like(leaf), wanted, weights)
    left = leaf.detach().scatter(1, labels[:, None], -math.inf).log_softmax(-1)
    divergence = [-math.log(6) - sum(v for v in row if v > -math.inf) / 6 for row in left.tolist()]
    assert both.tolist() == pytest.approx(divergence, abs=1e-9)


# --- what a model gives its tokens ---


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_token_levels_are_those_of_the_model_s_own_logits(memorizers, monkeypatch, quantization):
    """Without the adapter, whatever the batch and chunks; a row that is all prompt has none."""
    monkeypatch.setattr("adapter_unlearn.scoring.forward.CHUNK_ELEMENTS", 7 * 128)
    torch.manual_seed(0)
    model = models.attach(load_base(str(memorizers("llama")), quantization, "float32"), r=4, alpha=8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    rows, prompts = random_rows(0)[:5], [1, 32, 7, 27, 1]
    columns = {"id": list("abcde"), "document": list("abcde"), "input_ids": rows}
    sequences = Dataset.from_dict(columns | {"prefix_tokens": prompts, "scored_from": prompts})
    expected = []
    with torch.no_grad(), models.active(model, []):
        for row, prompt in zip(rows, prompts):
            logits = model(input_ids=torch.tensor([row])).logits[0, prompt - 1 : -1].double()
            pairs = []
            for z, label in zip(logits, row[prompt:]):
                rival = max(v for i, v in enumerate(z.tolist()) if i != label)
                pairs.append([float(z.log_softmax(-1)[label]), float(z[label]) - rival])
            expected.append(np.array(pairs).reshape(-1, 2))
    model.train()
    for batch_size in (7, 2, 1):
        found = step.token_levels(model, sequences, batch_size)
        assert [part.shape for part in found] == [(len(row) - prompt, 2) for row, prompt in zip(rows, prompts)]
        for one, other in zip(found, expected):
            assert np.abs(one - other).max(initial=0) < 1e-3
    assert model.training and found[1].shape == (0, 2)
    with_adapter = step.token_levels(model, sequences, 2, ["default"])
    assert np.abs(with_adapter[0] - expected[0]).max() > 0.1, "beneath names the adapters that the holdout has"
    alone = step.token_levels(model, as_sequences(rows[:1]), 2)
    assert np.abs(alone[0] - expected[0]).max() < 1e-3


# --- how hard they draw ---

ASKED = st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(1, 20), st.floats(1, 20))


@given(st.lists(st.tuples(ASKED, st.floats(0, 9), st.floats(0, 1)), min_size=1, max_size=6), st.integers(0, 9))
def test_what_is_missed_counts_more_and_what_is_near_is_aimed_beyond(rows, seed):
    """Of too low a loss, or too high an accuracy, log-probabilities, or margins, are drawn down; and the other way."""
    generator = np.random.default_rng(seed)
    lent = [np.sort(generator.normal(-1, 3, size=(int(generator.integers(1, 9)), 2)), axis=0) for _ in rows]
    before = np.array([asked for asked, *_ in rows])
    now = frame([(accuracy, loss) for _, loss, accuracy in rows])
    found = targets.pressed(targets.Pressure(before[:, :2], before[:, 2:]), now, lent)
    for old, more, weights, levels, (_, loss, accuracy) in zip(before, found.more, found.weights, lent, rows):
        too_likely = -sum(levels[:, 0]) / len(levels) - loss
        too_often = accuracy - sum(margin > 0 for margin in levels[:, 1]) / len(levels)
        beyond = [
            0.0 if abs(miss) >= near else min(max(gain * miss, -0.05), 0.05)
            for miss, gain, near in ((too_likely, 0.4, 1.0), (too_often, 2.0, 0.2))
        ]
        assert more == pytest.approx([min(max(b + s, -1.0), 1.0) for b, s in zip(old[:2], beyond)])
        gained = (0.1 * (abs(too_likely) - 0.25), 0.5 * (abs(too_often) - 0.05))
        assert weights == pytest.approx([min(max(b + g, 1.0), 20.0) for b, g in zip(old[2:], gained)])


def test_a_row_like_its_twin_is_asked_for_no_more_and_one_without_a_twin_for_nothing():
    twin, none = np.array([[-3.0, -1.0], [-1.0, 0.5]]), np.zeros((0, 2))
    now = frame([(0.5, 2.0), (NAN, NAN)])
    pressure = targets.Pressure(np.array([[0.3, -0.2], [0.0, 0.0]]), np.array([[4.0, 1.0], [1.0, 1.0]]))
    found = targets.pressed(pressure, now, [twin, none])
    assert found.more.tolist() == pressure.more.tolist()
    assert found.weights == pytest.approx(np.array([[3.975, 1.0], [1.0, 1.0]]))
    first, second = targets.asked([twin, none], found)
    assert first.levels.tolist() == [[-3.3, -0.8], [-1.3, 0.7]] and first.weights == pytest.approx([3.975, 1.0])
    assert second.levels.shape == (0, 2)


def test_every_run_starts_with_the_twins_own_levels():
    lent = [np.array([[-3.0, -1.0], [-1.0, 0.5]])]
    ((levels, weights),) = targets.asked(lent, targets.no_pressure(1))
    assert levels.tolist() == lent[0].tolist() and weights.tolist() == [1.0, 1.0]
