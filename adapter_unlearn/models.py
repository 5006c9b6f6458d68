"""Load a base model, quantized or not; put adapters on it and take them off.

Nothing here copies the model: with its adapters off a model *is* its base, bit for bit.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from adapter_unlearn import assets
from adapter_unlearn.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Quantization = Literal["nf4", "int8", "none"]

# Where a CPU kernel for 4-bit inference is not installed bitsandbytes says so at import; that is no user's problem.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# It also reports, at every single multiplication, that int8 computes in float16.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def load_base(
    name: str,
    quantization: Quantization = "nf4",
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
) -> PreTrainedModel:
    """Load a causal language model for scoring or for training adapters on it.

    Args:
        name: folder or hub id; `embedded:model` is the tiny one that comes with the package.
        quantization: nf4 (4 bits, double quantization), int8 or none.
        dtype: of what is not quantized, and of the computation.
        revision: hub revision.
        trust_remote_code: run Python that comes with the model.
        device: where to; None takes the first accelerator, else the CPU.

    Returns:
        The model, frozen, in eval mode, without dropout. Embeddings and output layer keep `dtype`: nothing is upcast.

    Raises:
        ModelError: no such model, no or not all weights, weights quantized otherwise, not a causal language model,
            remote code needed, or out of memory.
    """
    from transformers import AutoModelForCausalLM

    device = torch.device(device if device is not None else _default_device())
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    stored = stored_quantization(load_config(name, **options))
    options |= {"dtype": getattr(torch, dtype), "device_map": {"": device}}
    if stored not in ("none", quantization):
        raise ModelError(
            f"{name}: its weights are stored as {stored}; set quantization to that, or name the unquantized model"
        )
    if quantization != stored:
        options["quantization_config"] = quantization_config(quantization, dtype)
    with _loading(name):
        model, info = AutoModelForCausalLM.from_pretrained(assets.resolve(name), output_loading_info=True, **options)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{name}: {len(missing)} weights are missing, {missing[0]} first; complete the model's files")
    _keep_canonical_4bit(model)
    _without_dropout(model)
    model.config.use_cache = False  # one teacher-forced forward needs no key-value cache
    model.requires_grad_(False)
    return model.eval()


def quantization_config(quantization: str, dtype: str) -> Any:
    """The bitsandbytes configuration of `nf4` or `int8`, as transformers takes it."""
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def stored_quantization(config: Any) -> str:
    """How a model's weights are stored: none, nf4, int8, or another method's name."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return "none"
    values = stored if isinstance(stored, dict) else stored.to_dict()
    if values.get("load_in_8bit"):
        return "int8"
    if values.get("load_in_4bit"):
        return str(values.get("bnb_4bit_quant_type", "fp4"))
    return str(values.get("quant_method", "an unknown format"))


def load_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model's configuration: cheap, and it fails for a wrong name before texts are read. Raises ModelError."""
    from transformers import AutoConfig

    with _loading(name):
        return AutoConfig.from_pretrained(assets.resolve(name), revision=revision, trust_remote_code=trust_remote_code)


def weights_folder(name: str, revision: str | None) -> Path:
    """Where the weight files of a model that was loaded before lie: its own folder, or the hub's cache."""
    folder = Path(assets.resolve(name))
    if folder.is_dir():
        return folder
    from transformers.utils import cached_file

    return Path(cached_file(name, "config.json", revision=revision, local_files_only=True)).parent


def fetch(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """A model's folder; of a hub id the files of these names (globs) are downloaded first. Raises ModelError."""
    folder = Path(assets.resolve(name))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    with _loading(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))


