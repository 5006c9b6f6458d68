"""Merging against its oracles: stacked PEFT, a naive sum, and loading the merged weights with a quantization."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS, VOCABULARY
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, conversion_mapping, core_model_loading

from adapter_unlearn import ModelError, OutputError, RecipeError, assets, load_base, merge, models
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights import streaming as stream
from adapter_unlearn.weights.adapter_files import check_base

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]
PROPERTY = settings(max_examples=20, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj", "embed_tokens"],
    "gpt_neox": ["query_key_value", "dense_h_to_4h"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
    "embedded": ["q_proj", "up_proj", "o_proj"],
}
IDS = torch.arange(60).reshape(2, 30)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Architecture -> a base's folder in float32, random weights; `embedded` is the shipped one."""
    folders = {"embedded": "embedded:model"}

    def folder(name: str, **changes) -> str:
        key = name + str(changes)
        if name == "embedded":
            return folders[name]
        if key not in folders:
            torch.manual_seed(0)
            config = type(CONFIGS[name]).from_dict(CONFIGS[name].to_dict() | changes)
            model = AutoModelForCausalLM.from_config(config).float()
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    torch.nn.init.normal_(parameter, std=0.08)
            folders[key] = str(tmp_path_factory.mktemp(name) / "base")
            model.save_pretrained(folders[key])
        return folders[key]

    return folder


