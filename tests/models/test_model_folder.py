"""Model folders of strangers: no code, no pickle, no place outside of the folder, no absurd size."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_unlearn import ModelError, RecipeError, load_base, models
from adapter_unlearn.models import model_folder


@pytest.fixture
def folder(memorizers, tmp_path):
    """A copy of the memorizing Llama's folder, to break."""
    return shutil.copytree(memorizers("llama"), tmp_path / "model")


def change(folder: Path, name: str = "config.json", **values) -> None:
    file = folder / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | values))


def assert_refused(folder, *words):
    with pytest.raises(ModelError) as caught:
        load_base(str(folder), "none", "float32")
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message and all(word in message for word in words)


# finding 3


@pytest.mark.parametrize("quantization", [None, "fp16", "8bit", "nf3", "", 4, ["nf4"]])
def test_an_unknown_quantization_is_no_nf4(folder, quantization):
    with pytest.raises(RecipeError, match="nf4, int8, none"):
        load_base(str(folder), quantization)


@pytest.mark.parametrize("dtype", [None, "fp16", "float64"])
def test_an_unknown_dtype(folder, dtype):
    with pytest.raises(RecipeError, match="bfloat16, float16, float32"):
        load_base(str(folder), "none", dtype)


# finding 5


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocab_size", 10**12), ("num_hidden_layers", -1), ("num_hidden_layers", 0), ("num_hidden_layers", 10**9),
     ("hidden_size", 10**12), ("intermediate_size", 10**12), ("max_position_embeddings", 10**15),
     ("num_attention_heads", -1)],
)  # fmt: skip
def test_absurd_sizes_are_refused_before_allocation(folder, key, value):
    change(folder, **{key: value})
    with pytest.raises(ModelError, match=key):
        models.load_config(str(folder))
    assert_refused(folder, key)


# finding 9


@pytest.fixture
def planted(folder, tmp_path, monkeypatch):
    """A model folder with code; returns it and the file that the code would make."""
    mark = tmp_path / "ran"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "planted.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Planted: pass\n")
    return folder, mark


def test_no_code_of_a_model_runs_without_the_flag(planted):
    folder, mark = planted
    change(
        folder, model_type="planted", auto_map={"AutoConfig": "planted.Planted", "AutoModelForCausalLM": "planted.X"}
    )
    assert_refused(folder, "--trust_remote_code")
    assert not mark.exists()
    with pytest.raises(ModelError):
        load_base(str(folder), "none", "float32", trust_remote_code=True)
    assert mark.exists(), "the test itself: with the flag the code runs"


def test_no_code_runs_beside_a_known_architecture(planted):
    folder, mark = planted
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
    change(folder, auto_map=dict.fromkeys(names, "planted.Planted"))
    change(folder, "generation_config.json", custom_generate="planted.Planted")
    load_base(str(folder), "none", "float32")
    assert not mark.exists()


@pytest.mark.parametrize("kind", [["planted.Planted", None], "planted.Planted"], ids=["list", "text"])
def test_no_code_of_a_tokenizer_runs_without_the_flag(planted, kind):
    folder, mark = planted
    change(folder, "tokenizer_config.json", tokenizer_class="Planted", auto_map={"AutoTokenizer": kind})
    assert models.load_tokenizer(str(folder)) is None
    assert not mark.exists()


# part 4: safetensors only, and nothing outside of the folder


def test_pickles_are_refused(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_refused(folder, "pickles")


@pytest.mark.parametrize(
    "place", ["absolute", "../outside.safetensors", "a/../../outside.safetensors", "..\\x", "C:\\x"]
)
def test_a_weight_index_that_leads_outside_is_refused(folder, place, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    outside = tmp_path / "outside.safetensors"
    save_file(tensors, outside, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    name = str(outside) if place == "absolute" else place
    change(folder, "model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(tensors, name))
    assert_refused(folder, "index.json")


@pytest.mark.parametrize("value", [[], 3, None, {"a": 1}, {"a": ["b"]}], ids=str)
def test_an_odd_weight_index_is_refused(folder, value):
    (folder / "model.safetensors").unlink()
    change(folder, "model.safetensors.index.json", weight_map=value)
    assert_refused(folder, "index.json")


def test_a_tokenizer_s_files_are_in_the_folder(folder):
    change(folder, "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.9.json"])
    assert_refused(folder, "tokenizer_config.json")


def test_an_adapter_in_a_base_s_folder_is_refused(folder):
    """transformers would put it on the base, or load the base that it names."""
    change(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path="/elsewhere")
    assert_refused(folder, "adapter_config.json")


def header(**changes) -> bytes:
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes
    text = json.dumps({"a": entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16)


@pytest.mark.parametrize(
    "content",
    [
        (2**60).to_bytes(8, "little"), (10**9).to_bytes(8, "little") + b"{}", header(shape=[10**12, 10**12]),
        header(shape=[2**33, 2**33]), header(shape=[-1, 2]), header(data_offsets=[0, 10**15]), header(shape=[2, 3]),
        header(data_offsets=[8, 24]), header(data_offsets=[16, 0]), header(dtype="X9"), header(dtype=3), b"", b"PK\3\4",
    ],
    ids=["length", "longer", "shape", "overflow", "negative", "end", "size", "gap", "order", "dtype", "number", "empty",
         "zip"],
)  # fmt: skip
def test_safetensors_checks_the_header_before_it_allocates(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert_refused(folder)


# finding 12


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["loop", "dangling", "fifo"])
def test_odd_files_are_refused(folder, name, kind):
    (folder / name).unlink()
    if kind == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(name if kind == "loop" else "nowhere")
    assert_refused(folder, name)


def test_a_loop_of_folders_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert_refused(tmp_path / "a")


def test_a_folder_that_can_not_be_read(folder, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert_refused(folder, "Permission denied")


def test_a_link_to_another_folder_is_followed(folder, tmp_path):
    """The hub's cache consists of links."""
    (tmp_path / "blob").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blob")
    model_folder.check_folder(folder)
    load_base(str(folder), "none", "float32")