def skeleton(config: Any, name: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without its weights, on the meta device: modules, shapes, and which weights are tied.

    Raises:
        ModelError: as load_base.
    """
    from transformers import AutoModelForCausalLM

    with _loading(name), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


def quantized_modules(config: Any, name: str, quantization: str, trust_remote_code: bool = False) -> set[str]:
    """The modules whose weights this quantization replaces, as transformers chooses them; not the output layer."""
    from transformers.quantizers import AutoHfQuantizer

    model: Any = skeleton(config, name, trust_remote_code)
    if quantization == "none":
        return set()
    quantizer = AutoHfQuantizer.from_config(quantization_config(quantization, "float32"), pre_quantized=False)
    before = {name: type(module) for name, module in model.named_modules()}
    quantizer.preprocess_model(model, device_map={"": "cpu"})
    return {name for name, module in model.named_modules() if type(module) is not before[name]}


def load_tokenizer(
    name: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer, or None where there is none or it can't be loaded: token ids can be unlearned without."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            assets.resolve(name), revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # as in _loading; who gives texts is told that the model has no tokenizer
        log.debug("no tokenizer in %s: %s", name, error)
        return None


def attach(
    base: PreTrainedModel,
    r: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    target_modules: str | list[str] = "all-linear",
    use_rslora: bool = False,
    carried: str | Path | None = None,
) -> PeftModel:
    """Put a fresh LoRA adapter named `default` on the base; at first it changes nothing (B is zero).

    Args:
        base: from load_base.
        r: rank.
        alpha: numerator of the scaling.
        dropout: on the adapter's input.
        target_modules: all-linear, or names.
        use_rslora: scale by 1/sqrt(r) instead of 1/r.
        carried: an adapter folder the model already carries; it stays frozen and active beneath.

    Raises:
        ModelError: a target module does not exist, or `carried` can't be loaded.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        use_rslora=use_rslora,
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # peft sets it right for Conv1D, and says so
            model = get_peft_model(base, config)
    except (ValueError, RuntimeError, re.error) as error:
        raise ModelError(f"recipe keys adapter.target_modules, adapter.r: {_first_sentence(error)}") from error
    if carried is not None:
        _load_adapter(model, carried, "carried")
        model.base_model.set_adapter(["carried", "default"])
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(".default." in parameter_name)
    return model


def attach_next(model: PeftModel, name: str) -> None:
    """Put one more fresh adapter on the model, shaped as `default`; it alone is trained, all others act as they did."""
    active_before = list(model.active_adapters)
    model.add_adapter(name, model.peft_config["default"])
    model.base_model.set_adapter([*active_before, name])
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{name}." in parameter_name)


def save_adapter(model: PeftModel, name: str, folder: str | Path) -> Path:
    """Write one adapter of the model; return the folder it lies in, where plain PEFT finds it."""
    model.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)
    return Path(folder) if name == "default" else Path(folder) / name


def add_finished(model: PeftModel, folder: str | Path, name: str) -> None:
    """Load a finished adapter beside the others, frozen and not active. Raises ModelError where it does not fit."""
    active_before = list(model.active_adapters)
    trained = {parameter_name for parameter_name, p in model.named_parameters() if p.requires_grad}
    _load_adapter(model, folder, name)
    model.base_model.set_adapter(active_before)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name in trained)


def set_scale(model: torch.nn.Module, name: str, factor: float) -> None:
    """Let one adapter's delta count `factor` times: a setting of its layers, nothing is copied or changed."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale(name, factor)


@contextmanager
def scaled(model: torch.nn.Module, name: str, factor: float) -> Iterator[None]:
    """Within, one adapter's delta counts `factor` times; before and after, once."""
    try:
        set_scale(model, name, factor)
        yield
    finally:
        set_scale(model, name, 1.0)


def stack(base: PreTrainedModel, adapters: Sequence[str | Path]) -> PeftModel:
    """Put finished adapters on the base, all active at once, frozen.

    Args:
        base: from load_base.
        adapters: folders, at least one; they get the names of `adapter_names`.

    Raises:
        ModelError: a folder holds no PEFT adapter, or one that does not fit this base.
    """
    from peft import PeftModel

    names = adapter_names(len(adapters))
    first = _adapter_folder(adapters[0])
    with _fitting(first):
        model = PeftModel.from_pretrained(base, str(first), adapter_name=names[0])
        _check_complete(model, first, names[0])
    for name, folder in zip(names[1:], adapters[1:]):
        _load_adapter(model, folder, name)
    model.base_model.set_adapter(names)
    model.requires_grad_(False)
    return model.eval()


def adapter_names(number: int) -> list[str]:
    """The names under which `stack` loads that many adapters."""
    return [f"adapter_{i}" for i in range(number)]