def save_adapter(folder, base, targets, seed=0, size=0.08, **options):
    """A random adapter of the base, as PEFT writes it; `size` is about |delta| / |weight|."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"r": 4, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM"} | options
        model = get_peft_model(load_base(base, "none", "float32"), LoraConfig(**options))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=size**0.5 / 2)
        model.save_pretrained(str(folder))
    return folder


def three(tmp_path, base, targets):
    """Adapters of several targets, ranks and scalings."""
    return [
        save_adapter(tmp_path / "a", base, targets),
        save_adapter(tmp_path / "b", base, targets[:1], seed=1, use_rslora=True, rank_pattern={targets[0]: 6}),
        save_adapter(tmp_path / "c", base, targets[1:3], seed=2, alpha_pattern={targets[1]: 3}),
    ]


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits.float()


def merged_logits(folder, quantization="none", dtype="float32"):
    return logits(load_base(str(folder), quantization, dtype))


def stacked_logits(base, adapters):
    return logits(models.stack(load_base(base, "none", "float32"), adapters))


def weights(folder):
    files = sorted(Path(folder).glob("*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def rewrite(folder, tensors):
    """Give a base other tensors."""
    save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def manifest(folder):
    return json.loads((Path(folder) / "arithmetic.json").read_text())


# --- what is computed ---


@pytest.mark.parametrize("architecture", list(TARGETS))
@pytest.mark.parametrize("number", [1, 3])
def test_merged_is_stacked(bases, tmp_path, architecture, number):
    base = bases(architecture)
    adapters = three(tmp_path, base, TARGETS[architecture])[:number]
    result = merge(base, adapters, tmp_path / "merged", dtype="float32")
    wanted = stacked_logits(base, adapters)
    torch.testing.assert_close(merged_logits(result), wanted, atol=1e-4, rtol=0)
    assert (wanted - merged_logits(base)).abs().max() > 0.3  # the adapters do something


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
    assert_refused(tmp_path, "q_proj, which has no weight of its own in the base's files", str(base), within)
    changed = weights(merge(str(base), beside, tmp_path / "merged"))
    assert {key for key in tensors if not torch.equal(tensors[key], changed[key])} == {
        f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)
    }


TIED = {
    "head alone": (["HEAD"], {}, True),
    "embedding alone": (["EMBEDDING"], {}, True),
    "both, each its own": (["HEAD", "EMBEDDING"], {}, True),
    "both, tied": (["EMBEDDING"], {"ensure_weight_tying": True}, False),
    "neither": ([], {}, False),
}


@pytest.mark.parametrize(
    ("architecture", "case"),
    # PEFT ties the adapters of what is called embed_tokens only
    [*(("llama", case) for case in TIED), *(("gpt2", case) for case in TIED if case != "both, tied")],
)
def test_tied_layers(bases, tmp_path, architecture, case):
    """Stacked, each of two tied layers acts with its own delta: so it does when merged, and if need be the tie goes."""
    targets, options, parted = TIED[case]
    names = {"HEAD": "lm_head", "EMBEDDING": {"llama": "embed_tokens", "gpt2": "wte"}[architecture]}
    base = shutil.copytree(bases(architecture, tie_word_embeddings=True), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    if architecture == "gpt2":
        del config["tie_word_embeddings"]  # as in old configs: GPT-2 ties by default
        (base / "config.json").write_text(json.dumps(config))
    chosen = [*(names[x] for x in targets), TARGETS[architecture][0]]
    adapter = save_adapter(tmp_path / "a", str(base), chosen, **options)
    result = merge(str(base), adapter, tmp_path / "merged")
    wanted = stacked_logits(str(base), [adapter])
    torch.testing.assert_close(merged_logits(result), wanted, atol=1e-4, rtol=0)
    loaded = load_base(str(result), "none", "float32")
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) is not parted
    assert ("lm_head.weight" in weights(result)) is parted
    assert bool(manifest(result)["untied"]) is parted
    for quantization in ("nf4", "int8") if parted else ():
        quantized = merge(str(base), adapter, tmp_path / quantization, quantization)
        assert torch.equal(merged_logits(quantized, quantization), merged_logits(result, quantization))


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


# --- how it is written ---

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, None: None}


def naive(base, adapters, dtype):
    """The definition: every delta formed whole, added to the whole weight in float64, rounded once."""
    tensors = weights(base)
    for folder in adapters:
        config = json.loads((folder / "adapter_config.json").read_text())
        found = load_file(folder / "adapter_model.safetensors")
        for key in [key for key in found if key.endswith("lora_A.weight")]:
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = found[key.replace("lora_A", "lora_B")].double()
            delta = config["lora_alpha"] / config["r"] * b @ found[key].double()
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"].double() + delta
    return {key: x.to(dtype or torch.float32) for key, x in tensors.items()}


@PROPERTY
@given(
    block=st.integers(1, 5000),
    shard_bytes=st.sampled_from([1, 20_000, 50_000, 10**9]),
    dtype=st.sampled_from(list(DTYPES)),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3),
    size=st.sampled_from([0.0, 1e-4, 0.1, 2.0]),
)
def test_streamed_is_the_naive_sum(bases, block, shard_bytes, dtype, seeds, size):
    """Whatever the blocks, shards and dtypes: each tensor is the exact sum but for one rounding, or untouched."""
    base = bases("llama")
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK", block)
        folder = Path(name)
        adapters = [
            save_adapter(folder / f"{i}", base, ["q_proj", "down_proj"][: 1 + seed % 2], seed=seed, size=size)
            for i, seed in enumerate(seeds)
        ]
        result = merge(base, adapters, folder / "merged", dtype=dtype, shard_bytes=shard_bytes)
        found, wanted, before = weights(result), naive(base, adapters, DTYPES[dtype]), weights(base)
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            if "q_proj" in key or "down_proj" in key:
                spacing = torch.finfo(tensor.dtype).eps * tensor.double().abs() + 1e-12
                assert ((found[key].double() - tensor.double()).abs() <= spacing).all(), key
                assert found[key].dtype == tensor.dtype
            else:
                assert torch.equal(found[key], before[key].to(tensor.dtype)), key
        files = sorted(result.glob("*.safetensors"))
        for file in files:
            data = sum(tensor.nbytes for tensor in load_file(file).values())
            assert data <= shard_bytes or len(load_file(file)) == 1
        if len(files) > 1:
            index = json.loads((result / stream.INDEX).read_text())
            assert index["weight_map"] == {key: file.name for file in files for key in load_file(file)}
            assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
        else:
            assert [file.name for file in files] == [stream.SINGLE]


@PROPERTY
@given(st.data())
def test_the_stream_writes_what_safetensors_reads(data):
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float64]
    shapes = st.lists(st.integers(0, 7), max_size=3)
    made = data.draw(st.lists(st.tuples(st.sampled_from(kinds), shapes), min_size=1, max_size=6))
    tensors = {f"t{i}": torch.randint(0, 2, shape).to(dtype) for i, (dtype, shape) in enumerate(made)}
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK", data.draw(st.integers(1, 20)))
        first, second = Path(name) / "a.safetensors", Path(name) / "b.safetensors"
        save_file(tensors, first)
        copies = [
            stream.Tensor(key, x.dtype, x.shape, lambda x=x: (block for _, block in x.blocks()))
            for key, x in stream.read_headers(first).items()
        ]
        stream.write(second, copies)
        found = load_file(second)
        assert found.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor)


def test_no_dtype_keeps_each_tensors_own(bases, tmp_path):
    base = shutil.copytree(bases("llama"), tmp_path / "base")
    mixed = {key: tensor if "norm" in key else tensor.bfloat16() for key, tensor in weights(base).items()}
    rewrite(base, mixed)
    adapter = save_adapter(tmp_path / "a", str(base), ["q_proj"])
    result = merge(str(base), adapter, tmp_path / "merged")
    assert {key: x.dtype for key, x in weights(result).items()} == {key: x.dtype for key, x in mixed.items()}
    assert json.loads((result / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((base / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize(
    ("architecture", "dtype"), [("llama", "bfloat16"), ("gpt2", "float32"), ("gpt_neox", "float32")]
)
def test_requantized_is_the_merged_model_quantized(bases, tmp_path, architecture, dtype, quantization):
    base = bases(architecture)
    adapter = save_adapter(tmp_path / "a", base, TARGETS[architecture])
    full = merge(base, adapter, tmp_path / "full", dtype=dtype)
    result = merge(base, adapter, tmp_path / "result", quantization, dtype=dtype)
    found = merged_logits(result, quantization, dtype)
    assert torch.equal(found, merged_logits(full, quantization, dtype))
    assert not torch.equal(found, merged_logits(full, "none", dtype))  # it is quantized
    assert sorted(path.name for path in result.iterdir() if path.is_dir()) == []
    before, after = (json.loads((x / "config.json").read_text()) for x in (full, result))
    assert {key for key in after if after[key] != before.get(key)} == {"quantization_config"}
    about = manifest(result)
    assert about["quantization"] == quantization and dtype in about["order"] and about["dtype"] == dtype


def test_what_comes_along(tmp_path):
    base = shutil.copytree(assets.resolve("embedded:model"), tmp_path / "base")
    adapter = save_adapter(tmp_path / "a", str(base), ["q_proj"])
    kept = ["LICENSE", "NOTICE.txt", "chat_template.jinja", "merges.txt", "modeling_own.py", "tokenizer.model"]
    left = ["README.md", "pytorch_model.bin", "training_args.bin", "adapter_config.json", "texts.jsonl", "notes.txt"]
    for name in [*kept, *left]:
        (base / name).write_text("{}")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("x")
    result = merge(str(base), adapter, tmp_path / "merged")
    shipped = {path.name for path in Path(assets.resolve("embedded:model")).iterdir()}
    assert {path.name for path in result.iterdir()} == {*kept, *shipped, "additional_chat_templates", "arithmetic.json"}
    assert models.load_tokenizer(str(result)).encode("Hello") == models.load_tokenizer(str(base)).encode("Hello")


def test_the_manifest_says_what_was_merged(bases, tmp_path):
    base = bases("llama")
    adapters = three(tmp_path, base, TARGETS["llama"])
    result = merge(base, adapters, tmp_path / "merged")
    about = manifest(result)
    assert about["operation"] == "merge" and about["dtype"] == "float32" and about["quantization"] == "none"
    assert about["base"] == {"name": base, "revision": None, "fingerprint": run_folder.fingerprint(base)}
    assert [x["fingerprint"] for x in about["inputs"]] == [run_folder.fingerprint(x) for x in adapters]
    before, after = weights(base), weights(result)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {f"{name}.weight" for name in about["relative_size"]["modules"]} == changed
    deltas = {key: (after[key] - before[key]).double().norm().item() for key in changed}
    for key in changed:
        found = about["relative_size"]["modules"][key.removesuffix(".weight")]
        assert found == pytest.approx(deltas[key] / before[key].double().norm().item(), rel=1e-4)
    whole = [sum(x**2 for x in sizes) ** 0.5 for sizes in (deltas.values(), [before[k].norm().item() for k in changed])]
    assert about["relative_size"]["all"] == pytest.approx(whole[0] / whole[1], rel=1e-4)
    with pytest.raises(OutputError, match="already holds a run"):
        merge(base, adapters, result)
    merge(base, adapters[:1], result, overwrite=True)
    assert len(manifest(result)["inputs"]) == 1


# --- what is refused ---


def assert_refused(tmp_path, reason, *arguments, error=ModelError, **options):
    """One line, and nothing is left."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=reason) as caught:
        merge(*arguments, tmp_path / "out", **options)
    assert "\n" not in str(caught.value) and ";" in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def llama(bases, tmp_path):
    """A copy of the Llama's folder, to break, and an adapter for it."""
    base = shutil.copytree(bases("llama"), tmp_path / "base")
    return base, save_adapter(tmp_path / "a", str(base), ["q_proj", "down_proj"])


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_base_is_refused(llama, tmp_path, quantization):
    base, adapter = llama
    load_base(str(base), quantization, "float32").save_pretrained(tmp_path / "quantized")
    reason = f"stored as {quantization}.*rounded away.*full-precision model"
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
    assert_refused(tmp_path, "no index of weight files", str(base), adapter)
    (base / stream.INDEX).write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert_refused(tmp_path, "model-00001-of-00002.safetensors is missing", str(base), adapter)
    (base / stream.INDEX).unlink()
    torch.save(whole, base / "pytorch_model.bin")
    assert_refused(tmp_path, "pickles .*convert them to safetensors", str(base), adapter)
    assert_refused(tmp_path, "no such folder", str(tmp_path / "nothing"), adapter)


