"""OpenUnlearning's trainers on the real-text base: its own classes, collator, data wrapper and settings.

    python benchmarks/openunlearning/train_theirs.py --checkout OPEN-UNLEARNING --revision COMMIT \\
        --base_dir BASE --output_dir RUNS

BASE is what benchmarks/real_text/train_base.py made. Runs in the environment of theirs.py. Each (trainer, learning
rate) is trained in a process of its own, one after the other, and leaves RUNS/TRAINER-RATE/checkpoint-STEP and a
run.json with its settings, its seconds and its peak memory; what is done is not done again. score_theirs.py scores
them.

The settings are those that its configs/unlearn.yaml, configs/experiment/unlearn/tofu/default.yaml and
configs/trainer/TRAINER.yaml come to (the loss's weights and betas, batches of 8 × 4 accumulated, AdamW without a change
to its betas, weight decay 0.01, linear decay after one epoch of warm-up, gradients clipped at norm 1, seed 0), but for:

- float32 on a CPU, not bf16; `adamw_torch`, not `paged_adamw_32bit`, which pages its state of a GPU.
- The learning rates: 1e-4, 3e-4 and 1e-3, not 1e-5, which is for models of a billion weights and more.
- 20 epochs, not 10: 64 sequences in batches of 32 are only 2 steps an epoch.
- The warm-up of one epoch is given in steps, because they divide by the number of GPUs to find it.
- A checkpoint after every epoch; no evaluation of theirs, no tensorboard.
- Each text is an item of its own, as token ids, every token but the first with a label and no end token appended: what
  their loader for plain texts makes of a text, without its tokenizing again and joining of texts.

Its package `trainer` is entered below its top module, as in theirs.py: that one needs deepspeed, for RMU.
"""

import argparse
import importlib
import json
import logging
import multiprocessing
import resource
import sys
import time
import types
from pathlib import Path

import hydra
import torch
import transformers
from omegaconf import OmegaConf
from theirs import load_model, load_tokenizer

TRAINERS = {"GradAscent": "grad_ascent", "GradDiff": "grad_diff", "NPO": "npo", "SimNPO": "simnpo"}
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
EPOCHS = 20
EXPERIMENT = "experiment/unlearn/tofu/default.yaml"


def load_theirs(checkout):
    """Their trainers by name, data wrapper, collator and seeding."""
    source = checkout / "src"
    sys.path.insert(0, str(source))
    package = types.ModuleType("trainer")
    package.__path__ = [str(source / "trainer")]
    sys.modules["trainer"] = package
    return types.SimpleNamespace(
        trainers={name: getattr(importlib.import_module(f"trainer.unlearn.{m}"), name) for name, m in TRAINERS.items()},
        pairs=importlib.import_module("data.unlearn").ForgetRetainDataset,
        collator=importlib.import_module("data.collators").DataCollatorForSupervisedDataset,
        seed_everything=importlib.import_module("trainer.utils").seed_everything,
    )


def settings(configs, trainer):
    """Their settings of a trainer: its own file with those it builds on, then what experiment and entry point add."""
    with hydra.initialize_config_dir(str(configs.resolve()), version_base=None):
        own = hydra.compose(f"trainer/{trainer}").trainer
    OmegaConf.set_struct(own, False)
    return OmegaConf.merge(own, *(OmegaConf.load(configs / name).trainer for name in (EXPERIMENT, "unlearn.yaml")))


def here(theirs, learning_rate, place, sequences):
    """Their arguments, changed as the docstring above says."""
    batch = theirs.per_device_train_batch_size * theirs.gradient_accumulation_steps
    kept = OmegaConf.to_container(theirs)
    del kept["warmup_epochs"], kept["logging_dir"]
    return transformers.TrainingArguments(
        **kept
        | {
            "learning_rate": learning_rate,
            "num_train_epochs": EPOCHS,
            "output_dir": str(place),
            "bf16": False,
            "bf16_full_eval": False,
            "use_cpu": True,
            "optim": "adamw_torch",
            "warmup_steps": int(theirs.warmup_epochs * sequences // batch),
            "save_strategy": "epoch",
            "eval_strategy": "no",
            "eval_on_start": False,
            "do_eval": False,
            "report_to": "none",
            "disable_tqdm": True,
        }
    )


def items(path, pad):
    """A file's rows as their loader for plain texts makes them: never a label on the first token."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        ids = json.loads(line)["input_ids"]
        assert pad not in ids, "their collator would mask it"
        found.append({"input_ids": torch.tensor(ids), "labels": torch.tensor([-100, *ids[1:]])})
    return found


def peak_bytes():
    """The most memory this process has had (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(theirs, given, name, learning_rate, place):
    """One run, from the base to its last checkpoint."""
    folder = given.base_dir / "model"
    tokenizer = load_tokenizer(folder)
    forget, retain = (items(given.base_dir / f"{n}.jsonl", tokenizer.pad_token_id) for n in ("forget", given.retain))
    wanted = settings(given.checkout / "configs", name)
    arguments = here(wanted.args, learning_rate, place, len(forget))
    method = OmegaConf.to_container(wanted.get("method_args", OmegaConf.create({})))
    theirs.seed_everything(arguments.seed)
    model = load_model(folder)
    before = peak_bytes()
    runner = theirs.trainers[name](
        model=model,
        train_dataset=theirs.pairs(forget, retain),
        tokenizer=tokenizer,
        data_collator=theirs.collator(tokenizer),
        args=arguments,
        **method,
    )
    start = time.perf_counter()
    runner.train()
    seconds = time.perf_counter() - start
    kept = ("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay")
    kept += (
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "lr_scheduler_type",
        "warmup_steps",
        "optim",
        "seed",
    )
    found = {
        "trainer": name,
        "learning_rate": learning_rate,
        "method_args": method,
        "args": {key: getattr(arguments, key) for key in kept},
        "retain": given.retain,
        "n_forget": len(forget),
        "n_retain": len(retain),
        "steps": runner.state.global_step,
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
        "peak_bytes_before_training": before,
        "log": [entry for entry in runner.state.log_history if "loss" in entry],
        "revision": given.revision,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
    }
    (place / "run.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkout", "base_dir", "output_dir"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--revision", required=True)
    parser.add_argument("--retain", default="retain_near", help="file in BASE, without its ending")
    parser.add_argument("--only", nargs="+", default=list(TRAINERS), choices=list(TRAINERS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    theirs = load_theirs(given.checkout)  # before the processes part: imported once, not twelve times
    for trainer in given.only:
        for learning_rate in LEARNING_RATES:
            place = given.output_dir / f"{trainer}-{learning_rate:g}"
            if (place / "run.json").is_file():
                continue
            run = multiprocessing.get_context("fork").Process(
                target=train, args=(theirs, given, trainer, learning_rate, place)
            )
            run.start()
            run.join()
            if run.exitcode:
                parser.exit(1, f"{place.name}: ended with {run.exitcode}\n")
            print(place.name, flush=True)


if __name__ == "__main__":
    main()
