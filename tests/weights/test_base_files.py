"""Reading bases: old names, ties and conversions find their place, and unreadable weights are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers import VOCABULARY
from merging_helpers import (
    TARGETS,
    TIED,
    WARNINGS,
    assert_refused,
    logits,
    manifest,
    merged_logits,
    rewrite,
    save_adapter,
    stacked_logits,
    weights,
)  # fmt: skip
from transformers import AutoModelForCausalLM, MixtralConfig, conversion_mapping, core_model_loading

from adapter_unlearn import Permissions, load_base, merge, models
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights import streaming as stream

pytestmark = WARNINGS


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_checkpoints_with_the_names_of_old(bases, tmp_path, architecture):
    """GPT-2's published files lack the base's prefix and hold masks, GPT-NeoX's call the head embed_out."""
    base = shutil.copytree(bases(architecture), tmp_path / "base")
    old = {
        "gpt2": lambda key: key.removeprefix("transformer."),
        "gpt_neox": lambda key: key.replace("lm_head.", "embed_out."),
    }[architecture]
    tensors = {old(key): tensor for key, tensor in weights(base).items()}
    masks = {"h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8), "h.0.attn.masked_bias": torch.tensor(-1e9)}
    rewrite(base, tensors | (masks if architecture == "gpt2" else {}))
    targets = TARGETS[architecture] + ["lm_head"] * (architecture == "gpt_neox")
    adapter = save_adapter(tmp_path / "a", str(base), targets)
    result = merge(str(base), adapter, tmp_path / "merged")
    torch.testing.assert_close(merged_logits(result), stacked_logits(str(base), [adapter]), atol=1e-4, rtol=0)
    narrow = merge(str(base), adapter, tmp_path / "narrow", dtype="float16")  # in which -1e9 is infinite
    assert set(weights(narrow)) == set(weights(result)) == set(weights(base))
    if architecture == "gpt2":
        assert weights(narrow)["h.0.attn.masked_bias"] == -1e9
        assert weights(narrow)["h.0.attn.c_attn.weight"].dtype == torch.float16


def test_weights_that_are_joined_on_loading_pass_through(tmp_path):
    """Mixtral's files hold an expert a tensor, the model all of them in one: they have no counterpart by name."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, num_local_experts=2)
    base = str(tmp_path / "base")
    AutoModelForCausalLM.from_config(config).float().save_pretrained(base)
    adapter = save_adapter(tmp_path / "a", base, ["q_proj", "o_proj"])
    result = merge(base, adapter, tmp_path / "merged")
    torch.testing.assert_close(merged_logits(result), stacked_logits(base, [adapter]), atol=1e-4, rtol=0)
    narrow = weights(merge(base, adapter, tmp_path / "narrow", dtype="bfloat16"))
    assert any("experts.1." in key for key in narrow) and {x.dtype for x in narrow.values()} == {torch.bfloat16}


def test_a_target_that_is_part_of_a_stored_tensor_is_refused(bases, tmp_path, monkeypatch):
    base = shutil.copytree(bases("llama"), tmp_path / "base")
    within, beside = (save_adapter(tmp_path / name, str(base), [name]) for name in ("q_proj", "down_proj"))
    parts = [f"self_attn.{x}_proj.weight" for x in "qkv"]
    rule = core_model_loading.WeightConverter(["self_attn.qkv.weight"], parts, [core_model_loading.Chunk(dim=0)])
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda _: [rule])
    tensors = weights(base)
    for layer in ("model.layers.0", "model.layers.1"):
        tensors[f"{layer}.self_attn.qkv.weight"] = torch.cat([tensors.pop(f"{layer}.{part}") for part in parts])
    rewrite(base, tensors)
    assert_refused(tmp_path, "q_proj, .*; name the base", str(base), within)
    changed = weights(merge(str(base), beside, tmp_path / "merged"))
    assert {key for key in tensors if not torch.equal(tensors[key], changed[key])} == {
        f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)
    }


def test_a_tie_stored_under_the_other_name_or_under_both(bases, tmp_path):
    base = shutil.copytree(bases("llama", tie_word_embeddings=True), tmp_path / "base")
    adapters = {
        case: save_adapter(tmp_path / f"adapter {case}", str(base), ["embed_tokens"], **TIED[case][1])
        for case in ("embedding alone", "both, tied")
    }
    tensors = weights(base)
    table = tensors.pop("model.embed_tokens.weight")
    for stored in (["lm_head.weight"], ["lm_head.weight", "model.embed_tokens.weight"]):
        rewrite(base, tensors | {key: table.clone() for key in stored})
        for case, adapter in adapters.items():
            result = merge(str(base), adapter, tmp_path / f"{len(stored)} {case}")
            wanted = stacked_logits(str(base), [adapter])
            torch.testing.assert_close(merged_logits(result), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_base_is_refused(llama, tmp_path, quantization):
    base, adapter = llama
    load_base(str(base), quantization, "float32").save_pretrained(tmp_path / "quantized")
    reason = f"stored as {quantization}.*; name the full-precision model"
    for wanted in ("none", quantization):
        assert_refused(tmp_path, reason, str(tmp_path / "quantized"), adapter, quantization=wanted)


def test_weights_that_cannot_be_read_are_refused(llama, tmp_path):
    base, adapter = llama
    file = base / "model.safetensors"
    whole = weights(base)
    rewrite(base, {key: tensor for key, tensor in whole.items() if "layers.1.mlp.up_proj" not in key})
    assert_refused(tmp_path, "1 weights are missing, .*up_proj", str(base), adapter)
    file.write_bytes(b"garbage")
    assert_refused(tmp_path, "can't be read", str(base), adapter)
    file.unlink()
    assert_refused(tmp_path, "model.safetensors is missing", str(base), adapter)
    (base / stream.INDEX).write_text("{}")
    assert_refused(tmp_path, "safetensors.index.json: ", str(base), adapter)
    (base / stream.INDEX).write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert_refused(tmp_path, "model-00001-of-00002.safetensors is missing", str(base), adapter)
    (base / stream.INDEX).unlink()
    torch.save(whole, base / "pytorch_model.bin")
    assert_refused(tmp_path, "pickles .*safetensors", str(base), adapter)
    assert_refused(tmp_path, "no such folder", str(tmp_path / "nothing"), adapter)


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_a_model_with_its_own_code(llama, tmp_path):
    base, adapter = llama
    config = json.loads((base / "config.json").read_text()) | {"model_type": "own", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (base / "config.json").write_text(json.dumps(config))
    (base / "own.py").write_text(OWN_CODE)
    assert_refused(tmp_path, "trust_remote_code", str(base), adapter)
    for quantization in ("none", "nf4"):
        result = merge(
            str(base), adapter, tmp_path / quantization, quantization, permissions=Permissions(trust_remote_code=True)
        )
        loaded = load_base(str(result), quantization, "float32", trust_remote_code=True)
        assert type(loaded).__name__ == "OwnModel"
        if quantization == "none":
            stacked = models.stack(load_base(str(base), "none", "float32", trust_remote_code=True), [adapter])
            torch.testing.assert_close(logits(loaded), logits(stacked), atol=1e-4, rtol=0)


def test_a_model_from_the_hubs_cache(llama, tmp_path, monkeypatch):
    """Without a hub: a cache as huggingface_hub lays it out, of links, and no connection."""
    base, adapter = llama
    commit = "0123456789" * 4
    cache = tmp_path / "cache" / "models--org--small"
    snapshot = cache / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in base.iterdir():
        (snapshot / file.name).symlink_to(file)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    merge("org/small", adapter, tmp_path / "merged")
    about = manifest(tmp_path / "merged")
    assert about["base"] == {"name": "org/small", "revision": commit, "fingerprint": run_folder.fingerprint(base)}
    assert not [path for path in (tmp_path / "merged").iterdir() if path.is_symlink()]
    merge(str(base), adapter, tmp_path / "other")
    assert all(map(torch.equal, weights(tmp_path / "merged").values(), weights(tmp_path / "other").values()))