def test_an_adapter_of_another_base_is_refused_unless_forced(llama, tmp_path):
    base, adapter = llama

    def made_for(fingerprint):
        (adapter / "unlearning.json").write_text(json.dumps({"base": {"name": "org/two", "fingerprint": fingerprint}}))

    made_for("sha256:2")
    assert_refused(tmp_path, "made for another base \\(org/two\\)", str(base), adapter)
    merge(str(base), adapter, tmp_path / "forced", force=True)
    for fingerprint in (run_folder.fingerprint(base), None):
        made_for(fingerprint)
        merge(str(base), adapter, tmp_path / f"same {fingerprint}")
    made_for("sha256:2")
    check_base(adapter, None, "a base without weights")
    check_base(tmp_path / "base", "sha256:1", "a folder without a manifest")


def test_an_adapter_that_does_not_fit_is_refused(llama, tmp_path, bases):
    base, adapter = llama
    file = adapter / "adapter_model.safetensors"
    whole = load_file(file)
    key = "base_model.model.model.layers.0.self_attn.q_proj"

    def refused(tensors, reason, target=base):
        save_file(tensors, file)
        assert_refused(tmp_path, reason, str(target), adapter)

    deeper = {x: torch.zeros(4, 64) if "lora_A" in x else torch.zeros(64, 4) for x in whole if key in x}
    refused(whole | {x.replace("layers.0", "layers.9"): y for x, y in deeper.items()}, r"layers\.9.*does not have")
    refused(whole | {x.replace("q_proj", "k_proj"): y for x, y in deeper.items()}, r"k_proj.*\(64, 64\).*\(32, 64\)")
    norm = {x.replace("self_attn.q_proj", "input_layernorm"): y for x, y in deeper.items()}
    refused(whole | norm, "a LlamaRMSNorm, and only linear layers")
    table = {x.replace("layers.0.self_attn.q_proj", "embed_tokens"): y for x, y in deeper.items()}
    refused(whole | table, "a Embedding in the base, which its factors are not made for")
    refused(whole | {f"{key}.lora_A.weight": torch.full((4, 64), torch.inf)}, "holds NaN or infinity")
    refused(whole, "layers.0.* does not have", target=bases("gpt2"))
    rewrite(base, weights(base) | {"model.layers.0.self_attn.q_proj.weight": torch.zeros(64, 64, dtype=torch.int8)})
    refused(whole, "q_proj.*stored as I8")
    rewrite(base, weights(base) | {"model.layers.0.self_attn.q_proj.weight": torch.zeros(64, 60)})
    refused(whole, r"q_proj.*\(64, 60\)")
    refused(whole | {f"{key}.lora_magnitude_vector": torch.ones(64)}, "no LoRA factor")


