"""What report and card say in words: how a run was made, what its figures can't promise, what the terms mean.

Everything here works on a manifest with holes: an evaluation of somebody else's adapter knows little about its making.
A base that is a local folder is named by its last part only, for the path tells a stranger about the author's disk.
"""

import json
import re
from pathlib import Path
from typing import Any

from adapter_unlearn import assets
from adapter_unlearn.reporting import forms
from adapter_unlearn.reporting.formatting import accuracy, clean, count, duration, factor, number, plural, size
from adapter_unlearn.reporting.measures import look_up

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
SIGN_FLIPPED = ("ta", "tau")

ERASURE = (
    "A removable adapter is not erasure. The base model still holds the texts: take the adapter off, and it recites"
    " as before.",
    "The adapter itself tells about the texts. Negated, it makes the model recite more; comparing the model with"
    " and without it points at what was removed. Treat it as you treat the list of deletion requests.",
)
GLOSSARY = {
    "forget set": "the texts that the model must not recite.",
    "holdout set": "texts of the same kind which the model never saw: what “not memorized” looks like.",
    "test set": "general text the model never saw; it is only ever reported and steers nothing.",
    "sequence": "one text, or one window of a text too long for one piece (id#k).",
    "memorization accuracy (MA)": "the share of tokens the model gets right, each from the true text before it.",
    "recited, extractable": "given the opening of a sequence, the model writes all the rest of it word for word.",
    "longest verbatim run": "the most tokens in a row that the model gets right anywhere in a sequence.",
    "outlier": "a sequence above (high) or below (low) where 90 % of never-seen texts lie; newly low: not low before.",
    "the paper's bounds": "0.60 and 0.15 (Barbulescu & Triantafillou, 2024), to compare with published figures.",
    "perplexity": "how surprised the model is by a text; lower is better, and unlearning should leave it alone.",
    "neighbourhood": "never-seen text of the forget set's kind; the first ability that unlearning damages.",
    "95 % interval": "[low, high]: where the figure would lie for other texts of the kind (bootstrap over the texts).",
    "prefix": "the first tokens of a sequence, given to the model so that it goes on.",
    "membership AUC": "how well a figure tells the forget set from never-seen text: 0.5 is a coin toss, 1 certainty.",
    "TPR at 1 % FPR": "the share of the forget set found out while at most 1 % of never-seen texts are taken for it.",
    "stacked": forms.DESCRIPTIONS["stacked"] + ".",
    "merged": forms.DESCRIPTIONS["merged"] + ".",
    "requantized": forms.DESCRIPTIONS["requantized"] + ": nf4 to 4 bits, int8 to 8.",
    "scale": "the factor an adapter counts with; a negative one takes away what was fitted, 0 leaves the base.",
    "delta, projection": "what the adapter adds to the weights; the share of it that arrives in them (1 is all of it).",
}


def is_hub_id(name: str) -> bool:
    """Whether a base's name is one that others can load too, and not a folder of the author's."""
    return bool(_HUB_ID.fullmatch(name)) and ".." not in name and "--" not in name and not Path(name).exists()


def base_name(manifest: dict[str, Any]) -> str:
    """The base's hub id or `embedded:` name, or the last part of its folder's path."""
    name = str((manifest.get("base") or {}).get("name") or "the base model")
    return (
        name
        if is_hub_id(name) or name.startswith(assets.SCHEME)
        else re.split(r"[/\\:]", name.rstrip("/\\"))[-1] or "the base model"
    )


def method_name(manifest: dict[str, Any]) -> str:
    """The method's row in the table of methods, as people write it."""
    return clean((manifest.get("method") or {}).get("name") or "").upper()


