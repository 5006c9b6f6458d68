"""Adapters of strangers: what would change the base, run code, take hours or fill the memory is refused in one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from adapter_unlearn import Adapter, ModelError, load_base, models
from adapter_unlearn.models.adapter_config import adapter_config


@pytest.fixture(scope="module")
def base(memorizers):
    return str(memorizers("llama"))


@pytest.fixture(scope="module")
def original(base, tmp_path_factory):
    settings = Adapter(r=4, alpha=8, target_modules=["q_proj", "up_proj"])
    model = models.attach(load_base(base, "none", "float32"), settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return models.save_adapter(model, "default", tmp_path_factory.mktemp("plain"))


@pytest.fixture
def adapter(original, tmp_path):
    """A copy of the adapter, to break."""
    return shutil.copytree(original, tmp_path / "adapter")


def change(adapter: Path, **values) -> Path:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | values))
    return adapter


def assert_refused(adapter, *words, base=None):
    """One line that names the folder and the key, before anything is loaded."""
    with pytest.raises(ModelError) as caught:
        adapter_config(adapter) if base is None else models.stack(base, [adapter])
    message = str(caught.value)
    assert str(adapter) in message and "\n" not in message and len(message) < 600
    assert all(word in message for word in words) and (base is not None or ";" in message)


# finding 2

BASE_CHANGED = ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "PiSSA", ["pissa"], {"a": 1}, "new"]


@pytest.mark.parametrize("initial", BASE_CHANGED, ids=str)
def test_an_adapter_whose_loading_alters_the_base_is_refused(adapter, initial):
    assert_refused(change(adapter, init_lora_weights=initial), "init_lora_weights")


@pytest.mark.parametrize(
    "values",
    [
        {"layer_replication": [[0, 2]]}, {"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, {"bias": "all"},
        {"kasa_config": {"beta": 1}}, {"arrow_config": {"top_k": 1}}, {"use_something_new": True}, {"bias": ["x"]},
    ],
    ids=str,
)  # fmt: skip
def test_what_can_not_be_removed_again_is_refused(adapter, values):
    assert_refused(change(adapter, **values), next(iter(values)))


# findings 5 and 12

OUT_OF_RANGE = [
    ("lora_alpha", float("nan")), ("lora_alpha", float("inf")), ("lora_alpha", 10**300), ("lora_alpha", "8"),
    ("lora_alpha", None), ("lora_alpha", True), ("r", 0), ("r", -1), ("r", 10**12), ("r", 4.0), ("r", None), ("r", [4]),
    ("rank_pattern", ["q_proj"]), ("rank_pattern", {"q_proj": 10**9}), ("rank_pattern", {"q_proj": None}),
    ("alpha_pattern", "q_proj"), ("alpha_pattern", {"q_proj": float("nan")}), ("lora_dropout", float("nan")),
    ("lora_dropout", "a"), ("target_modules", {"a": 1}), ("target_modules", [1]), ("target_modules", 3),
    ("exclude_modules", 3), ("layers_pattern", "(a*)*"), ("layers_pattern", ["(a*)*"]), ("layers_pattern", 3),
    ("layers_to_transform", ["a"]), ("layers_to_transform", 10**12), ("modules_to_save", ["(a*)*"]),
    ("trainable_token_indices", [-1]), ("trainable_token_indices", [10**12]), ("trainable_token_indices", "a"),
    ("trainable_token_indices", {"embed_tokens": 3}), ("base_model_name_or_path", ["a"]), ("revision", {"a": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), OUT_OF_RANGE, ids=lambda value: str(value)[:20])
def test_values_that_make_no_sense_are_refused(adapter, key, value):
    assert_refused(change(adapter, **{key: value}), "adapter_config.json", key)


@pytest.mark.parametrize(
    "content",
    ["[]", "null", "3", "", "{", "[" * 100_000, '{"lora_alpha": 1' + "0" * 5000 + "}", "\xff", " " * 10_000_001],
    ids=["list", "null", "number", "empty", "cut", "deep", "digits", "text", "large"],
)
def test_a_config_that_is_no_object_is_refused(adapter, content):
    (adapter / "adapter_config.json").write_text(content)
    assert_refused(adapter, "adapter_config.json")


def test_a_number_of_many_digits_is_refused(adapter):
    file = adapter / "adapter_config.json"
    file.write_text(re.sub(r'"lora_alpha": [\d.]+', '"lora_alpha": 1' + "0" * 400, file.read_text()))
    assert_refused(adapter, "lora_alpha")


def test_a_rank_beyond_the_tensors_allocates_nothing(adapter, base):
    assert_refused(change(adapter, r=60_000), "rank 60000", base=load_base(base, "none", "float32"))
    change(adapter, r=4, rank_pattern={"k_proj": 60_000})
    assert_refused(adapter, "60000", base=load_base(base, "none", "float32"))


def test_a_token_beyond_the_vocabulary_is_refused(adapter, base):
    change(adapter, trainable_token_indices=[5000])
    assert_refused(adapter, "5000", base=load_base(base, "none", "float32"))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("kind", ["loop", "dangling", "folder"])
def test_odd_files_are_refused(adapter, name, kind):
    (adapter / name).unlink()
    if kind == "folder":
        (adapter / name).mkdir()
    else:
        (adapter / name).symlink_to(name if kind == "loop" else "nowhere")
    assert_refused(adapter, name)


def test_a_folder_that_can_not_be_read(adapter, monkeypatch):
    def refuse(self, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    assert_refused(adapter, "Permission denied")


# finding 13


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_patterns_that_backtrack_never_reach_re(adapter, base, key):
    """`re` takes years for this one."""
    pattern = r"(?:\w+\.?)+\s"
    change(adapter, **{key: {pattern: 4} if key.endswith("pattern") else pattern})
    if key == "target_modules":  # it matches no module
        assert_refused(adapter, base=load_base(base, "none", "float32"))
    else:
        models.stack(load_base(base, "none", "float32"), [adapter])


def test_resolved_patterns_give_the_adapter_that_peft_gives(base, tmp_path):
    options = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": r".*\.(q_proj|up_proj)"}
    options |= {"rank_pattern": {r"layers\.[1-9]\..*": 6}, "alpha_pattern": {"(q|k)_proj": 3}}
    options |= {"exclude_modules": ".*0.*up.*"}
    model = get_peft_model(load_base(base, "none", "float32"), LoraConfig(**options)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(tmp_path / "a"), save_embedding_layers=False)
    ids = torch.arange(40)[None]
    stacked = models.stack(load_base(base, "none", "float32"), [tmp_path / "a"])
    assert torch.equal(stacked(input_ids=ids).logits, model(input_ids=ids).logits)
    shapes = {name: p.shape for name, p in model.named_parameters() if "lora_A" in name}
    assert {shape[0] for shape in shapes.values()} == {4, 6} and len(shapes) == 3


def test_a_pattern_of_a_recipe_names_modules(base):
    model = models.attach(load_base(base, "none", "float32"), Adapter(target_modules=r".*\.(q_proj|up_proj)"))
    assert {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad} == {"q_proj", "up_proj"}
    with pytest.raises(ModelError, match=r"adapter\.target_modules"):
        models.attach(load_base(base, "none", "float32"), Adapter(target_modules=r"(?:\w+\.?)+\s"))


# finding 9


def test_an_adapter_s_auto_mapping_imports_nothing(adapter, base, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    change(adapter, auto_mapping={"base_model_class": "Planted", "parent_library": "planted"}, megatron_core="planted")
    models.stack(load_base(base, "none", "float32"), [adapter])
    assert not (tmp_path / "ran").exists()


def test_tensors_that_do_not_fit_their_config(adapter, base):
    file = adapter / "adapter_model.safetensors"
    save_file({key: tensor[:0] if "lora_A" in key else tensor for key, tensor in load_file(file).items()}, file)
    assert_refused(adapter, base=load_base(base, "none", "float32"))
