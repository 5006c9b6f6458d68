"""One optimizer step over the terms of a stage: exact on any number of processes.

Each process sums the token-loss gradients of its share; the few adapter tensors are summed over processes; the divisor
is the token count of the whole step, which every process knows beforehand. No DistributedDataParallel: it hangs when a
process has nothing selected, which is how selective ascent ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from adapter_unlearn import scoring
from adapter_unlearn.unlearning.losses import LOSSES, Loss

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

    from adapter_unlearn.unlearning.methods import Term


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The adapter's tensors."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def take_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[tuple[Term, Dataset, Sequence[int]]],
    batch_size: int,
    accelerator: Accelerator,
) -> tuple[dict[str, float], float]:
    """Step once along the sum of the terms.

    Args:
        model: its trainable parameters are stepped.
        optimizer: over those parameters.
        parts: each term with its set and the rows of this step.
        batch_size: sequences in one forward and backward.
        accelerator: tells this process's share.

    Returns:
        The mean token loss of each term by the name of its set, and the gradient's norm. The parameters are left as
        they were if either is not finite.
    """
    optimizer.zero_grad()
    counts = [max(sum(scoring.predicted_tokens(sequences.select(rows))), 1) for _, sequences, rows in parts]
    most = max(counts)  # divided by in float32, after the backward pass: before, float16 would underflow
    sums = []
    for (term, sequences, rows), tokens in zip(parts, counts):
        share = list(rows)[accelerator.process_index :: accelerator.num_processes]
        total = 0.0
        for batch in scoring.batches(sequences, share, scoring.rows_per_forward(model, batch_size)):
            total += backward(model, sequences.select(batch), LOSSES[term.loss], term.coefficient * most / tokens)
        sums.append(total / tokens)
    gradients, sums = _add_up(trainable(model), sums, most, accelerator)
    norm = float(gradients.norm())
    if all(map(_finite, [norm, *sums])):
        optimizer.step()
    return {term.rows: value for (term, _, _), value in zip(parts, sums)}, norm


def backward(model: torch.nn.Module, sequences: Dataset, loss: Loss, weight: float) -> float:
    """Add the gradient of weight x (sum of token losses) to the trainable parameters; return the sum.

    The output layer and the loss run forwards and backwards on a few tokens at a time; then the transformer once.
    """
    features, labels, head = scoring.forward(model, sequences["input_ids"], sequences["scored_from"])
    total, gradients = 0.0, []
    for part in scoring.chunks(features, scoring.vocabulary_of(model)):
        leaf = features[part].detach().requires_grad_()
        value = loss(head(leaf).float(), labels[part]).sum()
        (weight * value).backward()
        gradients.append(leaf.grad)
        total += float(value.detach())
    if gradients:
        features.backward(torch.cat([gradient for gradient in gradients if gradient is not None]))
    return total


def _add_up(
    parameters: list[torch.nn.Parameter], sums: list[float], divisor: int, accelerator: Accelerator
) -> tuple[torch.Tensor, list[float]]:
    """Sum gradients and losses over processes in one message; write the divided gradients back; return both."""
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    losses = torch.tensor(sums, dtype=torch.float32, device=gradients[0].device)
    flat = torch.cat([losses, *[gradient.flatten().float() for gradient in gradients]])
    if accelerator.num_processes > 1:
        flat = accelerator.reduce(flat, reduction="sum")
    losses, rest = flat[: len(sums)], flat[len(sums) :] / divisor
    for parameter, piece in zip(parameters, rest.split([p.numel() for p in parameters])):
        parameter.grad = piece.view_as(parameter).to(parameter.dtype)
    return rest, losses.tolist()


def _finite(value: float) -> bool:
    return value - value == 0
