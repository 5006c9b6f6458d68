"""Bases and adapters: what is refused instead of being scored wrongly, and what is left as it was."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers import CONFIGS, as_sequences, memorize, random_rows
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from adapter_unlearn import Adapter, ModelError, load_base, models, score
from adapter_unlearn.scoring.scores import NOT_FINITE, any_sound, check_finite


@pytest.fixture
def folder(memorizers, tmp_path):
    """A copy of the memorizing Llama's folder, to break."""
    return shutil.copytree(memorizers("llama"), tmp_path / "model")


@pytest.fixture
def adapter(folder, tmp_path):
    """A folder with a LoRA adapter that does something."""
    model = models.attach(load_base(str(folder), "none", "float32"), Adapter(r=4, alpha=8))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    return tmp_path / "adapter"


def rewrite(file, change):
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_missing_weights_are_not_made_up(folder):
    rewrite(folder / "model.safetensors", lambda t: {k: v for k, v in t.items() if "layers.1.mlp.up_proj" not in k})
    with pytest.raises(ModelError, match=r"1 weights are missing, .*up_proj"):
        load_base(str(folder), "none", "float32")


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_broken_weights(folder, content):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500] if content is None else content)
    with pytest.raises(ModelError, match="can't be loaded"):
        load_base(str(folder), "none", "float32")


@pytest.mark.parametrize("change", [{"hidden_size": "wide"}, {"hidden_size": 128}, {"model_type": "nonsense"}])
def test_a_config_that_does_not_fit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError) as caught:
        load_base(str(folder), "none", "float32")
    assert "\n" not in str(caught.value)


def test_a_quantized_model_is_taken_as_it_is_or_not_at_all(folder, tmp_path):
    load_base(str(folder), "nf4", "float32").save_pretrained(tmp_path / "nf4")
    for other in ("none", "int8"):
        with pytest.raises(ModelError, match="stored as nf4"):
            load_base(str(tmp_path / "nf4"), other, "float32")
    sequences = as_sequences(random_rows(0))
    again = score(load_base(str(tmp_path / "nf4"), "nf4", "float32"), sequences)
    assert again.equals(score(load_base(str(folder), "nf4", "float32"), sequences))


def test_the_base_has_no_dropout(tmp_path):
    memorize(CONFIGS["gpt2"], random_rows(0), steps=1).save_pretrained(tmp_path / "gpt2")
    model = models.attach(load_base(str(tmp_path / "gpt2"), "none", "float32"), Adapter()).train()
    ids = torch.tensor([random_rows(0)[0]])
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_an_adapter_that_finds_no_place_is_refused(folder, adapter):
    file = adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    for change in (
        lambda t: {k.replace("model.layers", "transformer.h"): v for k, v in t.items()},
        lambda t: dict(list(t.items())[:4]),
        lambda t: t | {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 64)},
    ):
        file.write_bytes(whole)
        rewrite(file, change)
        with pytest.raises(ModelError, match="does not fit"):
            models.stack(load_base(str(folder), "none", "float32"), [adapter])
    file.write_bytes(b"garbage")
    with pytest.raises(ModelError, match="does not fit"):
        models.stack(load_base(str(folder), "none", "float32"), [adapter])


def test_an_adapter_of_another_width_is_refused(adapter, memorizers):
    with pytest.raises(ModelError, match="does not fit"):
        models.stack(load_base(str(memorizers("gpt_neox")), "none", "float32"), [adapter])


def test_only_lora_is_stacked(folder, tmp_path):
    base = load_base(str(folder), "none", "float32")
    prompt = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    prompt.save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(ModelError, match="PROMPT_TUNING"):
        models.stack(load_base(str(folder), "none", "float32"), [tmp_path / "prompt"])


def test_dora_is_measured_as_peft_computes_it(folder, tmp_path):
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", use_dora=True)
    model = get_peft_model(load_base(str(folder), "none", "float32"), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(tmp_path / "dora"), save_embedding_layers=False)
    stacked = models.stack(load_base(str(folder), "none", "float32"), [tmp_path / "dora"])
    ids = torch.tensor([random_rows(0)[0]])
    assert torch.equal(stacked(input_ids=ids).logits, model(input_ids=ids).logits)


def test_switching_adapters_leaves_what_is_trained(folder, adapter):
    model = models.attach(load_base(str(folder), "none", "float32"), Adapter(r=4), frozen_adapter=adapter)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(".default." in name for name in trained)
    for names in ([], ["frozen"], ["default"], ["frozen", "default"]):
        with models.active(model, names):
            pass
        assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
        assert list(model.active_adapters) == ["frozen", "default"]
    stacked = models.stack(load_base(str(folder), "none", "float32"), [adapter, adapter])
    with models.active(stacked, []):
        pass
    assert not [name for name, parameter in stacked.named_parameters() if parameter.requires_grad]


def test_a_broken_adapter_scores_nothing(folder, adapter):
    rewrite(adapter / "adapter_model.safetensors", lambda t: {k: v * float("nan") for k, v in t.items()})
    model = models.stack(load_base(str(folder), "none", "float32"), [adapter])
    frame = score(model, as_sequences([*random_rows(0), [1]]))
    assert frame.drop(columns=["id", "n_tokens", "note"]).isna().all(axis=None)
    assert (frame["note"][:-1] == NOT_FINITE).all() and frame["note"].iloc[-1] not in ("", NOT_FINITE)
    assert not any_sound(frame)
    with pytest.raises(ModelError, match="not finite"):
        check_finite(False, frame["note"])
    check_finite(True, frame["note"])
    check_finite(False, frame["note"][-1:])
