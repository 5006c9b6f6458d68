"""Merging against its oracles: stacked PEFT, and loading the merged weights with a quantization."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from merging_helpers import (
    TARGETS,
    TIED,
    WARNINGS,
    assert_refused,
    manifest,
    merged_logits,
    rewrite,
    save_adapter,
    stacked_logits,
    three,
    weights,
)  # fmt: skip
from safetensors.torch import load_file, save_file

from adapter_unlearn import OutputError, Permissions, RecipeError, assets, load_base, merge, models
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights.adapter_files import check_base

pytestmark = WARNINGS


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


# --- what is written ---


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
    merge(base, adapters[:1], result, permissions=Permissions(overwrite=True))
    assert len(manifest(result)["inputs"]) == 1


# --- what is refused ---


def test_an_adapter_of_another_base_is_refused_unless_forced(llama, tmp_path):
    base, adapter = llama

    def made_for(fingerprint):
        (adapter / "unlearning.json").write_text(json.dumps({"base": {"name": "org/two", "fingerprint": fingerprint}}))

    made_for("sha256:2")
    assert_refused(tmp_path, "another base \\(org/two\\).*--force", str(base), adapter)
    merge(str(base), adapter, tmp_path / "forced", permissions=Permissions(force=True))
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
    refused(whole | {x.replace("layers.0", "layers.9"): y for x, y in deeper.items()}, r"layers\.9.*; name the base")
    refused(whole | {x.replace("q_proj", "k_proj"): y for x, y in deeper.items()}, r"k_proj.*\(64, 64\).*\(32, 64\)")
    norm = {x.replace("self_attn.q_proj", "input_layernorm"): y for x, y in deeper.items()}
    refused(whole | norm, "input_layernorm, a LlamaRMSNorm")
    table = {x.replace("layers.0.self_attn.q_proj", "embed_tokens"): y for x, y in deeper.items()}
    refused(whole | table, "embed_tokens, a Embedding")
    refused(whole | {f"{key}.lora_A.weight": torch.full((4, 64), torch.inf)}, "holds NaN or infinity")
    refused(whole, "layers.0.*; name the base", target=bases("gpt2"))
    rewrite(base, weights(base) | {"model.layers.0.self_attn.q_proj.weight": torch.zeros(64, 64, dtype=torch.int8)})
    refused(whole, "q_proj.*stored as I8")
    rewrite(base, weights(base) | {"model.layers.0.self_attn.q_proj.weight": torch.zeros(64, 60)})
    refused(whole, r"q_proj.*\(64, 60\)")
    refused(whole | {f"{key}.lora_magnitude_vector": torch.ones(64)}, "lora_magnitude_vector")


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
        assert_refused(tmp_path, r"its copy of model\.embed_tokens\.weight differs", str(base), adapter)


def test_what_does_not_fit_into_the_dtype_is_refused(llama, tmp_path):
    base, adapter = llama
    whole = weights(base)
    for key in ("model.layers.1.mlp.down_proj.weight", "model.norm.weight"):  # one that is changed, one that is not
        rewrite(base, whole | {key: whole[key] + 1e5})
        assert_refused(
            tmp_path, f"{key} is out of range of torch.float16.*dtype bfloat16", str(base), adapter, dtype="float16"
        )
        merge(str(base), adapter, tmp_path / key, dtype="bfloat16")
        rewrite(base, whole | {key: whole[key] * torch.nan})
        assert_refused(tmp_path, f"{key} holds NaN", str(base), adapter, dtype="float16")


def test_places_and_flags_are_checked_first(llama, tmp_path):
    base, adapter = llama
    assert_refused(tmp_path, "adapter: .*name", str(base), [], error=RecipeError)
    assert_refused(tmp_path, "shard_bytes: 0", str(base), adapter, error=RecipeError, shard_bytes=0)
    (base / "arithmetic.json").write_text("{}")
    (adapter / "arithmetic.json").write_text("{}")
    for read in (base, adapter):
        with pytest.raises(OutputError, match="--output_dir would replace the input"):
            merge(str(base), adapter, read, permissions=Permissions(overwrite=True))
    assert (base / "model.safetensors").is_file() and (adapter / "adapter_model.safetensors").is_file()


# --- in other processes ---


def run(script, *words, **options):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, timeout=600, **options
    )


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
