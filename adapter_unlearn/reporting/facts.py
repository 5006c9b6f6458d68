"""What a manifest says about a run, as labels and values.

A manifest may lack any key: an evaluation of an adapter from elsewhere knows little about how it was made. A base that
is a local folder is named by the last part of its path only, because the path reveals details of the author's machine.
"""

import json
import re
from pathlib import Path
from typing import Any

from adapter_unlearn import assets
from adapter_unlearn.reporting.formatting import accuracy, clean, count, duration, factor, number, plural, size

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def is_hub_id(name: str) -> bool:
    """Whether a base's name is a hub id, which others can load too, and not a local folder."""
    return bool(_HUB_ID.fullmatch(name)) and ".." not in name and "--" not in name and not Path(name).exists()


def base_name(manifest: dict[str, Any]) -> str:
    """The base's hub id or `embedded:` name, or the last part of its folder's path."""
    name = str((manifest.get("base") or {}).get("name") or "the base model")
    if is_hub_id(name) or name.startswith(assets.SCHEME):
        return name
    return re.split(r"[/\\:]", name.rstrip("/\\"))[-1] or "the base model"


def method_name(manifest: dict[str, Any]) -> str:
    """The method's name in capitals."""
    return clean((manifest.get("method") or {}).get("name") or "").upper()


def provenance(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Everything needed to reproduce a run, as pairs of label and value; unknown values are left out."""
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
        ("frozen base adapter", clean(Path(base["adapter"]).name) if base.get("adapter") else ""),
        ("adapter", _adapter(adapter)),
        ("adapters", _joined(_evaluated(item) for item in manifest.get("adapters") or [])),
        ("texts", _joined(_data(manifest))),
        ("bounds", _bounds(manifest.get("bounds") or {})),
        ("seed", count(manifest["seed"]) if number(manifest.get("seed")) is not None else ""),
        ("time", duration(cost["seconds"]) if "seconds" in cost else ""),
        ("sequences ascended", count(cost["sequences_ascended"]) if "sequences_ascended" in cost else ""),
        ("peak memory", size(cost["peak_memory_bytes"]) if "peak_memory_bytes" in cost else ""),
        ("software", _joined([" ".join(clean(v) for v in package.values()), _versions(manifest)])),
        ("created", clean(manifest.get("created") or "").replace("T", " ").replace("+00:00", " UTC")),
    ]
    return [(label, value) for label, value in pairs if value]


def stages(manifest: dict[str, Any]) -> str:
    """The stages of a run with their scales, where these are not 1: `ascend, then fit times -1`."""
    return ", then ".join(
        clean(part.get("stage") or "stage")
        + ("" if part.get("scale") in (1, None) else f" times {factor(part['scale'])}")
        for part in manifest.get("stages") or []
    )


def learning_rates(manifest: dict[str, Any]) -> str:
    """The learning rate of each stage, and whether a probe found it: `0.003, found by a probe`."""
    return ", then ".join(
        f"{rate:g}" + (", found by a probe" if part.get("learning_rate_searched") else "")
        for part in manifest.get("stages") or []
        if (rate := number(part.get("learning_rate"))) is not None
    )


def chosen_scale(manifest: dict[str, Any]) -> float | None:
    """The scale of a run's last stage, or of an adapter that was scaled without training."""
    last = (manifest.get("stages") or [manifest])[-1]
    return number(last.get("scale"))


def notes(manifest: dict[str, Any]) -> list[str]:
    """Notes on the data, such as duplicates and sequences that occur in two sets."""
    return [clean(note) for note in (manifest.get("data") or {}).get("notes") or []]


def _joined(parts: Any) -> str:
    return ", ".join(clean(part) for part in parts if part)


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{clean(key).replace('_', ' ')} {_value(value)}" for key, value in values.items() if value is not None
    )


def _bounds(bounds: dict[str, Any]) -> str:
    sources = {"holdout": "the range of 90 % of the holdout set", "paper": "the paper's fixed bounds"}
    span = f"{accuracy(bounds.get('low'))} to {accuracy(bounds.get('high'))}"
    return _joined([span, sources.get(str(bounds.get("kind")), "")]) if bounds else ""


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return clean(value if isinstance(value, str) else json.dumps(value, default=str))


def _epochs(cost: dict[str, Any], outcome: dict[str, Any]) -> str:
    kept = number(outcome.get("kept_epoch"))
    ran = count(cost["epochs"]) if number(cost.get("epochs")) is not None else ""
    return _joined([ran, "" if kept is None else f"the adapter of epoch {count(kept)} was kept"])


def _adapter(adapter: dict[str, Any]) -> str:
    if not adapter:
        return ""
    modules = adapter.get("target_modules")
    parts = [f"LoRA, r {adapter['r']}" if "r" in adapter else "LoRA"]
    parts += [f"alpha {_value(adapter['alpha'])}"] if "alpha" in adapter else []
    if adapter.get("shipped_rank") not in (None, adapter.get("r")):
        parts.append(f"saved with r {_value(adapter['shipped_rank'])}")
    parts += [f"on {', '.join(map(str, modules)) if isinstance(modules, list) else modules}"] if modules else []
    parts += [size(adapter["bytes"])] if "bytes" in adapter else []
    return _joined(parts)


def _evaluated(adapter: dict[str, Any]) -> str:
    fingerprint = adapter.get("fingerprint")
    return Path(str(adapter.get("path", ""))).name + (f" ({fingerprint})" if fingerprint else "")


def _data(manifest: dict[str, Any]) -> list[str]:
    sets = []
    for name, counts in (manifest.get("data") or {}).items():
        if isinstance(counts, dict) and number(counts.get("n_sequences")) is not None:
            n, documents = counts["n_sequences"], counts.get("n_documents")
            source = f" from {plural(documents, 'document')}" if documents not in (None, n) else ""
            sets.append(f"{name} {plural(n, 'sequence')}{source}")
    return sets


def _versions(manifest: dict[str, Any]) -> str:
    return _joined(f"{name} {version}" for name, version in (manifest.get("versions") or {}).items())
