"""How much of a delta survives merging: against the weights of really loaded, really merged models."""

from __future__ import annotations

import warnings

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from helpers import CONFIGS, VOCABULARY
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_bnb_weight
from transformers import AutoModelForCausalLM, LlamaConfig

from adapter_unlearn import ModelError, RecipeError, load_base, merge, models, negate, survival
from adapter_unlearn.weights.rounding import overall

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]
TARGETS = {"llama": ["q_proj", "down_proj", "lm_head", "embed_tokens"], "gpt2": ["c_attn", "c_fc"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Architecture -> folder of a base of random, normally distributed weights."""
    folders = {}

    def folder(architecture):
        if architecture not in folders:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(CONFIGS[architecture]).float()
            folders[architecture] = str(tmp_path_factory.mktemp(architecture) / "base")
            model.save_pretrained(folders[architecture])
        return folders[architecture]

    return folder


def save_adapter(folder, base, targets, size=None, seed=0):
    """A random adapter; with `size` every module's |delta| / |weight| is exactly that."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(load_base(base, "none", "float32"), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        if size is not None:
            ratio = layer.get_delta_weight("default").norm() / layer.get_base_layer().weight.norm()
            for factor in layer.lora_B.parameters():
                factor.data *= size / ratio
    model.save_pretrained(str(folder))
    return folder


def effective(model):
    """Module -> the weight that acts, dequantized; (out, in), but for a Conv1D that is not quantized."""
    found = {}
    for name, module in model.named_modules():
        name = name.removeprefix("base_model.model.")
        if isinstance(module, Linear4bit):
            found[name] = dequantize_bnb_weight(module.weight, state=module.weight.quant_state).double()
        elif isinstance(module, Linear8bitLt):
            found[name] = dequantize_bnb_weight(module.weight, state=module.state).double()
        elif isinstance(getattr(module, "weight", None), torch.nn.Parameter) and module.weight.dim() == 2:
            found[name] = module.weight.detach().double()
    return found


def merged_in_place(base, adapters, quantization, dtype="float32"):
    """What must not be done, done by PEFT itself."""
    stacked = models.stack(load_base(base, quantization, dtype), adapters)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Merge lora module to")
        merged = stacked.merge_and_unload()
    models.base._keep_canonical_4bit(merged)
    return merged


def change(base, adapters, tmp_path, quantization, dtype, in_place):
    """Module -> (delta, real change), from models that were really loaded."""
    before = effective(load_base(base, quantization, dtype))
    if in_place:
        model = merged_in_place(base, adapters, quantization, dtype)
    else:
        model = load_base(str(merge(base, adapters, tmp_path / "m", quantization, dtype)), quantization, dtype)
    after = effective(model)
    deltas = {}
    stacked = models.stack(load_base(base, "none", "float32"), adapters).double()
    for name, layer in stacked.named_modules():
        if isinstance(layer, LoraLayer):
            name, total = name.removeprefix("base_model.model."), 0
            for active in [*layer.lora_A, *layer.lora_embedding_A]:
                total = total + layer.get_delta_weight(active).detach()
            turned = quantization != "none" and type(layer.get_base_layer()).__name__ == "Conv1D"
            deltas[name] = total.T if turned else total
    return {name: (delta, after[name] - before[name]) for name, delta in deltas.items()}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("quantization", "in_place"),
    [("none", False), ("nf4", False), ("nf4", True), ("int8", False), ("int8", True)],
)
def test_survival_is_what_happens_to_loaded_models(base, tmp_path, architecture, dtype, quantization, in_place):
    folder, targets = base(architecture), TARGETS[architecture]
    adapters = [
        save_adapter(tmp_path / "a", folder, targets),
        save_adapter(tmp_path / "b", folder, targets[:1], seed=1),
    ]
    wanted = change(folder, adapters, tmp_path, quantization, dtype, in_place)
    frame = survival(folder, adapters, quantization, dtype, in_place).set_index("module")
    assert set(frame.index) == set(wanted)
    for module, (delta, real) in wanted.items():
        row = frame.loc[module]
        assert row["quantized"] == (quantization != "none" and "lm_head" not in module and "embed" not in module)
        assert row["delta_norm"] == pytest.approx(float(delta.norm()), rel=1e-5)
        assert row["projection"] == pytest.approx(float((real * delta).sum() / delta.norm() ** 2), abs=1e-4), module
        # into a bfloat16 embedding in place, peft adds a delta that it has rounded already
        tolerance = 1e-3 if in_place and "embed" in module and dtype == "bfloat16" else 1e-4
        error = float((real - delta).norm() / delta.norm())
        assert row["relative_error"] == pytest.approx(error, abs=tolerance), module
    together = overall(frame)
    deltas, reals = (torch.cat([pair[i].flatten() for pair in wanted.values()]) for i in (0, 1))
    assert together["projection"] == pytest.approx(float((reals * deltas).sum() / deltas.norm() ** 2), abs=1e-4)
    assert together["relative_error"] == pytest.approx(float((reals - deltas).norm() / deltas.norm()), abs=1e-4)


WIDE = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=2,
    bos_token_id=None,
    eos_token_id=None,
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide") / "base"
    AutoModelForCausalLM.from_config(WIDE).float().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("quantization", "size", "least", "most"),
    [
        ("nf4", 0.01, 0.0, 0.05),
        ("nf4", 0.03, 0.0, 0.15),
        ("nf4", 0.1, 0.5, 0.95),
        ("int8", 0.01, 0.8, 1.0),
        ("int8", 0.03, 0.98, 1.02),
        ("int8", 0.1, 0.98, 1.02),
    ],
)
def test_merging_in_place_loses_small_deltas_and_ours_does_not(wide, tmp_path, quantization, size, least, most):
    """Really merged models: of a delta of 1 % of the weights, nf4 in place keeps next to nothing."""
    adapter = save_adapter(tmp_path / "a", wide, "all-linear", size=size)

    def projection(in_place):
        pairs = change(wide, [adapter], tmp_path, quantization, "float32", in_place).values()
        delta, real = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
        found = overall(survival(wide, adapter, quantization, "float32", in_place))
        assert found["relative_size"] == pytest.approx(size, rel=1e-4)
        assert found["projection"] == pytest.approx(float((real * delta).sum() / delta.norm() ** 2), abs=1e-4)
        return found["projection"]

    assert least <= projection(in_place=True) <= most
    assert projection(in_place=False) == pytest.approx(1, abs=0.05)


