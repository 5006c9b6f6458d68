"""Merging against its oracles: stacked PEFT, a naive sum, and loading the merged weights with a quantization."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapter_unlearn import OutputError, load_base, merge, models, run_folder
from adapter_unlearn import safetensors_stream as stream

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]
PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
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
    return {
        key: tensor for file in sorted(Path(folder).glob("*.safetensors")) for key, tensor in load_file(file).items()
    }


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
    save_file(
        tensors | (masks if architecture == "gpt2" else {}), base / "model.safetensors", metadata={"format": "pt"}
    )
    targets = TARGETS[architecture] + ["lm_head"] * (architecture == "gpt_neox")
    adapter = save_adapter(tmp_path / "a", str(base), targets)
    result = merge(str(base), adapter, tmp_path / "merged")
    torch.testing.assert_close(merged_logits(result), stacked_logits(str(base), [adapter]), atol=1e-4, rtol=0)
    narrow = merge(str(base), adapter, tmp_path / "narrow", dtype="float16")  # in which -1e9 is infinite
    assert set(weights(narrow)) == set(weights(result)) == set(weights(base))
    if architecture == "gpt2":
        assert weights(narrow)["h.0.attn.masked_bias"] == -1e9
        assert weights(narrow)["h.0.attn.c_attn.weight"].dtype == torch.float16


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
    adapter = save_adapter(
        tmp_path / "a", str(base), [names[x] for x in targets] + TARGETS[architecture][:1], **options
    )
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
        save_file(
            tensors | {key: table.clone() for key in stored}, base / "model.safetensors", metadata={"format": "pt"}
        )
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
    base = shutil.copytree(models.assets.resolve("embedded:model"), tmp_path / "base")
    kept = ["LICENSE", "NOTICE.txt", "chat_template.jinja", "merges.txt", "modeling_own.py", "tokenizer.model"]
    left = ["README.md", "pytorch_model.bin", "training_args.bin", "adapter_config.json", "texts.jsonl", "notes.txt"]
    for name in [*kept, *left]:
        (base / name).write_text(name)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("x")
    (base / "adapter_config.json").unlink()
    adapter = save_adapter(tmp_path / "a", str(base), ["q_proj"])
    (base / "adapter_config.json").write_text("{}")
    result = merge(str(base), adapter, tmp_path / "merged")
    shipped = {path.name for path in Path(models.assets.resolve("embedded:model")).iterdir()}
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
