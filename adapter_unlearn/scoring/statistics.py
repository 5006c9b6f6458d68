"""Statistics of each token, computed from a chunk of logits, so that the logits need not be kept."""

from __future__ import annotations

from collections.abc import Collection

import torch

from adapter_unlearn.metrics import Sampling

CPU_BLOCK = 2**19
"""Number of logits processed at once on a CPU; they fit its cache, which makes it several times faster."""

DEVICE_BLOCK = 2**23
"""The same on an accelerator: 32 MiB, large enough that launching kernels costs little."""


def of_logits(
    logits: torch.Tensor, labels: torch.Tensor, needs: Collection[str], sampling: Sampling
) -> dict[str, torch.Tensor]:
    """Statistics of each token to predict, under the names of the attributes of Predictions.

    Args:
        logits: shape (n, vocabulary), any float type; converted to float32.
        labels: the tokens to predict, shape (n,).
        needs: statistics beside hits and nll: log_p_mean and log_p_deviation (computed together), sampled_log_p.
        sampling: the scheme of sampled_log_p.

    Returns:
        Name -> shape (n,), on the CPU; hits is bool, all others are float32.
    """
    size = max(1, (CPU_BLOCK if logits.device.type == "cpu" else DEVICE_BLOCK) // logits.shape[-1])
    blocks = [
        _of_block(logits[start : start + size].float(), labels[start : start + size, None], needs, sampling)
        for start in range(0, max(1, len(logits)), size)  # at least one block, so that the names exist
    ]
    return {name: torch.cat([block[name] for block in blocks]).cpu() for name in blocks[0]}


def _of_block(
    logits: torch.Tensor, labels: torch.Tensor, needs: Collection[str], sampling: Sampling
) -> dict[str, torch.Tensor]:
    log_p = logits.log_softmax(-1)  # (n, vocabulary); labels: (n, 1)
    values = {"hits": logits.argmax(-1) == labels[:, 0], "nll": -log_p.gather(-1, labels)[:, 0]}
    if "log_p_mean" in needs or "log_p_deviation" in needs:
        p = log_p.exp()
        mean = (p * log_p).sum(-1, keepdim=True)
        # E[(x - mean)^2], not E[x^2] - mean^2: the difference would lose all digits of a small deviation.
        deviation = (p * (log_p - mean).square_()).sum(-1).sqrt()
        values |= {"log_p_mean": mean[:, 0], "log_p_deviation": deviation}
    if "sampled_log_p" in needs:
        values["sampled_log_p"] = _sampled_log_p(logits, labels, sampling)
    return values


def _sampled_log_p(logits: torch.Tensor, labels: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Log-probability of each label under the sampling scheme, shape (n,); -inf where the label is cut."""
    scaled = logits / sampling.temperature if sampling.temperature != 1 else logits
    label = scaled.gather(-1, labels)
    if sampling.top_k is None and sampling.top_p == 1:
        return (label - scaled.logsumexp(-1, keepdim=True))[:, 0]
    kept = scaled.topk(min(sampling.top_k or scaled.shape[-1], scaled.shape[-1]), -1).values  # (n, k), sorted
    ties = (scaled >= kept[:, -1:]).sum(-1, keepdim=True) - kept.shape[-1]  # as likely as the last token kept
    weights = (kept - kept[:, :1]).exp().double()
    above = weights.cumsum(-1) - weights
    total = weights.sum(-1, keepdim=True) + ties * weights[:, -1:]
    last = kept[:, -1:]  # the least likely token kept
    if sampling.top_p < 1:
        number = (above < sampling.top_p * total).sum(-1, keepdim=True)
        last = kept.gather(-1, number.clamp_min(1) - 1)  # 0 only if the logits are NaN
    mass = (weights * (kept >= last)).sum(-1, keepdim=True) + ties * weights[:, -1:] * (kept[:, -1:] >= last)
    log_p = (label - kept[:, :1]) - mass.log().float()
    return log_p.masked_fill(label < last, -torch.inf)[:, 0]