def test_a_delta_of_nothing(base, tmp_path):
    """Nothing is lost of it, and nothing can be said of it; beside others it does not count."""
    adapter = save_adapter(tmp_path / "a", base("llama"), ["q_proj"])
    nothing = negate(adapter, tmp_path / "nothing", scale=0)
    frame = survival(base("llama"), nothing)
    assert (frame["relative_size"] == 0).all() and frame[["projection", "relative_error"]].isna().all(axis=None)
    assert overall(frame)["relative_size"] == 0 and overall(frame)["projection"] != overall(frame)["projection"]


def test_what_is_refused(base, tmp_path):
    folder = base("llama")
    adapter = save_adapter(tmp_path / "a", folder, ["q_proj"])
    with pytest.raises(RecipeError, match=r"in_place: .*nf4 or int8"):
        survival(folder, adapter, "none", in_place=True)
    with pytest.raises(RecipeError, match="adapter: "):
        survival(folder, [])
    load_base(folder, "nf4", "float32").save_pretrained(tmp_path / "nf4")
    with pytest.raises(ModelError, match="stored as nf4"):
        survival(str(tmp_path / "nf4"), adapter)
    with pytest.raises(ModelError, match=r"q_proj, .*; name the base"):
        survival(base("gpt2"), adapter)
