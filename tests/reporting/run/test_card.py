"""The model card."""

import re

import pytest
import yaml
from reporting.builders import ALL_FORMS, MANIFEST, complete, frame, membership_of, results_of, summary_of

from adapter_unlearn.reporting import facts
from adapter_unlearn.reporting.run.card import model_card
from adapter_unlearn.reporting.run.loading import loading, removing


def metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_card_has_what_the_hub_and_a_reader_need():
    card = model_card(results_of())
    assert metadata(card) == {
        "base_model": "EleutherAI/gpt-neo-125m",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "machine-unlearning", "memorization", "adapter-unlearn", "sga"],
    }
    for part in ("disable_adapter()", "bnb_4bit_use_double_quant=True", "not erasure", "101.0 (+1.0 %)", "912 kB"):
        assert part in card, part
    assert "int8" not in card


@pytest.mark.parametrize(("method", "warned"), [("sga", False), ("ta", True), ("tau", True)])
def test_a_sign_flipped_copy_of_the_texts_is_warned_of(method, warned):
    card = model_card(results_of(manifest=MANIFEST | {"method": {"name": method}}))
    assert ("sign-flipped" in card) is warned


@pytest.mark.parametrize("name", ["/home/me/my model", "./base", "..\\base", "embedded:model", "a/b/c", "", "tests"])
def test_a_local_base_is_not_claimed_to_be_on_the_hub(name):
    card = model_card(results_of(manifest=MANIFEST | {"base": {"name": name}}))
    assert "base_model" not in metadata(card)
    assert "/home/me" not in card and "PATH/TO/" in card


def frozen(quantization):
    return {"base": {"name": "m", "adapter": "/x/frozen-one", "quantization": quantization, "revision": "r"}}


@pytest.mark.parametrize("adapters", [[], [{"path": "a/b'\""}, {"path": "c"}]], ids=["one", "two"])
@pytest.mark.parametrize(
    "manifest",
    [MANIFEST, {}, frozen("none"), frozen("int8"), frozen("nf4")],
    ids=["run", "empty", "frozen", "frozen-int8", "frozen-nf4"],
)
def test_loading_lines_are_python(manifest, adapters):
    manifest = manifest | ({"adapters": adapters} if adapters else {})
    code = loading(manifest)
    compile(code, "card", "exec")
    compile(removing(manifest), "card", "exec")
    quantization = (manifest.get("base") or {}).get("quantization")
    assert ("load_in_8bit" in code, "load_in_4bit" in code) == (quantization == "int8", quantization == "nf4")
    several = len(adapters) > 1 or "adapter" in (manifest.get("base") or {})
    assert ("set_adapter([" in code) is several and ("load_adapter(" in code) is several
    if "adapter" in (manifest.get("base") or {}):
        assert '["frozen"]' in removing(manifest) and 'adapter_name="frozen"' in code and "/x/" not in code


def test_card_of_the_base_alone():
    card = model_card(results_of(summary_of("base"), {}, sequences=frame({"base": [1.0]})))
    assert metadata(card)["library_name"] == "peft" and "✓" not in card and "✗" not in card


def test_a_table_row_of_the_card_has_its_columns():
    summary = complete(*ALL_FORMS, tasks=[("a|b", "c"), ("d", "e|f")])
    card = model_card(results_of(summary, MANIFEST | {"versions": {"a|b": "`c`"}}, membership=membership_of(ALL_FORMS)))
    for block in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_facts_of_a_manifest_with_holes():
    assert facts.chosen_scale({"scale": -2}) == -2 and facts.chosen_scale({}) is None
    assert facts.provenance({}) == []
    assert "r 32" in dict(facts.provenance({"adapter": {"r": 16, "shipped_rank": 32}}))["adapter"]
    assert facts.base_name({}) and facts.notes({}) == []
