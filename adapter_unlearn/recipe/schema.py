"""The recipe: everything that decides a run, as dataclasses that are also the YAML schema and the flags.

Here, a method is a mapping with a `name`. Its parameters are defined by its row in `unlearning/methods.py`. The first
sentence of each description becomes the comment beside the key in `recipes copy`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any, Literal

from adapter_unlearn.errors import RecipeError
from adapter_unlearn.recipe.home import expand_fields

Source = str | list[str]
Level = float | Literal["holdout"] | None
Quantization = Literal["nf4", "int8", "none"]
Dtype = Literal["bfloat16", "float16", "float32"]
_METRICS = ("memorization_accuracy", "extractable", "extractable_50", "longest_verbatim_run", "loss")
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

    def __post_init__(self) -> None:
        """Accept paths, and expand `~`."""
        expand_fields(self, ("name", "adapter"))

    @classmethod
    def of(cls, model: Model | str | PathLike[str]) -> Model:
        """The model itself, or the model of that name with all defaults. Raises RecipeError for anything else."""
        model = cls(fspath(model)) if isinstance(model, str | PathLike) else model
        if not isinstance(model, cls):
            raise RecipeError(f"model: a {type(model).__name__} names no base; give a Model, a folder or a hub id")
        return model


@dataclass(frozen=True)
class Data:
    """The texts. A source is a file (jsonl, json, csv, parquet, txt, npy), a list of files, or a hub id.

    Args:
        forget: the texts to unlearn.
        retain: texts to preserve. They are trained on; half of them or more should be of the forget set's kind.
        holdout: never-seen texts of the forget set's kind. Bounds and stop levels come from them.
        validation: general unseen text that steers. It guards the perplexity and decides between epochs.
        test: general unseen text that is only reported.
        max_tokens: longer texts become overlapping windows of this many tokens.
        stride: tokens from the start of one window to the start of the next. It is at most a window's length.
        prefix_tokens: length of a sequence's prefix, in tokens. It is at most half of the sequence.
        synthetic: number of retain texts that the base generates. It continues pieces of the retain set; the result
            preserves text near the forget set that no other text covers. For method.retain_loss kl.
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

    def __post_init__(self) -> None:
        """Accept paths, and expand `~`."""
        expand_fields(self, ("forget", "retain", "holdout", "validation", "test"))

    @classmethod
    def of(cls, data: Data | Source | PathLike[str]) -> Data:
        """The sets themselves, or a forget set with all defaults. Raises RecipeError for anything else."""
        if isinstance(data, Data):
            return data
        if isinstance(data, str | PathLike):
            return cls(fspath(data))
        if not isinstance(data, list) or not all(isinstance(source, str | PathLike) for source in data):
            raise RecipeError(f"data: a {type(data).__name__} names no sets; give a Data, a file or a list of files")
        return cls(data)


