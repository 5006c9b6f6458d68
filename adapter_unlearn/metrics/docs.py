"""The page docs/metrics.md, made from the table: python -m adapter_unlearn.metrics.docs > docs/metrics.md."""

from __future__ import annotations

from math import inf

from adapter_unlearn.metrics.table import METRICS, Metric

_OPENING = """\
# Metrics

<!-- Made by `python -m adapter_unlearn.metrics.docs > docs/metrics.md`; edit the tables in that folder. -->

One number a sequence, each a column of `score(model, sequences, metrics=[…])`. `forward` stands for all that come from
one teacher-forced forward a batch, however many are asked for (the one that says "2 forwards" adds a second one, with
the adapters off, and shares it); `all` also for those of what the model writes by itself, which share their
continuations.

A sequence has the tokens x_1 … x_T. The first P of them are its prefix. Tokens from x_s on count: s = 2, or the first
after the prompt; L = T - s + 1 of them. Padding never counts.

- h_t is 1 where x_t is the model's first choice after x_1 … x_{t-1}, else 0: raw argmax, the end token included.
- ℓ_t = -log p(x_t | x_<t), in nats. μ_t and σ_t are mean and standard deviation of log p(v | x_<t) over the vocabulary,
  weighed by p.
- q is p as the sampling scheme cuts it: `score(…, sampling=Sampling(temperature=1.0, top_k=40, top_p=1.0))`, which is
  the default; tokens as likely as the last one kept are kept too.
- f(prefix) is the model's greedy continuation to the length of the text. overlap_n(a, b) is the share of b's n-grams
  that a's n-grams, with repeats, amount to when those found in b are counted.
- loss₀ is the loss with every adapter off.

"Memorized" says which way a metric goes with memorization. A sequence about which a metric says nothing gets NaN, and
the reason in the column `note`.

"""

_CLOSING = """
Beside OpenUnlearning: its exact memorization is this one where the prefix is the prompt, and its Min-K scores are the
negative of these. Those and its extraction strength leave out the last token of every text, taking it for the end token
that its chat loader appends; append a token to the texts that it is given, and they are these. Its mean loss leaves out
nothing; its zlib, without a prompt, the text of the first token. [Side by side](openunlearning.md).
"""


def page() -> str:
    """The whole page."""
    lines = ["| name | what it is | definition | range | memorized | cost | source |", "|---|---|---|---|---|---|---|"]
    return _OPENING + "\n".join([*lines, *(_row(name, metric) for name, metric in METRICS.items())]) + "\n" + _CLOSING


def _row(name: str, metric: Metric) -> str:
    formula = metric.formula.replace("|", "\\|")
    cells = [f"`{name}`", metric.means, formula, _range(metric), metric.memorized, metric.cost, metric.source]
    return f"| {' | '.join(cells)} |"


def _range(metric: Metric) -> str:
    lower = "(-∞" if metric.lower == -inf else f"[{metric.lower:g}"
    upper = "∞)" if metric.upper == inf else f"{metric.upper:g}]"
    return f"{lower}, {upper}"


if __name__ == "__main__":
    print(page(), end="")