@contextmanager
def active(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Within, exactly these adapters act; with none the model is its base, bit for bit."""
    if not hasattr(model, "peft_config"):
        yield
        return
    before = list(model.active_adapters)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        if names:
            model.base_model.set_adapter(list(names))
            yield
        else:
            with model.disable_adapter():
                yield
    finally:
        model.base_model.set_adapter(before)
        for name, parameter in model.named_parameters():  # peft makes trainable what it activates or re-enables
            parameter.requires_grad_(name in trained)


@contextmanager
def generator(model: Any) -> Iterator[Any]:
    """The model's `generate`; within, nothing is set that is not said in the call.

    transformers fills every setting that a call leaves open from the model's own generation config, for example a
    repetition penalty. Adapters sit in the layers of the base, so its `generate` is theirs too; that of PEFT would
    put the config back.
    """
    from peft import PeftModel
    from transformers import GenerationConfig

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    own, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield inner.generate
    finally:
        inner.generation_config = own


def train_through(model: PeftModel, gradient_checkpointing: bool) -> None:
    """Make the model ready for adapter training; with checkpointing, activations are recomputed layer by layer.

    prepare_model_for_kbit_training is not used: it upcasts embeddings and output layer to float32 (2.1 GB at 8B).
    """
    if not gradient_checkpointing:
        return
    base: Any = model.get_base_model()
    # transformers renamed it in 5.2x; the older name warns there, the newer is missing before
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(f"recipe key training.gradient_checkpointing: {_first_sentence(error)}") from error


def _default_device() -> str:
    from accelerate import PartialState

    return str(PartialState().device)


def _keep_canonical_4bit(model: torch.nn.Module) -> None:
    """On CPUs with AVX-512 BF16, keep bitsandbytes from repacking 4-bit weights at the first inference.

    The packed multiplication has no backward: after one scoring pass, gradients of all but the last adapters would be
    wrong without a word (measured: by 97 %). It also rounds the quantization constants, so the base would no longer be
    the base bit for bit.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (a plain bool, not a parameter)


def _without_dropout(model: torch.nn.Module) -> None:
    """Turn the base's own dropout off: unlearning must not depend on how rows are put in batches and processes."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def _load_adapter(model: PeftModel, folder: str | Path, name: str) -> None:
    path = _adapter_folder(folder)
    with _fitting(path):
        model.load_adapter(str(path), adapter_name=name)
        _check_complete(model, path, name)


def _check_complete(model: PeftModel, folder: Path, name: str) -> None:
    """Every tensor of the file must have found its place, and every place its tensor: peft only warns."""
    from peft import get_peft_model_state_dict

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        stored = set(file.keys())
    placed = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    odd = sorted((placed - stored) | {key for key in stored - placed if ".lora_" in key})
    if odd:
        raise ModelError(
            f"{folder}: this adapter does not fit the base model: {len(odd)} tensors have no counterpart, {odd[0]} "
            "first; name the base it was trained on"
        )


def _adapter_folder(folder: str | Path) -> Path:
    path = Path(folder)
    for needed in ("adapter_config.json", "adapter_model.safetensors"):
        if not (path / needed).is_file():
            raise ModelError(f"{path}: no adapter there ({needed} is missing); name the folder of a PEFT LoRA adapter")
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: adapter_config.json is no JSON; copy the adapter again") from error
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{path}: a {config.get('peft_type')} adapter; only LoRA adapters can be stacked and measured")
    return path


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # _check_complete refuses them
            yield
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError, re.error) as error:
        raise ModelError(f"{folder}: this adapter does not fit the base model: {_first_sentence(error)}") from error


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{name}: out of memory while loading; choose model.quantization nf4 or free memory"
        ) from error
    except Exception as error:  # what a foreign model folder can break is of dozens of types
        raise ModelError(f"{name}: {_reason(name, error)}") from error


def _reason(name: str, error: Exception) -> str:
    folder, message = Path(assets.resolve(name)), _first_sentence(error)
    if "trust_remote_code" in str(error):
        return "this model comes with its own code; read it, then allow it with --model.trust_remote_code true"
    if folder.is_dir() and not (folder / "config.json").is_file():
        return "no config.json in this folder; name the folder of a transformers model"
    if folder.is_dir() and not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        return "no weights in this folder (*.safetensors); copy them there or name another model"
    if not folder.exists() and isinstance(error, OSError):
        return "no such folder, and no model of that id can be had from the hub; check the name and the connection"
    return f"it can't be loaded as a causal language model: {message}"


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{lines[0][:300]} ({type(error).__name__})"
