"""The recipe: everything that decides a run, as dataclasses that are also the YAML schema and the flags.

A method's own parameters are defined by its row in `unlearning/methods.py`; here they are a mapping with a `name`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Source = str | list[str]
Level = float | Literal["holdout"] | None
Quantization = Literal["nf4", "int8", "none"]
Dtype = Literal["bfloat16", "float16", "float32"]
Form = Literal["stacked", "merged", "requantized", "requantized_nf4", "requantized_int8"]


@dataclass(frozen=True)
class Model:
    """The base model.

    Args:
        name: folder or hub id of a causal language model; `embedded:model` is the one shipped with the package.
        revision: hub revision; a commit pins it, null takes the newest.
        quantization: nf4 (with double quantization), int8 or none.
        dtype: of the weights that are not quantized, and of the computation.
        adapter: folder of a LoRA adapter that is part of the base; it stays frozen and active.
    """

    name: str
    revision: str | None = None
    quantization: Quantization = "nf4"
    dtype: Dtype = "bfloat16"
    adapter: str | None = None

    @classmethod
    def of(cls, model: Model | str) -> Model:
        """The model itself, or the model of that name with all defaults."""
        return cls(model) if isinstance(model, str) else model


@dataclass(frozen=True)
class Data:
    """The texts. A source is a file (jsonl, csv, parquet, txt, npy), a list of them, or a hub id.

    Args:
        forget: the texts to unlearn.
        retain: texts trained on so that behaviour stays; should hold some of the forget set's kind.
        holdout: unseen texts of the forget set's kind; bounds and stop levels come from it.
        validation: general unseen text; steers the guard and the choice of the epoch.
        test: general unseen text; only ever reported.
        max_tokens: longer texts become overlapping windows of this many tokens.
        stride: tokens from the start of one window to the next; at most a window's length.
        prefix_tokens: tokens given before the model must recite the rest; at most half of a sequence.
        synthetic: number of retain texts that the base generates by continuing pieces of the retain set, added to it;
            for method.retain_loss kl. They preserve behaviour near the forget set that no given text covers.
    """

    forget: Source
    retain: Source | None = None
    holdout: Source | None = None
    validation: Source | None = None
    test: Source | None = None
    max_tokens: int = 200
    stride: int = 150
    prefix_tokens: int = 50
    synthetic: int = 0


@dataclass(frozen=True)
class Adapter:
    """The LoRA adapter to train.

    Args:
        r: rank.
        alpha: the delta is alpha / r times B A (alpha / sqrt(r) with use_rslora).
        dropout: on the adapter's input, in training.
        target_modules: all-linear (without the output layer), or names of modules.
        use_rslora: rank-stabilized scaling.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    use_rslora: bool = False


@dataclass(frozen=True)
class Training:
    """How an epoch's selection is stepped over.

    Args:
        learning_rate: LoRA wants 10 to 100 times what full fine-tuning takes. auto takes a few steps at each of several
            rates before a stage begins, and then the best; it needs data.validation and stop.max_perplexity_increase,
            but for match and undial with a retain_loss of kl.
        learning_rate_decay: over this last share of max_epochs the learning rate falls in a line towards 0.
        max_epochs: an epoch scores all, selects, and passes once over the selection.
        batch_size: sequences in one forward and backward; it changes memory and speed, not the result.
        sequences_per_step: selected sequences in one optimizer step; null takes all of them in one.
        optimizer: adamw (betas 0.9 and 0.98, no decay) or sgd.
        gradient_checkpointing: recompute activations in the backward pass: less memory, a third more time.
    """

    learning_rate: float | Literal["auto"] = 3e-4
    learning_rate_decay: float = 0.0
    max_epochs: int = 100
    batch_size: int = 8
    sequences_per_step: int | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Stop:
    """When to stop: as soon as everything that is set holds. `holdout` takes the level from the holdout set.

    Args:
        mean_below: mean memorization accuracy of the forget set is below this (holdout: the holdout set's mean).
        max_below: every memorization accuracy is below this (holdout: the holdout set's 95 % quantile).
        extractable: at most this many sequences are extractable.
        extraction_likelihood_below: mean extraction likelihood, EL_10, of the forget set is below this (holdout: the
            holdout set's mean). It takes generation, so it is measured in epochs in which all else holds.
        longest_run: no verbatim run is longer than this many tokens (holdout: the holdout set's longest).
        max_perplexity_increase: the budget: no adapter is kept under which the validation perplexity has grown by more
            than this share, unless there is no validation set.
        patience: the guard: stop after this many epochs in a row past the budget. With a retain term perplexity may
            come back; without, 1 is right.
        early: stop in the first epoch in which all holds; false trains all of training.max_epochs, which a falling
            learning rate needs, and keeps the best of the epochs in which it holds: fewest outliers, then
            likest to the holdout set, then perplexity.
    """

    mean_below: Level = 0.33
    max_below: Level = None
    extractable: int | None = None
    longest_run: int | Literal["holdout"] | None = None
    extraction_likelihood_below: Level = None
    max_perplexity_increase: float | None = 0.05
    patience: int = 1
    early: bool = True


@dataclass(frozen=True)
class Evaluation:
    """What is measured before and after.

    Args:
        forms: deployment forms to evaluate beside the base: stacked; merged (the delta added to the original weights);
            requantized (merged, then quantized as the base is, or as the form's name says).
        metrics: rows of the metrics table, one number a sequence each.
        bounds: what makes an outlier: `holdout` (the 5 % and 95 % quantiles of the holdout set; `paper` where there
            is none) or `paper` (0.15 and 0.60).
        batch_size: sequences in one forward.
    """

    forms: list[Form] = field(default_factory=lambda: ["stacked"])
    metrics: list[str] = field(
        default_factory=lambda: [
            "memorization_accuracy",
            "extractable",
            "extractable_50",
            "longest_verbatim_run",
            "loss",
        ]
    )
    bounds: Literal["holdout", "paper"] = "holdout"
    batch_size: int = 16


@dataclass(frozen=True)
class Recipe:
    """One run, from base and texts to an adapter and its proof.

    Args:
        model: the base.
        data: the texts.
        seed: of the adapter's initialisation, the order of rows and every draw.
        output_dir: the run folder; must not exist.
        adapter: the adapter to train.
        method: its name and parameters, for example `{name: sga, threshold: 0.7}`. A recipe that names none takes all
            that it leaves out from recipes/default.yaml, the method included, instead of from the defaults shown here.
        training: how to step.
        stop: when to stop.
        evaluation: what to measure.
        tracking: none, or a tracker that accelerate knows (tensorboard, wandb, …).
    """

    model: Model
    data: Data
    seed: int = 0
    output_dir: str = "runs/unlearn"
    adapter: Adapter = field(default_factory=Adapter)
    method: dict[str, Any] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    stop: Stop = field(default_factory=Stop)
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracking: str = "none"


@dataclass(frozen=True)
class Permissions:
    """What only the user may allow: flags and parameters, never keys of a file.

    Args:
        overwrite: replace earlier results in the output folder.
        force: accept an adapter that was made for another base.
        trust_remote_code: run Python code that comes with the model.
    """

    overwrite: bool = False
    force: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Utility:
    """What `evaluate` measures beside the sets; needs the extra `eval` for tasks.

    Args:
        tasks: downstream tasks: names of lm-eval tasks, `paper`, `quick`, or task files.
        replies: file of dialogues (jsonl with prompt and reply); the model's replies are scored by unigram F1.
        limit: use only the first samples of each task and of the dialogues.
    """

    tasks: tuple[str, ...] = ()
    replies: str | None = None
    limit: int | None = None
