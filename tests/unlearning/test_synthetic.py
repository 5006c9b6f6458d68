"""Text that the base writes for its own retain set."""

import pytest
import torch
from accelerate import Accelerator
from helpers import as_sequences, random_rows

from adapter_unlearn import load_base, models
from adapter_unlearn.errors import RecipeError
from adapter_unlearn.recipe import Adapter, from_mapping
from adapter_unlearn.unlearning.synthetic import PIECE, SHARED, with_synthetic

NOTHING = as_sequences([[1] * 20])


@pytest.fixture
def model(memorizers):
    base = load_base(str(memorizers("llama")), quantization="none", dtype="float32")
    return models.attach(base, Adapter(r=4, alpha=8))


def wrote(model, retain, forget=NOTHING, number=12, seed=0):
    return with_synthetic(model, retain, forget, number, seed, Accelerator())


def stands_in(piece, row):
    return any(row[i : i + len(piece)] == piece for i in range(len(row) - len(piece) + 1))


def test_it_goes_on_from_pieces_of_the_retain_set_as_long_as_their_source(model):
    rows = random_rows(5, (30, 30, 16, 5))
    retain = as_sequences(rows)
    found = wrote(model, retain)
    assert found[: len(rows)] == retain[:], "the retain set itself is left as it is"
    new = found["input_ids"][len(rows) :]
    assert sorted(map(len, new)) == sorted([30, 30, 16, 5] * 3)
    for row in new:
        opening = row[: min(PIECE, len(row) // 2)]
        assert any(stands_in(opening, source) for source in rows if len(source) == len(row))
    assert len({tuple(row) for row in new}) == len(new), "no text twice"
    assert len(set(found["id"])) == len(found)
    assert set(found["scored_from"][len(rows) :]) == {1}


def test_the_same_seed_writes_the_same_and_leaves_everything_else_alone(model):
    retain = as_sequences(random_rows(5, (30, 24)))
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    model.train()
    first, again, other = (wrote(model, retain, seed=seed)["input_ids"] for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state) and model.training


def test_what_is_recited_is_left_out(model):
    """Pieces of memorized rows make the model recite them; none of what it recites may be held."""
    rows = random_rows(0)[:3]
    kept = wrote(model, as_sequences(rows), number=30)
    assert len(kept) == 33
    shared = {tuple(row[i : i + SHARED]) for row in rows for i in range(len(row) - SHARED + 1)}
    with_forget = wrote(model, as_sequences(rows), forget=as_sequences(rows), number=30)["input_ids"][3:]
    assert len(with_forget) < 30
    for row in with_forget:
        assert not any(tuple(row[i : i + SHARED]) in shared for i in range(len(row) - SHARED + 1))


def test_it_samples_the_whole_distribution(model):
    """One token behind a fixed opening, often: its frequencies are the model's probabilities."""
    opening = random_rows(9, (2,))[0]
    retain = as_sequences([opening])  # a piece of one token, and one to write
    found = wrote(model, retain, number=4000)["input_ids"][1:]
    with torch.no_grad():
        p = model(input_ids=torch.tensor([opening[:1]])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([row[1] for row in found]), minlength=len(p)) / len(found)
    assert {row[0] for row in found} == {opening[0]}
    assert (counts - p).abs().sum() / 2 < 0.12
    assert (counts > 0).sum() > 50, "nothing is cut off"


def test_it_needs_a_retain_set():
    sga = {"method": {"name": "sga"}}
    with pytest.raises(RecipeError, match=r"data\.synthetic.*data\.retain"):
        from_mapping({"model": {"name": "m"}, "data": {"forget": "f", "synthetic": 5}, **sga})
    with pytest.raises(RecipeError, match=r"data\.synthetic"):
        from_mapping({"model": {"name": "m"}, "data": {"forget": "f", "retain": "r", "synthetic": -1}, **sga})
