"""Read base model folders: which tensors are in the files, and which parameter of the model each of them is."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_unlearn import assets, models
from adapter_unlearn.errors import ModelError
from adapter_unlearn.models.base import PICKLES
from adapter_unlearn.models.model_folder import INDEX, SINGLE, weight_files
from adapter_unlearn.recipe import Model
from adapter_unlearn.runs import run_folder
from adapter_unlearn.weights.streaming import Stored, read_headers

# Files that a model needs beside its weights, and its license. The model card is left out, because it does not describe
# the merged model, and so are all other files, because they may hold texts.
COMPANIONS = (
    *("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
    *("*.model", "*.tiktoken", "chat_template*", "additional_chat_templates/*", "preprocessor_config.json", "*.py"),
    *("LICEN[SC]E*", "NOTICE*", "COPYING*", "USE_POLICY*"),
)
_WEIGHTS = ("config.json", SINGLE, INDEX, "model-*-of-*.safetensors")


@dataclass(frozen=True)
class Base:
    """A base model's folder: its modules, named as in transformers, and the places of their weights in the files."""

    name: str
    folder: Path
    revision: str | None
    fingerprint: str | None
    skeleton: Any  # the model without weights, see models.skeleton
    trust_remote_code: bool
    stored: dict[str, Stored]  # by the name in the files
    places: dict[str, str]  # a parameter's name in the model -> its name in the files
    known: set[str]  # names in the files that the model loads, renamed or converted
    tied: tuple[frozenset[str], ...]  # groups of parameters that share a tensor

    def source(self, parameter: str) -> Stored | None:
        """The tensor that a parameter is loaded from: its own, or that of a parameter it is tied to."""
        group = next((group for group in self.tied if parameter in group), frozenset())
        places = [self.places[name] for name in (parameter, *sorted(group)) if name in self.places]
        return self.stored[places[0]] if places else None


def read(model: Model | str, trust_remote_code: bool = False) -> Base:
    """Read a base's config and the headers of its weight files.

    Raises:
        ModelError: its weights are quantized, not in safetensors, missing or broken, or it is no causal language model.
    """
    name, revision = Model.of(model).name, Model.of(model).revision
    config = models.load_config(name, revision, trust_remote_code)
    if (quantized := models.stored_quantization(config)) != "none":
        raise ModelError(
            f"{name}: its weights are stored as {quantized}, and adding a small delta to quantized weights rounds most "
            "of it away; name the full-precision model"
        )
    folder = models.fetch(name, revision, [*_WEIGHTS, *COMPANIONS])
    stored = {key: tensor for file in _weight_files(name, folder) for key, tensor in read_headers(file).items()}
    skeleton = models.skeleton(config, name, trust_remote_code)
    places, known = _places(skeleton, stored)
    names: dict[int, set[str]] = {}
    for parameter_name, parameter in skeleton.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(parameter_name)
    tied = tuple(frozenset(group) for group in names.values() if len(group) > 1)
    if folder != Path(assets.resolve(name)):
        revision = folder.name  # a snapshot in the hub's cache is named by its commit
    fingerprint = run_folder.fingerprint(folder)
    base = Base(name, folder, revision, fingerprint, skeleton, trust_remote_code, stored, places, known, tied)
    joined = len(places) < len(known)  # then a parameter without a tensor of its name may come from a conversion
    if missing := [x for x, _ in skeleton.named_parameters() if not joined and base.source(x) is None]:
        raise ModelError(f"{name}: {len(missing)} weights are missing, {missing[0]} first; complete the model's files")
    return base


def _weight_files(name: str, folder: Path) -> list[Path]:
    """The files that transformers loads: the single file if there is one, else the shards."""
    files = [SINGLE]
    if not (folder / SINGLE).is_file() and (folder / INDEX).is_file():
        files = weight_files(folder)
    elif not (folder / SINGLE).is_file() and [*folder.glob("*.bin")]:
        raise ModelError(f"{name}: {PICKLES}")
    for file in files:
        if not (folder / file).is_file():
            raise ModelError(f"{name}: {file} is missing; complete the model's files")
    return [folder / file for file in files]


def _places(skeleton: Any, stored: dict[str, Stored]) -> tuple[dict[str, str], set[str]]:
    """The place of each parameter in the files, by the renamings that transformers applies on loading.

    Old checkpoints lack the base's prefix (GPT-2) or use other layer names (GPT-NeoX). Weights that are split or joined
    on loading are known, but have no place.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(skeleton)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    state = skeleton.state_dict()
    places: dict[str, str] = {}
    known: set[str] = set()
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, skeleton.base_model_prefix, state)
        if name not in state and key in state:
            name, pattern = key, None
        if name in state:
            known.add(key)
            if pattern is None:
                places[name] = key
    return places, known


def copy_companions(source: Path, target: Path) -> None:
    """Copy what a model needs beside its weights and config from folder to folder."""
    for pattern in COMPANIONS:
        for file in filter(Path.is_file, source.glob(pattern)):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