def test_a_copy_of_another_bases_embedding_is_refused(llama, tmp_path):
    """PEFT loads such copies over the base's weights: merged without them the model would be another than stacked."""
    base, _ = llama
    adapter = save_adapter(tmp_path / "e", str(base), ["embed_tokens"])
    file = adapter / "adapter_model.safetensors"
    whole = load_file(file)
    (copy,) = (key for key in whole if "base_layer" in key)
    save_file(whole | {copy: whole[copy].bfloat16()}, file)
    merge(str(base), adapter, tmp_path / "rounded")
    for other in (whole[copy] + 0.1, whole[copy][:-1]):
        save_file(whole | {copy: other.contiguous()}, file)
        assert_refused(tmp_path, r"its copy of model\.embed_tokens\.weight is not that of", str(base), adapter)


def test_what_does_not_fit_into_the_dtype_is_refused(llama, tmp_path):
    base, adapter = llama
    whole = weights(base)
    for key in ("model.layers.1.mlp.down_proj.weight", "model.norm.weight"):  # one that is changed, one that is not
        rewrite(base, whole | {key: whole[key] + 1e5})
        assert_refused(tmp_path, f"{key} is beyond what torch.float16 holds", str(base), adapter, dtype="float16")
        merge(str(base), adapter, tmp_path / key, dtype="bfloat16")
        rewrite(base, whole | {key: whole[key] * torch.nan})
        assert_refused(tmp_path, f"{key} holds NaN", str(base), adapter, dtype="float16")


