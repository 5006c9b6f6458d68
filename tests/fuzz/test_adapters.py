"""Adapters: damaged and hostile configs, tensor headers and manifests, up to where PEFT would load them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from fuzz.inputs import changed, damaged, leaves, nested, texts
from helpers import CONFIGS
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import save
from transformers import AutoModelForCausalLM

from adapter_unlearn.models import adapters
from adapter_unlearn.weights import adapter_files

CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "use_rslora": False,
    "target_modules": ["q_proj", "down_proj"],
    "exclude_modules": None,
    "rank_pattern": {"layers.0.self_attn.q_proj": 2},
    "alpha_pattern": {},
    "bias": "none",
    "base_model_name_or_path": "m",
    "revision": None,
    "init_lora_weights": True,
    "modules_to_save": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "fan_in_fan_out": False,
    "auto_mapping": None,
}
MANIFEST = {"operation": "negate", "base": {"name": "m", "revision": None, "fingerprint": "sha256:1"}, "inputs": []}
KEYS = sorted(LoraConfig.__dataclass_fields__)
_values = nested(
    [*KEYS, "q_proj", ".*", "(a+)+$", "^(a|a)*$"], leaves | st.sampled_from(["(a+)+$", ".*q_proj", "[", "\\"])
)
_sizes = st.sampled_from([0, 1, 2, 64, 2**31, 2**63, -1, 10**40, "2", None, 1.5]) | st.integers(0, 99)
_dtypes = st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "F8_E4M3", "F4", "C64", "BOOL", "x", "", None, 3])
_offsets = st.lists(st.integers(0, 4096) | st.sampled_from([2**63, 2**64, -1]), max_size=3)
_tensors = st.fixed_dictionaries(
    {"dtype": _dtypes, "shape": st.lists(_sizes, max_size=4), "data_offsets": _offsets}, optional={"more": leaves}
)


def weights() -> bytes:
    layer = "base_model.model.model.layers.{}.{}.lora_{}.weight"
    sizes = {"self_attn.q_proj": (64, 64), "mlp.down_proj": (64, 128)}
    tensors = {}
    for number in range(2):
        for name, (rows, columns) in sizes.items():
            tensors[layer.format(number, name, "A")] = torch.ones(2, columns)
            tensors[layer.format(number, name, "B")] = torch.ones(rows, 2)
    return save(tensors, {"format": "pt"})


WEIGHTS = weights()
HEADER = json.loads(WEIGHTS[8 : 8 + int.from_bytes(WEIGHTS[:8], "little")])


def with_header(header) -> bytes:
    """The tensors' values below another header."""
    content = json.dumps(header).encode()
    start = 8 + int.from_bytes(WEIGHTS[:8], "little")
    return len(content).to_bytes(8, "little") + content + WEIGHTS[start:]


@st.composite
def renamed(draw):
    """Factors under hostile names, which fit the file's size."""
    header = {}
    for key, value in HEADER.items():
        side = draw(
            st.sampled_from([".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".base_layer.weight", ""])
        )
        name = draw(texts | st.sampled_from(["base_model.model.", "a" * 3000])) + side
        header[name if draw(st.integers(0, 3)) == 0 and key != "__metadata__" else key] = value
    return header


def as_json(values) -> bytes:
    return json.dumps(values).encode()


STRUCTURED = {
    "adapter_config.json": st.one_of(
        changed(CONFIG, _values).map(as_json),
        st.dictionaries(st.sampled_from(KEYS), _values, max_size=3).map(lambda x: as_json(CONFIG | x)),
        nested(KEYS).map(as_json),
        damaged(as_json(CONFIG)),
        st.binary(max_size=99),
    ),
    "adapter_model.safetensors": st.one_of(
        changed(HEADER, _values).map(with_header),
        st.dictionaries(st.sampled_from(sorted(HEADER)), _tensors).map(lambda x: with_header(HEADER | x)),
        renamed().map(with_header),
        damaged(WEIGHTS),
        damaged(WEIGHTS[:900]),
        st.binary(max_size=99),
    ),
    "arithmetic.json": st.one_of(
        changed(MANIFEST, nested(["base", "name"])).map(as_json),
        nested(["base", "name"]).map(as_json),
        damaged(as_json(MANIFEST)),
    ),
}


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_config(CONFIGS["llama"])


@pytest.mark.parametrize("name", STRUCTURED)
def test_an_adapter_folder(fuzzer, base, name):
    folder = fuzzer.given / "adapter"
    folder.mkdir()
    valid = {
        "adapter_config.json": as_json(CONFIG),
        "adapter_model.safetensors": WEIGHTS,
        "arithmetic.json": as_json(MANIFEST),
    }
    for file, content in valid.items():
        (folder / file).write_bytes(content)
    other = shutil.copytree(folder, fuzzer.given / "other")
    (other / "adapter_model.safetensors").write_bytes(save({"other": torch.ones(1)}))

    def read() -> None:
        adapter = adapter_files.read(folder)
        adapter_files.base_of(adapter)
        for module in adapter.modules.values():
            adapter.tensor(module.a_key)

    def stack() -> None:
        with adapters._fitting(folder):
            adapters._peft_config(base, folder)

    def example(value: bytes) -> None:
        (folder / name).write_bytes(value)
        fuzzer.check(read)
        fuzzer.check(stack)
        fuzzer.check(lambda: adapter_files.check_base(folder, "sha256:2", "other"))
        fuzzer.check(lambda: adapter_files.check_distinct([folder, other]))

    fuzzer.run(STRUCTURED[name], example)