@dataclass(frozen=True)
class Adapter:
    """The LoRA adapter to train.

    Args:
        r: rank.
        alpha: scale. The delta is alpha / r times B A, or alpha / sqrt(r) times B A with use_rslora.
        dropout: dropout on the adapter's input while training.
        target_modules: all-linear (all but the output layer), or names of modules.
        use_rslora: rank-stabilized scaling.
        dtype: of the finished adapter's files. It is trained in float32, rounded, and measured as its files hold it.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    use_rslora: bool = False
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


@dataclass(frozen=True)
class Training:
    """How the selected sequences are trained on.

    Args:
        learning_rate: a number, or auto for a search. LoRA needs 10 to 100 times the rate of full fine-tuning. The
            search tries several rates for a few steps before a stage begins; it needs data.validation and
            stop.max_perplexity_increase, except for match and undial with a KL retain term.
        learning_rate_decay: share of max_epochs, at the end, over which the learning rate falls linearly to 0.
        max_epochs: largest number of epochs. An epoch scores all sequences, selects, and passes over the selection.
        batch_size: sequences in one forward and backward pass. It changes memory and speed, not the result.
        sequences_per_step: selected sequences in one optimizer step; null takes all.
        optimizer: adamw (betas 0.9 and 0.98, no weight decay) or sgd.
        gradient_checkpointing: recompute activations in the backward pass. It needs less memory and a third more time.
        validation_tokens: predicted tokens of the validation set that are scored after an epoch. The rows are drawn
            once; the whole set is scored before and after training. null scores the whole set after every epoch.
        checkpoint_minutes: write a checkpoint, from which --resume continues, after the first step that is this many
            minutes after the last one; 0 after every step. null after every epoch.
    """

    learning_rate: float | Literal["auto"] = 3e-4
    learning_rate_decay: float = 0.0
    max_epochs: int = 100
    batch_size: int = 8
    sequences_per_step: int | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    gradient_checkpointing: bool = False
    validation_tokens: int | None = 1024
    checkpoint_minutes: float | None = None


@dataclass(frozen=True)
class Stop:
    """When to stop: as soon as every rule that is set holds (see early). `holdout` takes a level from that set.

    Args:
        mean_below: the forget set's mean memorization accuracy must be below this. holdout: the holdout set's mean.
        max_below: every memorization accuracy must be at most this. holdout: the holdout set's 95 % quantile.
        extractable: number of sequences that may remain extractable.
        longest_run: longest verbatim run that may remain, in tokens. holdout: the holdout set's longest.
        extraction_likelihood_below: the forget set's mean extraction likelihood (EL_10) must be below this. holdout:
            the holdout set's mean. It needs generation, so it is measured only when all other rules hold.
        max_perplexity_increase: largest growth of the validation perplexity, as a share. No adapter beyond it is kept,
            unless there is no validation set.
        patience: epochs in a row beyond max_perplexity_increase after which the run stops. With a retain term the
            perplexity may recover; without one, 1 is right.
        early: stop in the first epoch in which all rules hold. If false, the run trains all of training.max_epochs,
            which a decaying learning rate needs. Of the epochs in which all rules hold it keeps the best one: fewest
            failing sequences, then fewest extractable ones, then least distinguishable from the holdout set, then
            lowest validation perplexity.
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
    """What is measured before and after training.

    Args:
        forms: deployment forms to evaluate beside the base, of stacked, merged and requantized. merged adds the delta
            to the original weights; requantized quantizes the result like the base, or as its suffix says.
        metrics: metrics to compute, one column each (docs/metrics.md). The default metrics are always computed.
        bounds: what an outlier is. holdout: outside the 5 % and 95 % quantiles of the holdout set, or the paper's
            bounds where there is no holdout set. paper: 0.15 and 0.60.
        batch_size: sequences in one forward pass.
    """

    forms: list[Form] = field(default_factory=lambda: ["stacked"])
    metrics: list[str] = field(default_factory=lambda: list(_METRICS))
    bounds: Literal["holdout", "paper"] = "holdout"
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Accept one name in place of a list."""
        for name in ("forms", "metrics"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, [value])


@dataclass(frozen=True)
class Recipe:
    """One run, from base model and texts to an evaluated adapter.

    Args:
        model: the base model.
        data: the texts.
        seed: seed of the adapter's initialization, the order of rows and every draw.
        output_dir: the run folder. It must be new or empty, unless --overwrite is given.
        adapter: the adapter to train.
        method: its name and parameters, for example `{name: sga, threshold: 0.7}`. A recipe that names no method takes
            the keys that it leaves out, the method included, from recipes/default.yaml, not from the defaults shown
            here.
        training: how to train.
        stop: when to stop.
        evaluation: what to measure.
        tracking: none, or a tracker that accelerate supports (tensorboard, wandb, …).
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

    def __post_init__(self) -> None:
        """Accept paths, and expand `~`."""
        expand_fields(self, ("output_dir",))


@dataclass(frozen=True)
class Permissions:
    """What only the user may allow: flags and parameters, never keys of a file.

    Args:
        overwrite: replace earlier results in the output folder.
        force: accept an adapter that was made for another base.
        trust_remote_code: run Python code that comes with the model.
        resume: continue an interrupted run from its checkpoint.
    """

    overwrite: bool = False
    force: bool = False
    trust_remote_code: bool = False
    resume: bool = False


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

    def __post_init__(self) -> None:
        """Accept paths, and one name in place of several; expand `~`."""
        object.__setattr__(self, "tasks", (self.tasks,) if isinstance(self.tasks, str) else self.tasks)
        expand_fields(self, ("tasks", "replies"))