def test_places_and_flags_are_checked_first(llama, tmp_path):
    base, adapter = llama
    assert_refused(tmp_path, "name one adapter folder", str(base), [], error=RecipeError)
    assert_refused(tmp_path, "1 or more", str(base), adapter, error=RecipeError, shard_bytes=0)
    (base / "arithmetic.json").write_text("{}")
    (adapter / "arithmetic.json").write_text("{}")
    for read in (base, adapter):
        with pytest.raises(OutputError, match="which is read"):
            merge(str(base), adapter, read, overwrite=True)
    assert (base / "model.safetensors").is_file() and (adapter / "adapter_model.safetensors").is_file()


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
        result = merge(str(base), adapter, tmp_path / quantization, quantization, trust_remote_code=True)
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


# --- in other processes ---

ELSEWHERE = """
import sys
sys.modules["adapter_unlearn"] = None
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, conversion_mapping, core_model_loading
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    torch.save(model(input_ids=torch.arange(60).reshape(2, 30)).logits.detach().float(), f"{folder}/logits.pt")
"""


def run(script, *words, **options):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, timeout=600, **options
    )


def test_results_load_in_a_process_without_this_package(bases, tmp_path):
    base = bases("gpt2")
    adapter = save_adapter(tmp_path / "a", base, [*TARGETS["gpt2"], "wte"])  # which unties
    kinds = ["none", "nf4", "int8"]
    results = [merge(base, adapter, tmp_path / kind, kind, shard_bytes=50_000) for kind in kinds]
    done = run(ELSEWHERE, *results, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for kind, result in zip(kinds, results):
        assert len([*result.glob("*.safetensors")]) > 1
        torch.testing.assert_close(torch.load(result / "logits.pt"), merged_logits(result, kind), atol=1e-4, rtol=0)


KILLED = """
import os, signal, sys
from adapter_unlearn import merge
from adapter_unlearn.weights import streaming as stream
write, calls = stream.write, []
def dying(path, tensors):
    write(path, tensors)
    calls.append(path)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
stream.write = dying
merge(sys.argv[1], sys.argv[2], sys.argv[3], shard_bytes=20_000)
"""


def test_a_killed_merge_leaves_nothing_that_looks_finished(bases, tmp_path):
    base = bases("llama")
    adapter = save_adapter(tmp_path / "a", base, ["q_proj"])
    target = tmp_path / "out" / "merged"
    done = run(KILLED, base, adapter, target)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not target.exists()
    assert [path.suffix for path in target.parent.iterdir()] == [".partial"]
    assert merge(base, adapter, target) == target  # and it is in nobody's way
    assert torch.isfinite(merged_logits(target)).all()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("fault", [RuntimeError("bug"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_merge_leaves_nothing(bases, tmp_path, monkeypatch, fault, quantization):
    base = bases("llama")
    adapter = save_adapter(tmp_path / "a", base, ["q_proj"])

    def broken(*_, **__):
        raise fault

    place = (models, "load_base") if quantization == "nf4" else (run_folder, "write_json")
    with monkeypatch.context() as patch:
        patch.setattr(*place, broken)
        expected = OutputError if isinstance(fault, OSError) else type(fault)
        with pytest.raises(expected):
            merge(base, adapter, tmp_path / "out", quantization)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def measured(place, shard_bytes, **sizes):
    script = Path(__file__).with_name("merge_memory.py")
    words = [sys.executable, script, place, str(shard_bytes), json.dumps(sizes)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")
def test_memory_is_a_few_blocks(tmp_path):
    sizes = {"vocab_size": 16384, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    found = measured(tmp_path, 110 * 10**6, **sizes)
    assert found["bytes"] > 200e6 and found["shards"] == 2
    assert 0 < found["peak"] < 80e6  # 30 to 40 MB seen; a shard is 110 MB, the largest tensor in float64 134 MB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")
def test_a_model_of_two_gigabytes(tmp_path):
    sizes = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 17}
    found = measured(tmp_path, 500 * 10**6, **sizes)
    assert found["bytes"] > 2e9 and found["shards"] >= 4
    assert found["peak"] < 1.2e9
