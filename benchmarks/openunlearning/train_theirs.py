"""Run OpenUnlearning's trainers on the real-text base, with its own classes, collator, data wrapper and settings.

    python benchmarks/openunlearning/train_theirs.py --checkout OPEN-UNLEARNING --revision COMMIT \\
        --base_dir BASE --output_dir RUNS

BASE is the output of benchmarks/real_text/train_base.py. The environment is that of theirs.py. Each pair of trainer and
learning rate is trained in its own process, one after the other. A run writes RUNS/TRAINER-RATE/checkpoint-STEP and a
run.json with its settings, duration and peak memory. Finished runs are skipped. score_theirs.py scores the checkpoints.

The settings are those of OpenUnlearning's configs/unlearn.yaml, configs/experiment/unlearn/tofu/default.yaml and
configs/trainer/TRAINER.yaml: weights and betas of the losses, batches of 8 with 4 accumulation steps, AdamW with its
default betas and weight decay 0.01, linear decay after one epoch of warm-up, gradients clipped at norm 1, seed 0. The
differences are:

- float32 on a CPU instead of bf16, and `adamw_torch` instead of `paged_adamw_32bit`, which pages GPU memory.
- Learning rates of 1e-4, 3e-4 and 1e-3 instead of 1e-5, which is meant for models of a billion weights and more.
- 20 epochs instead of 10, because 64 sequences in batches of 32 give only 2 steps per epoch.
- The warm-up of one epoch is set in steps, because OpenUnlearning divides by the number of GPUs to compute it.
- A checkpoint after every epoch, and neither OpenUnlearning's evaluation nor tensorboard.
- Each text is one item of token ids. Every token but the first has a label, and no end token is appended.
  OpenUnlearning's loader for plain texts makes the same items, but tokenizes and joins texts itself.

As in theirs.py, the top module of the package `trainer` is not run: it needs deepspeed, for RMU.
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
    """Their trainers by name, data wrapper, collator and seeding function."""
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
    """Their settings of a trainer: its own file with its defaults, then those of the experiment and the entry point."""
    with hydra.initialize_config_dir(str(configs.resolve()), version_base=None):
        own = hydra.compose(f"trainer/{trainer}").trainer
    OmegaConf.set_struct(own, False)
    return OmegaConf.merge(own, *(OmegaConf.load(configs / name).trainer for name in (EXPERIMENT, "unlearn.yaml")))


def training_arguments(theirs, learning_rate, folder, sequences):
    """Their training arguments with the differences that the module's docstring lists."""
    batch = theirs.per_device_train_batch_size * theirs.gradient_accumulation_steps
    common = OmegaConf.to_container(theirs)
    del common["warmup_epochs"], common["logging_dir"]
    return transformers.TrainingArguments(
        **common
        | {
            "learning_rate": learning_rate,
            "num_train_epochs": EPOCHS,
            "output_dir": str(folder),
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
    """The rows of a file as their loader for plain texts makes them: the first token has no label."""
    result = []
    for line in path.read_text(encoding="utf-8").splitlines():
        ids = json.loads(line)["input_ids"]
        assert pad not in ids, "their collator would mask padding tokens inside a text"
        result.append({"input_ids": torch.tensor(ids), "labels": torch.tensor([-100, *ids[1:]])})
    return result


def peak_bytes():
    """Peak memory of this process (Linux reports KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(theirs, options, name, learning_rate, folder):
    """Train one run, from the base to its last checkpoint, and write run.json."""
    base = options.base_dir / "model"
    tokenizer = load_tokenizer(base)
    forget, retain = (
        items(options.base_dir / f"{n}.jsonl", tokenizer.pad_token_id) for n in ("forget", options.retain)
    )
    config = settings(options.checkout / "configs", name)
    arguments = training_arguments(config.args, learning_rate, folder, len(forget))
    method = OmegaConf.to_container(config.get("method_args", OmegaConf.create({})))
    theirs.seed_everything(arguments.seed)
    model = load_model(base)
    before = peak_bytes()
    trainer = theirs.trainers[name](
        model=model,
        train_dataset=theirs.pairs(forget, retain),
        tokenizer=tokenizer,
        data_collator=theirs.collator(tokenizer),
        args=arguments,
        **method,
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    recorded = (
        "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay", "adam_beta1",
        "adam_beta2", "adam_epsilon", "max_grad_norm", "lr_scheduler_type", "warmup_steps", "optim", "seed",
    )  # fmt: skip
    record = {
        "trainer": name,
        "learning_rate": learning_rate,
        "method_args": method,
        "args": {key: getattr(arguments, key) for key in recorded},
        "retain": options.retain,
        "n_forget": len(forget),
        "n_retain": len(retain),
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
        "peak_bytes_before_training": before,
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "revision": options.revision,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
    }
    (folder / "run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkout", "base_dir", "output_dir"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--revision", required=True)
    parser.add_argument(
        "--retain", default="retain_near", help="name of the retain file in BASE, without its extension"
    )
    parser.add_argument("--only", nargs="+", default=list(TRAINERS), choices=list(TRAINERS), help="trainers to run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    theirs = load_theirs(options.checkout)  # before the fork, so that it is imported only once
    for trainer in options.only:
        for learning_rate in LEARNING_RATES:
            folder = options.output_dir / f"{trainer}-{learning_rate:g}"
            if (folder / "run.json").is_file():
                continue
            run = multiprocessing.get_context("fork").Process(
                target=train, args=(theirs, options, trainer, learning_rate, folder)
            )
            run.start()
            run.join()
            if run.exitcode:
                parser.exit(1, f"{folder.name}: the run failed with exit code {run.exitcode}\n")
            print(folder.name, flush=True)


if __name__ == "__main__":
    main()
