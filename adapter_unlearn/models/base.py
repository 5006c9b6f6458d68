"""Load a base model, quantized or not, with its configuration and tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapter_unlearn import assets
from adapter_unlearn.errors import ModelError
from adapter_unlearn.models.model_folder import check_folder, check_sizes
from adapter_unlearn.recipe import Dtype, Quantization, check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PICKLES = (
    "its weights are pickles (*.bin), which can run code when they are loaded; convert them to safetensors in an "
    "isolated environment, or name a model that has them"
)
"""Why a model with weights in another format is refused."""

# bitsandbytes warns at import where its CPU kernel for 4-bit inference is not installed; it works without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# It also warns at every multiplication that int8 computes in float16.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def load_base(
    name: str,
    quantization: Quantization = "nf4",
    dtype: Dtype = "bfloat16",
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
) -> PreTrainedModel:
    """Load a causal language model for scoring or for training adapters on it.

    Args:
        name: folder or hub id; `embedded:model` is the one shipped with the package.
        quantization: nf4 (4 bits, double quantization), int8 or none.
        dtype: of the weights that are not quantized, and of the computation.
        revision: hub revision.
        trust_remote_code: run Python code that comes with the model.
        device: device to load to; None takes the first accelerator, or the CPU if there is none.

    Returns:
        The model, frozen, in eval mode, without dropout. Embeddings and output layer keep `dtype`.

    Raises:
        ModelError: the model does not exist, is no causal language model, lacks weights, has weights in another
            quantization or in pickles, needs remote code, or does not fit into memory.
        RecipeError: an unknown quantization or dtype.
    """
    from accelerate import PartialState
    from transformers import AutoModelForCausalLM
    from transformers.utils import find_adapter_config_file

    check_choice("quantization", quantization, Quantization)
    check_choice("dtype", dtype, Dtype)
    device = torch.device(PartialState().device if device is None else device)
    if device.type == "cpu" and dtype != "float32" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        log.warning("%s is several times slower than float32 on this CPU; set model.dtype (or --dtype) float32", dtype)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    stored = stored_quantization(load_config(name, **options))
    options |= {"dtype": getattr(torch, dtype), "device_map": {"": device}}
    if stored not in ("none", quantization):
        raise ModelError(
            f"{name}: its weights are stored as {stored}; set quantization to {stored}, or name the unquantized model"
        )
    with _loading(name):
        if find_adapter_config_file(assets.resolve(name), revision=revision) is not None:
            raise ModelError(
                f"{name}: this folder also holds an adapter (adapter_config.json), which transformers would put on the "
                "base; move it to a folder of its own and name it as the adapter"
            )
    if quantization != stored:
        options["quantization_config"] = quantization_config(quantization, dtype)
    with _loading(name):
        model, info = AutoModelForCausalLM.from_pretrained(
            assets.resolve(name), output_loading_info=True, use_safetensors=True, **options
        )
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
    """The quantization of a model's stored weights: none, nf4, int8, or the name of another method."""
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
    """Load the model's configuration, without its weights. Raises ModelError."""
    from transformers import AutoConfig

    place = assets.resolve(name)
    check_folder(Path(place))
    with _loading(name):
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
        check_sizes(config, name)
    return config


def weights_folder(name: str, revision: str | None) -> Path:
    """The folder with the weight files of a model that was loaded before: its own, or the one in the hub's cache."""
    folder = Path(assets.resolve(name))
    if folder.is_dir():
        return folder
    from transformers.utils import cached_file

    return Path(cached_file(name, "config.json", revision=revision, local_files_only=True)).parent


def fetch(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """A model's folder; for a hub id, files that match these globs are downloaded first. Raises ModelError."""
    folder = Path(assets.resolve(name))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    with _loading(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))


def skeleton(config: Any, name: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without weights, on the meta device: its modules, shapes and tied parameters.

    Raises:
        ModelError: as load_base.
    """
    from transformers import AutoModelForCausalLM

    with _loading(name), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


def quantized_modules(config: Any, name: str, quantization: str, trust_remote_code: bool = False) -> set[str]:
    """Names of the modules that transformers quantizes with this method; the output layer is not among them."""
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
    """The model's tokenizer, or None if there is none or it can't be loaded; sets of token ids need none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            assets.resolve(name), revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # of many types, as in _loading; load_sequences reports it if there is text to tokenize
        log.debug("no tokenizer in %s: %s", name, error)
        return None


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


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{name}: out of memory while loading; choose model.quantization nf4 or free memory"
        ) from error
    except Exception as error:  # a damaged model folder raises errors of many types
        raise ModelError(f"{name}: {_reason(name, error)}") from error


def _reason(name: str, error: Exception) -> str:
    folder, message = Path(assets.resolve(name)), first_sentence(error)
    if "trust_remote_code" in str(error):
        return "this model comes with its own Python code; read it, then allow it with --trust_remote_code"
    if folder.is_dir() and not (folder / "config.json").is_file():
        return "no config.json in this folder; name the folder of a transformers model"
    if folder.is_dir() and not [*folder.glob("*.safetensors")]:
        if [*folder.glob("*.bin")]:
            return PICKLES
        return "no weights in this folder (*.safetensors); copy them there or name another model"
    if not folder.exists() and isinstance(error, OSError):
        return "no such folder, and the hub gives no model of this id; check the name and the connection"
    return f"it can't be loaded as a causal language model: {message}"


def first_sentence(error: Exception) -> str:
    """The first line of an error's message, and its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{lines[0][:300]} ({type(error).__name__})"
