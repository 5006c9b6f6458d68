"""Python code that loads a base and its adapters with plain transformers and PEFT, and removes the adapters again."""

from pathlib import Path
from typing import Any

from adapter_unlearn import assets
from adapter_unlearn.reporting import page
from adapter_unlearn.reporting.facts import base_name, is_hub_id


def loading(manifest: dict[str, Any]) -> str:
    """Code that loads base and adapters, the base in the precision in which it was measured."""
    base = manifest.get("base") or {}
    template = page.environment(autoescape=False).get_template("run/loading.py.j2")
    return template.render(
        place=_place(manifest),
        dtype=base.get("dtype") if base.get("dtype") in ("bfloat16", "float16", "float32") else "bfloat16",
        revision=base.get("revision"),
        quantization=base.get("quantization"),
        folders=_folders(manifest),
    )


def _place(manifest: dict[str, Any]) -> str:
    """The argument of from_pretrained on another machine: the hub id, or a placeholder for the folder."""
    name = base_name(manifest)
    if is_hub_id(str((manifest.get("base") or {}).get("name") or "")):
        return name
    return "PATH/TO/" + name.replace(assets.SCHEME, f"adapter_unlearn/{assets.FOLDER.name}/")


def _folders(manifest: dict[str, Any]) -> dict[str, str]:
    """The names under which the adapters are loaded, and their folders."""
    frozen = (manifest.get("base") or {}).get("adapter")
    evaluated = [f"PATH/TO/{Path(str(item.get('path', ''))).name}" for item in manifest.get("adapters") or []]
    folders = ([f"PATH/TO/{Path(frozen).name}"] if frozen else []) + (evaluated or ["PATH/TO/THIS/FOLDER"])
    if len(folders) == 1:
        return {"default": folders[0]}
    names = ["frozen"] * bool(frozen) + [f"unlearning_{i}" for i in range(1, len(folders) + 1 - bool(frozen))]
    return dict(zip(names, folders, strict=True))


def removing(manifest: dict[str, Any]) -> str:
    """Code that removes the adapter; a frozen base adapter stays active."""
    frozen = (manifest.get("base") or {}).get("adapter")
    return page.environment(autoescape=False).get_template("run/removing.py.j2").render(frozen=frozen)