def made(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Everything that decides whether a run can be made again, as pairs of label and value."""
    base, adapter, cost = (manifest.get(key) or {} for key in ("base", "adapter", "cost"))
    package, outcome = manifest.get("package") or {}, manifest.get("outcome") or {}
    method = {key: value for key, value in (manifest.get("method") or {}).items() if key != "name"}
    pairs = [
        ("method", _joined([method_name(manifest), _settings(method)])),
        ("stages", stages(manifest)),
        ("learning rate", learning_rates(manifest)),
        ("stopped because", clean(outcome.get("stopped_because") or "")),
        ("epochs", _epochs(cost, outcome)),
        ("base model", _joined([base_name(manifest), base.get("revision")]) if base else ""),
        ("base fingerprint", clean(base.get("fingerprint") or "")),
        ("base loaded as", _joined([base.get("quantization"), base.get("dtype")])),
        ("already carried adapter", clean(Path(base["adapter"]).name) if base.get("adapter") else ""),
        ("adapter", _adapter(adapter)),
        ("adapters", _joined(_evaluated(item) for item in manifest.get("adapters") or [])),
        ("texts", _joined(_data(manifest))),
        ("bounds", _bounds(manifest.get("bounds") or {})),
        ("seed", count(manifest["seed"]) if number(manifest.get("seed")) is not None else ""),
        ("time", duration(cost["seconds"]) if "seconds" in cost else ""),
        ("sequences ascended", count(cost["sequences_ascended"]) if "sequences_ascended" in cost else ""),
        ("peak memory", size(cost["peak_memory_bytes"]) if "peak_memory_bytes" in cost else ""),
        ("made with", _joined([" ".join(clean(v) for v in package.values()), _versions(manifest)])),
        ("made on", clean(manifest.get("created") or "").replace("T", " ").replace("+00:00", " UTC")),
    ]
    return [(label, value) for label, value in pairs if value]


def stages(manifest: dict[str, Any]) -> str:
    """The stages of a run and what each one's adapter counts with: `ascend, then fit times -1`."""
    return ", then ".join(
        clean(part.get("stage") or "stage")
        + ("" if part.get("scale") in (1, None) else f" times {factor(part['scale'])}")
        for part in manifest.get("stages") or []
    )


def learning_rates(manifest: dict[str, Any]) -> str:
    """What each stage was trained with, and whether it was found by a probe: `0.003, found by a probe`."""
    return ", then ".join(
        f"{rate:g}" + (", found by a probe" if part.get("learning_rate_searched") else "")
        for part in manifest.get("stages") or []
        if (rate := number(part.get("learning_rate"))) is not None
    )


def chosen_scale(manifest: dict[str, Any]) -> float | None:
    """The scale that a search ended with: of a run's last stage, or of an adapter that was scaled by itself."""
    last = (manifest.get("stages") or [manifest])[-1]
    return number(last.get("scale"))


def notes(manifest: dict[str, Any]) -> list[str]:
    """What was found about the data that a reader should know: duplicates, and rows that stand in two sets."""
    return [clean(note) for note in (manifest.get("data") or {}).get("notes") or []]


def _joined(parts: Any) -> str:
    return ", ".join(clean(part) for part in parts if part)


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{clean(key).replace('_', ' ')} {_value(value)}" for key, value in values.items() if value is not None
    )


def _bounds(bounds: dict[str, Any]) -> str:
    if not bounds:
        return ""
    told = {"holdout": "where 90 % of the holdout set lies", "paper": "the paper's fixed ones"}
    span = f"{accuracy(bounds.get('low'))} to {accuracy(bounds.get('high'))}"
    return _joined([span, told.get(str(bounds.get("kind")), "")])


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return clean(value if isinstance(value, str) else json.dumps(value, default=str))


def _epochs(cost: dict[str, Any], outcome: dict[str, Any]) -> str:
    epochs, kept = number(cost.get("epochs")), number(outcome.get("kept_epoch"))
    told = "" if epochs is None else count(epochs)
    return told if kept is None else _joined([told, f"the adapter of epoch {count(kept)} was kept"])


def _adapter(adapter: dict[str, Any]) -> str:
    if not adapter:
        return ""
    modules = adapter.get("target_modules")
    parts = [f"LoRA, r {adapter['r']}" if "r" in adapter else "LoRA"]
    parts += [f"alpha {_value(adapter['alpha'])}"] if "alpha" in adapter else []
    if adapter.get("shipped_rank") not in (None, adapter.get("r")):
        parts.append(f"shipped with r {_value(adapter['shipped_rank'])}")
    parts += [f"on {', '.join(map(str, modules)) if isinstance(modules, list) else modules}"] if modules else []
    parts += [size(adapter["bytes"])] if "bytes" in adapter else []
    return _joined(parts)


def _evaluated(adapter: dict[str, Any]) -> str:
    fingerprint = adapter.get("fingerprint")
    return Path(str(adapter.get("path", ""))).name + (f" ({fingerprint})" if fingerprint else "")


def _data(manifest: dict[str, Any]) -> list[str]:
    told = []
    for name, counts in (manifest.get("data") or {}).items():
        if isinstance(counts, dict) and number(counts.get("n_sequences")) is not None:
            n, documents = counts["n_sequences"], counts.get("n_documents")
            several = f" of {plural(documents, 'document')}" if documents not in (None, n) else ""
            told.append(f"{name} {plural(n, 'sequence')}{several}")
    return told


def _versions(manifest: dict[str, Any]) -> str:
    return _joined(f"{name} {version}" for name, version in (manifest.get("versions") or {}).items())


