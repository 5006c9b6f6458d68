"""Adapters and models of strangers, through the commands: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import random_rows
from peft import LoraConfig, get_peft_model

from adapter_unlearn import Adapter, RecipeError, cli, load_base, merge, models, pipeline
from adapter_unlearn.recipe import Data, Evaluation, Model

PRECISION = ["--quantization", "none", "--dtype", "float32"]


@pytest.fixture(scope="module")
def base(memorizers):
    return str(memorizers("llama"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    model = models.attach(load_base(base, "none", "float32"), Adapter(r=4, alpha=8, target_modules=["q_proj"]))
    return models.save_adapter(model, "default", tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def command(base, write_rows, tmp_path):
    """Run a command on adapters; returns its exit code."""
    forget = write_rows("forget.jsonl", random_rows(0)[:2])

    def run(name: str, *adapters: str | Path) -> int:
        words = [name, "--model", base, "--output_dir", str(tmp_path / "out"), "--adapter", *map(str, adapters)]
        return cli.main(words if name == "merge" else [*words, "--forget", forget, *PRECISION])

    return run


def refusal(code: int, capfd, tmp_path) -> str:
    """The one line on stderr."""
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("adapter-unlearn")]
    assert code == 2 and len(lines) == 1 and not (tmp_path / "out").exists()
    return lines[0]


@pytest.mark.parametrize("initial", ["pissa", "olora"])
@pytest.mark.parametrize("name", ["score", "evaluate", "merge"])
def test_no_command_measures_a_base_that_the_adapter_alters(base, command, capfd, tmp_path, name, initial):
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=initial)
    get_peft_model(load_base(base, "none", "float32"), config).save_pretrained(str(tmp_path / "a"))
    assert initial in refusal(command(name, tmp_path / "a"), capfd, tmp_path)


@pytest.mark.parametrize("copied", [False, True], ids=["same folder", "copy"])
@pytest.mark.parametrize("name", ["score", "evaluate", "merge"])
def test_the_same_adapter_twice_is_refused(adapter, command, capfd, tmp_path, name, copied):
    other = shutil.copytree(adapter, tmp_path / "copy") if copied else adapter / ".." / adapter.name
    line = refusal(command(name, adapter, other), capfd, tmp_path)
    assert str(other) in line and "negate --scale" in line


def test_the_base_s_own_adapter_is_not_stacked_again(base, adapter, write_rows):
    model = Model(base, quantization="none", dtype="float32", adapter=str(adapter))
    with pytest.raises(RecipeError, match="negate --scale"):
        pipeline.evaluate(model, adapter, Data(write_rows("forget.jsonl", random_rows(0)[:2])))


@pytest.mark.parametrize("forms", [["x"], ["stacked", "base"]], ids=str)
def test_an_unknown_form_is_refused(base, adapter, write_rows, forms):
    data = Data(write_rows("forget.jsonl", random_rows(0)[:2]))
    with pytest.raises(RecipeError, match=r"evaluation\.forms: .*stacked, merged, requantized"):
        pipeline.evaluate(Model(base, quantization="none", dtype="float32"), adapter, data, Evaluation(forms=forms))


@pytest.mark.parametrize("quantization", ["nf3", "fp16", None])
def test_merging_into_an_unknown_quantization_is_refused(base, adapter, tmp_path, quantization):
    with pytest.raises(RecipeError, match=r"quantization: .*nf4, int8, none"):
        merge(base, adapter, tmp_path / "out", quantization)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["score", "evaluate", "merge"])
@pytest.mark.parametrize("manifest", ['{"base": [1]}', '{"base": "text"}', "null"])
def test_an_odd_manifest_is_one_line(adapter, command, capfd, tmp_path, name, manifest):
    copy = shutil.copytree(adapter, tmp_path / "a")
    (copy / "unlearning.json").write_text(manifest)
    assert "unlearning.json" in refusal(command(name, copy), capfd, tmp_path)


@pytest.mark.parametrize("content", ["[]", "null", json.dumps({"peft_type": "LORA", "rank_pattern": ["q_proj"]})])
@pytest.mark.parametrize("name", ["score", "evaluate", "merge"])
def test_an_odd_adapter_config_is_one_line(adapter, command, capfd, tmp_path, name, content):
    copy = shutil.copytree(adapter, tmp_path / "a")
    (copy / "adapter_config.json").write_text(content)
    assert "adapter_config.json" in refusal(command(name, copy), capfd, tmp_path)


@pytest.mark.parametrize("key", ["lm_head", "r"])
def test_unusual_adapters_of_a_recipe(base, write_rows, tmp_path, key, capfd):
    """An adapter of the output layer alone trains; an absurd rank is refused."""
    words = ["unlearn", "--model.name", base, "--model.quantization", "none", "--model.dtype", "float32"]
    words += ["--data.forget", write_rows("forget.jsonl", random_rows(0)[:2]), "--method.name", "ga"]
    words += ["--training.max_epochs", "1", "--output_dir", str(tmp_path / "out"), "--stop.mean_below", "0.01"]
    if key == "r":
        assert "adapter.r" in refusal(cli.main([*words, "--adapter.r", "100000"]), capfd, tmp_path)
    else:
        assert cli.main([*words, "--adapter.target_modules", "lm_head"]) == 0
        assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
