"""Adapter arithmetic against its definition in float64, with PEFT itself as the oracle of what an adapter does."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from adapter_unlearn.errors import ModelError, OutputError, RecipeError
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights import adapter_files, arithmetic
from adapter_unlearn.weights.arithmetic import combine, compress, negate

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
    # a random pattern may match nothing; those that we write match (see the test in another process)
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),
]

SMALL = {"vocab_size": 40, "bos_token_id": None, "eos_token_id": None}
LLAMA = SMALL | {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
BASES = {
    "llama": LlamaConfig(**LLAMA),
    "tied": LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "gpt2": GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, n_positions=32),
    "gpt_neox": GPTNeoXConfig(**LLAMA, max_position_embeddings=32, use_cache=False),
}
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj", "embed_tokens", "lm_head"],
    "tied": ["q_proj", "up_proj", "embed_tokens"],
    "gpt2": ["c_attn", "c_fc", "c_proj", "wte"],
    "gpt_neox": ["query_key_value", "dense_h_to_4h", "embed_in"],
}
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
PROPERTY = settings(max_examples=20, deadline=None, derandomize=True, database=None, phases=[Phase.generate])


def base_of(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(BASES[name], attn_implementation="eager").float().eval()


def save_adapter(folder, base="llama", seed=0, dtype=torch.float32, **lora):
    """A random adapter, as PEFT writes it."""
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(base_of(base), LoraConfig(**(options | lora)))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # in place, for tied layers share their factors
            parameter.data.copy_((torch.randn(parameter.shape, generator=generator) / 4).to(dtype))
    model.save_pretrained(str(folder))
    file = folder / "adapter_model.safetensors"
    save_file({key: tensor.to(dtype) if "lora_" in key else tensor for key, tensor in load_file(file).items()}, file)
    return folder


def deltas(folder, base):
    """Module -> scaling * B @ A in float64, by PEFT."""
    model = PeftModel.from_pretrained(base_of(base), str(folder)).double()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}


def weighted(terms, weights):
    total = {}
    for term, weight in zip(terms, weights):
        for name, delta in term.items():
            total[name] = total.get(name, 0) + weight * delta
    return total


def assert_close(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    scale = sum(float(delta.norm()) ** 2 for delta in wanted.values()) ** 0.5
    for name, delta in wanted.items():
        assert float((found[name] - delta).norm()) <= tolerance * max(float(delta.norm()), 1e-3 * scale), name


@st.composite
def lora(draw, base):
    """Options of save_adapter: every kind of plain LoRA that PEFT can make."""
    targets = draw(st.lists(st.sampled_from(TARGETS[base]), min_size=1, unique=True))
    keys = st.sampled_from([targets[0], r".*\.0\..*", rf"1\..*{targets[-1]}"])
    # PEFT saves the keys sorted, the first match counts: unsorted, overlapping ranks are lost on saving
    pattern = st.dictionaries(keys, st.integers(1, 9)).map(lambda values: dict(sorted(values.items())))
    tied = base == "tied" and "embed_tokens" in targets
    # a rank of the embedding's own does not fit the head that PEFT ties to it: refused (test_refused_tied_rank)
    rank_pattern = {key: rank for key, rank in draw(pattern).items() if not (tied and "embed" in key)}
    return {
        "base": base,
        "seed": draw(st.integers(0, 9999)),
        "dtype": draw(st.sampled_from(list(TOLERANCE))),
        "target_modules": targets,
        "r": draw(st.integers(1, 6)),
        "lora_alpha": draw(st.integers(1, 40)),
        "use_rslora": draw(st.booleans()),
        "rank_pattern": rank_pattern,
        "alpha_pattern": draw(pattern),
        "fan_in_fan_out": base == "gpt2",
        "ensure_weight_tying": tied,
    }


some_adapter = st.sampled_from(list(BASES)).flatmap(lora)
some_adapters = st.sampled_from(list(BASES)).flatmap(lambda base: st.lists(lora(base), min_size=1, max_size=3))
factor = st.floats(-4, 4).filter(lambda x: abs(x) > 0.01)


@PROPERTY
@given(some_adapter, factor)
def test_negate_is_the_definition(options, scale):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = save_adapter(folder / "a", **options)
        scaled = negate(before, folder / "scaled", scale=scale)
        twice = negate(negate(before, folder / "once"), folder / "twice")
        wanted = deltas(before, options["base"])
        assert_close(deltas(scaled, options["base"]), weighted([wanted], [scale]), TOLERANCE[options["dtype"]])
        original, result = (load_file(x / "adapter_model.safetensors") for x in (before, twice))
        assert original.keys() == result.keys()
        for key, tensor in original.items():
            assert result[key].dtype == tensor.dtype
            assert torch.equal(result[key], tensor)


@PROPERTY
@given(some_adapters, st.lists(factor, min_size=3, max_size=3))
def test_combine_is_the_definition(adapters, weights):
    weights, base = weights[: len(adapters)], adapters[0]["base"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = [save_adapter(folder / str(i), **options) for i, options in enumerate(adapters)]
        result = combine(inputs, weights, folder / "sum")
        dtypes = {options["dtype"] for options in adapters}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        tensors = load_file(result / "adapter_model.safetensors")
        assert {tensor.dtype for key, tensor in tensors.items() if "base_layer" not in key} == {dtype}
        terms = [deltas(x, base) for x in inputs]
        found, wanted = deltas(result, base), weighted(terms, weights)
        assert found.keys() == wanted.keys()
        for module, delta in wanted.items():
            # where terms cancel, their own rounding is left: the bound is relative to what is added
            size = sum(
                abs(weight) * float(term[module].norm()) for term, weight in zip(terms, weights) if module in term
            )
            assert float((found[module] - delta).norm()) <= TOLERANCE[dtype] * size


@PROPERTY
@given(some_adapter, st.integers(1, 7))
def test_compress_is_the_best_approximation(options, rank):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = save_adapter(folder / "a", **options)
        result = compress(before, folder / "small", rank=rank)
        original, found = deltas(before, options["base"]), deltas(result, options["base"])
        stated = json.loads((result / "arithmetic.json").read_text())["relative_error"]
        config = json.loads((result / "adapter_config.json").read_text())
        assert config["r"] <= rank and all(value <= rank for value in config["rank_pattern"].values())
        tolerance = TOLERANCE[options["dtype"]]
        errors = {}
        for module, delta in original.items():
            singular = torch.linalg.svdvals(delta)
            best = float(singular[rank:].norm() / singular.norm())
            errors[module] = float((found[module] - delta).norm() / delta.norm())
            assert abs(errors[module] - best) <= 2 * tolerance  # both factors are rounded
            if best < 1e-7:  # nothing to cut off
                assert errors[module] <= 2 * tolerance
            short = module.removeprefix("base_model.model.")
            assert stated["modules"][short] == pytest.approx(errors[module], rel=1e-3, abs=1e-7)
        total = sum((errors[module] * float(original[module].norm())) ** 2 for module in original) ** 0.5
        size = sum(float(delta.norm()) ** 2 for delta in original.values()) ** 0.5
        assert stated["all"] == pytest.approx(total / size, rel=1e-3, abs=1e-7)


def logits(model):
    return model(input_ids=torch.arange(40).reshape(2, 20)).logits.detach()


@pytest.mark.parametrize("base", list(BASES))
def test_combined_adapters_act_as_all_of_them_at_once(tmp_path, base):
    extra = {"fan_in_fan_out": base == "gpt2", "base": base}
    first = save_adapter(tmp_path / "0", seed=1, target_modules=TARGETS[base][:2], use_rslora=True, **extra)
    second = save_adapter(tmp_path / "1", seed=2, r=3, target_modules=TARGETS[base][1:], **extra)
    third = save_adapter(tmp_path / "2", seed=3, target_modules=TARGETS[base][:1], rank_pattern={"0.*": 7}, **extra)
    stacked = PeftModel.from_pretrained(base_of(base), str(first), adapter_name="0")
    stacked.load_adapter(str(second), adapter_name="1")
    stacked.load_adapter(str(third), adapter_name="2")
    stacked.base_model.set_adapter(["0", "1", "2"])
    result = combine([first, second, third], [1, 1, 1], tmp_path / "sum")
    summed = PeftModel.from_pretrained(base_of(base), str(result))
    torch.testing.assert_close(logits(summed), logits(stacked), atol=1e-4, rtol=1e-5)
    assert not torch.allclose(logits(summed), logits(base_of(base)), atol=1e-2)
    less = combine([result, first], [1, -1], tmp_path / "less", rank=10)
    stacked.base_model.set_adapter(["1", "2"])
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(base_of(base), str(less))), logits(stacked), atol=1e-4, rtol=1e-5
    )


def test_tied_head_and_embedding_keep_their_deltas(tmp_path):
    options = {"base": "tied", "target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}
    before = save_adapter(tmp_path / "a", **options)
    wanted = deltas(before, "tied")
    assert any("lm_head" in name for name in wanted)
    tied = wanted["base_model.model.lm_head"]
    torch.testing.assert_close(tied, wanted["base_model.model.model.embed_tokens"])
    for result, factor in ((negate(before, tmp_path / "n"), -1), (combine([before], [2], tmp_path / "c"), 2)):
        assert_close(deltas(result, "tied"), weighted([wanted], [factor]), 1e-6)
        stored = load_file(result / "adapter_model.safetensors")
        assert stored.keys() == load_file(before / "adapter_model.safetensors").keys()  # with the base's embeddings


def test_scale_zero_does_nothing(tmp_path):
    result = negate(save_adapter(tmp_path / "a"), tmp_path / "zero", scale=0)
    assert torch.equal(logits(PeftModel.from_pretrained(base_of("llama"), str(result))), logits(base_of("llama")))
    assert json.loads((result / "arithmetic.json").read_text())["relative_error"]["all"] == 0


def test_a_narrow_dtype_gives_way_before_it_overflows_or_underflows(tmp_path):
    before = save_adapter(tmp_path / "a", dtype=torch.float16)
    wanted = deltas(before, "llama")
    for name, scale in (("large", 1e6), ("small", 1e-6)):
        assert_close(deltas(negate(before, tmp_path / name, scale=scale), "llama"), weighted([wanted], [scale]), 1e-6)
    with pytest.raises(ModelError, match=r"out of range of torch.float32"):
        negate(before, tmp_path / "n", scale=1e300)


def test_manifest_says_what_was_computed_from_what(tmp_path):
    first, second = save_adapter(tmp_path / "a"), save_adapter(tmp_path / "b", seed=1)
    base = {"name": "x", "revision": None, "fingerprint": "sha256:1"}
    (first / run_folder.MANIFEST).write_text(json.dumps({"base": base}))
    manifest = json.loads(
        (combine([first, second], [1.0, -0.5], tmp_path / "c", rank=3) / "arithmetic.json").read_text()
    )
    assert (manifest["operation"], manifest["weights"], manifest["rank"]) == ("combine", [1.0, -0.5], 3)
    assert [entry["fingerprint"] for entry in manifest["inputs"]] == [
        run_folder.fingerprint(x) for x in (first, second)
    ]
    assert manifest["base"]["fingerprint"] == "sha256:1"
    assert manifest["package"]["name"] == "adapter-unlearn"


REFUSED = {
    "peft_type": ({"peft_type": "LOHA"}, "peft_type is LOHA"),
    "dora": ({"use_dora": True}, "DoRA"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 changes the base weights"),
    "olora": ({"init_lora_weights": "olora"}, "olora changes the base weights"),
    "corda": ({"init_lora_weights": "corda"}, "corda changes the base weights"),
    "loftq": ({"init_lora_weights": "loftq"}, "loftq changes the base weights"),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, "lora_ga changes the base weights"),
    "bias": ({"bias": "all"}, "bias is all"),
    "lora_bias": ({"lora_bias": True}, "lora_bias"),
    "layer_replication": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "target_parameters": ({"target_parameters": ["experts"]}, "target_parameters"),
    "megatron": ({"megatron_config": {"a": 1}}, "megatron_config"),
    "alora": ({"alora_invocation_tokens": [1]}, "aLoRA"),
    "qalora": ({"use_qalora": True}, "QALoRA"),
    "bdlora": ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
    "arrow": ({"arrow_config": {"top_k": 1}}, "Arrow"),
    "kasa": ({"kasa_config": {"beta": 1}}, "KaSA"),
    "monteclora": ({"monteclora_config": {"num_samples": 2}}, "MonteCLoRA"),
    "unknown": ({"use_something_new": True}, "use_something_new is set, which this version does not know"),
    "rank": ({"r": 5}, "do not fit rank 5"),
    "pattern": ({"rank_pattern": {"(": 5}}, "no regular expression"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save_adapter(tmp_path_factory.mktemp("plain") / "a", base="llama")


def changed(plain, folder, config=None, tensors=None):
    """A copy of the plain adapter with other config values or tensors."""
    folder.mkdir()
    values = json.loads((plain / "adapter_config.json").read_text()) | (config or {})
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(load_file(plain / "adapter_model.safetensors") | (tensors or {}), folder / "adapter_model.safetensors")
    return folder


def assert_refused(folder, tmp_path, reason):
    output = tmp_path / "out"
    for operation in (
        lambda: negate(folder, output),
        lambda: combine([folder], [1.0], output),
        lambda: compress(folder, output, rank=2),
    ):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(ModelError, match=reason) as error:
            operation()
        assert str(folder) in str(error.value) and ";" in str(error.value) and "\n" not in str(error.value)
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", list(REFUSED))
def test_refused_config(plain, tmp_path, kind):
    config, reason = REFUSED[kind]
    assert_refused(changed(plain, tmp_path / "a", config), tmp_path, reason)


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_initialisations_that_keep_the_base_pass(plain, tmp_path, init):
    result = negate(changed(plain, tmp_path / "a", {"init_lora_weights": init}), tmp_path / "out")
    assert json.loads((result / "adapter_config.json").read_text())["init_lora_weights"] is True


MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({f"{MODULE}.lora_magnitude_vector": torch.ones(16)}, "lora_magnitude_vector .*; take"),
        ({"base_model.model.lm_head.weight": torch.ones(40, 16)}, "lm_head.weight .*; take"),
        ({f"{MODULE}.lora_B.weight": torch.full((16, 4), torch.nan)}, "holds NaN or infinity"),
        ({f"{MODULE}.lora_B.weight": torch.ones(16, 3)}, "do not fit rank 4"),
        ({f"{MODULE}.lora_B.weight": torch.ones(16, 4, dtype=torch.int8)}, "I8"),
        ({"base_model.model.x.lora_A.weight": torch.ones(4, 16)}, "module x has factors of shape"),
    ],
)
def test_refused_tensors(plain, tmp_path, tensors, reason):
    assert_refused(changed(plain, tmp_path / "a", tensors=tensors), tmp_path, reason)


def test_refused_tied_rank(tmp_path):
    options = {"base": "tied", "target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    folder = save_adapter(tmp_path / "a", rank_pattern={"embed_tokens": 7}, **options)
    assert_refused(folder, tmp_path, "module lm_head has factors of shape .* do not fit rank 4")


def test_refused_files(plain, tmp_path):
    assert_refused(tmp_path / "nothing", tmp_path, "adapter_config.json is missing")
    pickle = changed(plain, tmp_path / "pickle")
    (pickle / "adapter_model.safetensors").rename(pickle / "adapter_model.bin")
    assert_refused(pickle, tmp_path, "is a pickle")
    broken = changed(plain, tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"not a tensor")
    assert_refused(broken, tmp_path, "can't be read")
    (broken / "adapter_config.json").write_text("{")
    assert_refused(broken, tmp_path, "can't be read")
    (broken / "adapter_config.json").write_text("[]")
    assert_refused(broken, tmp_path, "no JSON object")


def test_different_bases_are_refused_unless_forced(plain, tmp_path):
    def named(name, base, fingerprint=None, **tensors):
        folder = changed(plain, tmp_path / name, {"base_model_name_or_path": base}, tensors)
        if fingerprint:
            (folder / "arithmetic.json").write_text(json.dumps({"base": {"fingerprint": fingerprint}}))
        return folder

    first, second = named("a", "org/one", "sha256:1"), named("b", "org/two")
    with pytest.raises(ModelError, match=r"another base \(org/two\).*--force"):
        combine([first, second], [1, 1], tmp_path / "out")
    combine([first, second], [1, 1], tmp_path / "forced", force=True)
    combine([first, named("c", "copy/of/one", "sha256:1")], [1, 1], tmp_path / "same")
    with pytest.raises(ModelError, match="another base"):
        combine([first, named("d", "org/one", "sha256:2")], [1, 1], tmp_path / "out")
    wide = {f"{MODULE}.lora_B.weight": torch.ones(18, 4)}
    with pytest.raises(ModelError, match=r"e: module .*q_proj"):
        combine([first, named("e", "org/one", **wide)], [1, 1], tmp_path / "out", force=True)
    copies = {f"base_model.model.{x}.base_layer.weight": torch.ones(40, 16) for x in ("lm_head",)}
    other = {key: tensor + 1 for key, tensor in copies.items()}
    with pytest.raises(ModelError, match="g: its copy of the base's"):
        combine([named("f", None, **copies), named("g", None, **other)], [1, 1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_flags_out_of_range(plain, tmp_path):
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(RecipeError, match="finite"):
            negate(plain, tmp_path / "out", scale=wrong)
        with pytest.raises(RecipeError, match="finite"):
            combine([plain], [wrong], tmp_path / "out")
    with pytest.raises(RecipeError, match="weights: "):
        combine([plain], [1, 1], tmp_path / "out")
    with pytest.raises(RecipeError, match="weights: "):
        combine([], [], tmp_path / "out")
    with pytest.raises(RecipeError, match="rank: 0"):
        compress(plain, tmp_path / "out", rank=0)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_half_written_or_lost(plain, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match=r"mine: .*--output_dir"):
        negate(plain, mine, overwrite=True)
    run = negate(plain, tmp_path / "run", -2.0)
    weights = (run / "adapter_model.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r"run: .*--overwrite"):
        negate(plain, run)
    with pytest.raises(OutputError, match=r"run: .*input"):
        combine([plain, run], [1, 1], run, overwrite=True)
    assert (run / "adapter_model.safetensors").read_bytes() == weights
    before = sorted(tmp_path.iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_json", full)
        with pytest.raises(OutputError, match="No space left"):
            compress(plain, tmp_path / "out", rank=1)
    assert sorted(tmp_path.iterdir()) == before
    assert negate(plain, run, overwrite=True) == run
    assert sorted(x.name for x in run.iterdir()) == sorted(
        ["adapter_config.json", "adapter_model.safetensors", "arithmetic.json"]
    )


@pytest.mark.parametrize("copied", [False, True], ids=["same folder", "copy"])
def test_the_same_adapter_twice_is_refused(plain, tmp_path, copied):
    other = shutil.copytree(plain, tmp_path / "copy") if copied else plain / ".." / plain.name
    with pytest.raises(RecipeError, match="negate --scale"):
        combine([plain, other], [1.0, 1.0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


MANIFESTS = {
    "list": '{"base": [1]}', "text": '{"base": "a model"}', "number": '{"base": 3}', "top": "[1]", "null": "null",
    "fingerprint": '{"base": {"fingerprint": ["a"]}}', "name": '{"base": {"name": {}}}', "cut": '{"base": ',
    "deep": "[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("file", ["unlearning.json", "arithmetic.json"])
@pytest.mark.parametrize("kind", list(MANIFESTS))
def test_an_odd_manifest_is_refused(plain, tmp_path, file, kind):
    adapter = changed(plain, tmp_path / "a")
    (adapter / file).write_text(MANIFESTS[kind])
    for operation in (
        lambda: negate(adapter, tmp_path / "out"),
        lambda: adapter_files.check_base(adapter, "sha256:1", "a base"),
    ):
        with pytest.raises(ModelError, match=file):
            operation()


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_an_alpha_that_is_no_number_is_not_negated(plain, tmp_path, alpha):
    adapter = changed(plain, tmp_path / "a")
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"lora_alpha": alpha}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert_refused(adapter, tmp_path, "lora_alpha")


def test_a_cast_rounds_every_factor_and_widens_none(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(5, 3).half()}
    save_file(tensors, path)
    arithmetic.cast(tmp_path, torch.bfloat16)
    found = load_file(path)
    assert torch.equal(found["a"], tensors["a"].bfloat16()) and torch.equal(found["b"], tensors["b"])
    content = path.read_bytes()
    arithmetic.cast(tmp_path, torch.float32)
    assert path.read_bytes() == content