def limits(summary: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """What a reader must not conclude from a good report, each in plain words."""
    measured = summary.get("forms") or {}
    told = list(ERASURE) if forms.after(measured) else []
    if (manifest.get("method") or {}).get("name") in SIGN_FLIPPED:
        told.append(
            f"This adapter was made by {method_name(manifest)}: an adapter fitted to the forget set was subtracted, so"
            " it is a sign-flipped copy of those texts. Give it only to those who may hold the texts."
        )
    distinct = {form: look_up(measured[form], "membership_auc_loss") for form in forms.after(measured)}
    known = {form: auc for form, auc in distinct.items() if number(auc) is not None}
    if known and max(abs(auc - 0.5) for auc in known.values()) > 0.1:
        figures = ", ".join(
            f"{auc:.2f}" + (f" {forms.title(form)}" if len(known) > 1 else "") for form, auc in known.items()
        )
        told.append(
            "Not recited is not unrecognizable: from the loss of each text one can still tell the forget set from"
            f" never-seen text (membership AUC {figures}; 0.5 would be a coin toss)."
        )
    if forms.after(measured) and (manifest.get("base") or {}).get("quantization") in ("nf4", "int8"):
        told.append(
            "The figures hold for the forms shown and no other. Merging the adapter into the quantized base"
            " (merge_and_unload) rounds small changes away and can bring recitation back."
        )
    told.append(
        "Tested is what greedy decoding says on the sequences given. Sampling, other openings, paraphrases and further"
        " training are other questions."
    )
    return told


def loading(manifest: dict[str, Any]) -> str:
    """Python that loads base and adapter with plain transformers and PEFT, the base just as it was measured."""
    base = manifest.get("base") or {}
    dtype = base.get("dtype") if base.get("dtype") in ("bfloat16", "float16", "float32") else "bfloat16"
    options = [_quoted(_place(manifest)), f"dtype=torch.{dtype}"]
    if base.get("revision"):
        options.append(f"revision={_quoted(base['revision'])}")
    setup, names = "", "AutoModelForCausalLM"
    if base.get("quantization") in ("nf4", "int8"):
        names += ", BitsAndBytesConfig"
        options.append("quantization_config=quantization")
        setup = "quantization = BitsAndBytesConfig(load_in_8bit=True)\n"
        if base["quantization"] == "nf4":
            setup = (
                'quantization = BitsAndBytesConfig(\n    load_in_4bit=True,\n    bnb_4bit_quant_type="nf4",\n'
                f"    bnb_4bit_use_double_quant=True,\n    bnb_4bit_compute_dtype=torch.{dtype},\n)\n"
            )
    arguments = "".join(f"    {option},\n" for option in options)
    return (
        f"import torch\nfrom peft import PeftModel\nfrom transformers import {names}\n\n{setup}"
        f"base = AutoModelForCausalLM.from_pretrained(\n{arguments})\n{_attaching(manifest)}"
    )


def _place(manifest: dict[str, Any]) -> str:
    """What a stranger gives to from_pretrained: the hub id, or a path of their own to the folder."""
    name = base_name(manifest)
    if is_hub_id(str((manifest.get("base") or {}).get("name") or "")):
        return name
    return "PATH/TO/" + name.replace(assets.SCHEME, f"adapter_unlearn/{assets.FOLDER.name}/")


def _attaching(manifest: dict[str, Any]) -> str:
    """The lines that put the adapters on: one, or several that act together (PeftModel.set_adapter takes no list)."""
    folders = _folders(manifest)
    if len(folders) == 1:
        return f"model = PeftModel.from_pretrained(base, {_quoted(folders['default'])})\n"
    (first, folder), *others = folders.items()
    lines = [f"model = PeftModel.from_pretrained(base, {_quoted(folder)}, adapter_name={_quoted(first)})"]
    lines += [f"model.load_adapter({_quoted(folder)}, adapter_name={_quoted(name)})" for name, folder in others]
    return "\n".join([*lines, f"model.base_model.set_adapter({json.dumps(list(folders))})", ""])


def removing(manifest: dict[str, Any]) -> str:
    """Python that takes the adapter off again; one that the model already carried stays."""
    if (manifest.get("base") or {}).get("adapter"):
        return 'model.base_model.set_adapter(["carried"])  # the model as it was, with the adapter it carried\n'
    return (
        "with model.disable_adapter():  # in here the model is the base model again, bit for bit\n    ...\n"
        "base = model.unload()  # or for good\n"
    )


def _folders(manifest: dict[str, Any]) -> dict[str, str]:
    """The adapters that act together, by the name they are loaded under."""
    carried = (manifest.get("base") or {}).get("adapter")
    evaluated = [f"PATH/TO/{Path(str(item.get('path', ''))).name}" for item in manifest.get("adapters") or []]
    folders = ([f"PATH/TO/{Path(carried).name}"] if carried else []) + (evaluated or ["PATH/TO/THIS/FOLDER"])
    if len(folders) == 1:
        return {"default": folders[0]}
    names = ["carried"] * bool(carried) + [f"unlearning_{i}" for i in range(1, len(folders) + 1 - bool(carried))]
    return dict(zip(names, folders, strict=True))


def _quoted(text: Any) -> str:
    return json.dumps(clean(text), ensure_ascii=False)
