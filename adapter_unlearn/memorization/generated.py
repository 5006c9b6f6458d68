"""Measures of one sequence from what the model writes by itself, token by token, after a prefix of the text.

All count tokens, never characters: token ids are the words of the libraries that compare two texts, so a language
without spaces is measured like any other. Raw greedy choice: no generation config, the end token included.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from adapter_unlearn.memorization.teacher_forced import NotScorableError

NGRAM = 10
"""The n of extraction likelihood: the paper's headline choice."""


@dataclass(frozen=True)
class Continuations:
    """How the model goes on, greedily, after prefixes of one sequence of T tokens.

    Where the model's choice after a prefix is the text's own next token, it goes on as it does after the prefix that
    is longer by that token. So a continuation is the text up to the next miss, and only what follows misses is kept.

    Attributes:
        tokens: int, shape (T,): the text.
        tails: length of a prefix after which the model errs -> its continuation to length T, shape (T - length,).
        hits: bool, shape (T-1,): hits[t] says that the first choice after tokens 0..t is token t+1.
        prefix_tokens: tokens given before the rest must be recited; 1 or more.
        scored_from: index of the first token whose prediction counts; 1 or more.
    """

    tokens: np.ndarray
    tails: dict[int, np.ndarray]
    hits: np.ndarray
    prefix_tokens: int
    scored_from: int

    def after(self, start: int) -> np.ndarray:
        """The greedy continuation of the first `start` tokens to the length of the text, shape (T - start,)."""
        miss = next_miss(self.hits, start)
        return self.tokens[start:] if miss is None else np.concatenate((self.tokens[start:miss], self.tails[miss]))


def next_miss(hits: np.ndarray, start: int) -> int | None:
    """The shortest prefix of at least `start` tokens after which the first choice is not the text's next token."""
    wrong = ~hits[start - 1 :]
    return start + int(wrong.argmax()) if wrong.any() else None


def el_starts(length: int, prefix_tokens: int, scored_from: int) -> range:
    """The prefix lengths that extraction likelihood continues: those that leave n tokens or more, none in a prompt."""
    return range(scored_from, length - NGRAM + 1)


def prefix_start(length: int, prefix_tokens: int, scored_from: int) -> range:
    """The one prefix, of at least a token, where something follows it."""
    return range(max(prefix_tokens, 1), min(max(prefix_tokens, 1) + 1, length))


def extraction_likelihood(continuations: Continuations) -> float:
    """EL_10: how much of the text's rest is in the model's continuation, mean over every prefix (Jang et al., 2022).

    For a prefix of t tokens: the continuation's 10-grams, with repeats, that are among the 10-grams of the true rest,
    over the number of these, T - t - 9. The mean is over t = 1 … T - 10; after a prompt, over the prefixes that hold
    the whole prompt, because prompt tokens are no targets. Says nothing about T <= 10 (after a prompt: fewer than 10
    tokens).
    """
    tokens = continuations.tokens
    starts = el_starts(len(tokens), continuations.prefix_tokens, continuations.scored_from)
    if not starts:
        raise NotScorableError(f"{len(tokens)} tokens, {continuations.scored_from + NGRAM} needed")
    last = {gram: place for place, gram in enumerate(_ngrams(tokens))}  # where an n-gram begins for the last time
    shares = []
    first, miss = starts[0], starts[0] - 1
    for start in starts:
        if start > miss:  # prefixes up to the same miss have continuations with the same end
            first, miss = start, next_miss(continuations.hits, start) or len(tokens)
            found = np.array([last.get(gram, -1) for gram in _ngrams(continuations.after(start))])
        rest = len(tokens) - start - NGRAM + 1
        shares.append(np.count_nonzero(found[start - first :] >= start) / rest)
    return float(np.mean(shares))


def _ngrams(tokens: np.ndarray) -> list[bytes]:
    """All n-grams in order, each as its bytes: exact, and quick to look up."""
    raw, size = tokens.astype(np.int64).tobytes(), 8
    return [raw[size * i : size * (i + NGRAM)] for i in range(len(tokens) - NGRAM + 1)]


def rouge_l(written: Sequence[int], true: Sequence[int]) -> float:
    """ROUGE-L (F1 of the longest common subsequence), 0 to 1, identical 1. Library: rouge-score."""
    return float(_rouge().score(_words(true), _words(written))["rougeL"].fmeasure)


def bleu(written: Sequence[int], true: Sequence[int]) -> float:
    """Sentence BLEU to 4-grams, 0 to 1, identical 1. Library: sacrebleu.

    Texts under 4 tokens are judged by the orders they have (`effective_order`), orders without a match are smoothed
    exponentially; both are sacrebleu's own way with single sentences.
    """
    return float(min(1.0, _bleu().sentence_score(_words(written), [_words(true)]).score / 100))


def edit_similarity(written: Sequence[int], true: Sequence[int]) -> float:
    """1 - Levenshtein distance / length of the longer, 0 to 1, identical 1. Library: rapidfuzz."""
    from rapidfuzz.distance import Levenshtein

    return float(Levenshtein.normalized_similarity(list(written), list(true)))


def longest_common_substring(written: Sequence[int], true: Sequence[int]) -> float:
    """Most consecutive tokens, anywhere in the one, that are somewhere in the other; identical: all. Library: difflib.

    Unlike the longest verbatim run it also finds what is recited at another place.
    """
    return float(difflib.SequenceMatcher(None, list(written), list(true), autojunk=False).find_longest_match().size)


def _words(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


class _Spaces:
    """rouge-score's tokenizer interface; its default one throws away whatever is not a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Spaces())


@cache
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="none", effective_order=True)


def _after_prefix(compare: Callable[[Sequence[int], Sequence[int]], float]) -> Callable[[Continuations], float]:
    def measure(continuations: Continuations) -> float:
        starts = prefix_start(len(continuations.tokens), continuations.prefix_tokens, continuations.scored_from)
        if not starts:
            raise NotScorableError("nothing after the prefix")
        return compare(continuations.after(starts[0]).tolist(), continuations.tokens[starts[0] :].tolist())

    return measure


@dataclass(frozen=True)
class GeneratedMetric:
    """One number a sequence, from continuations.

    Attributes:
        function: Continuations -> float; raises NotScorableError with the reason where it says nothing.
        starts: (T, prefix_tokens, scored_from) -> lengths of the prefixes to be continued.
        lower: the least it can be.
        upper: the most it can be.
        means: one line for tables and reports.
        formula: its definition, in the signs that docs.py explains.
        source: who defined it.
        cost: what it costs for a batch.
        memorized: which way it goes with memorization.
    """

    function: Callable[[Continuations], float]
    starts: Callable[[int, int, int], range]
    lower: float
    upper: float
    means: str
    formula: str
    source: str
    cost: str = "1 forward, 1 continuation"
    memorized: Literal["high", "low"] = "high"


GENERATED_METRICS: dict[str, GeneratedMetric] = {
    "extraction_likelihood": GeneratedMetric(
        extraction_likelihood, el_starts, 0, 1,
        "EL_10: overlap of the greedy continuations of all prefixes with the rest of the text",
        "mean over t ≤ T-10 of overlap_10(f(x_1 … x_t), x_{t+1} … x_T)", "Jang et al., 2022, arXiv:2210.01504",
        "1 forward, a continuation a miss",
    ),
    "rouge_l": GeneratedMetric(
        _after_prefix(rouge_l), prefix_start, 0, 1,
        "ROUGE-L of the prefix's greedy continuation, on tokens", "F1 of the longest common subsequence",
        "Lin, 2004; library rouge-score",
    ),
    "bleu": GeneratedMetric(
        _after_prefix(bleu), prefix_start, 0, 1,
        "BLEU of the prefix's greedy continuation, on tokens", "sentence BLEU-4, effective order",
        "Papineni et al., 2002; library sacrebleu",
    ),
    "edit_similarity": GeneratedMetric(
        _after_prefix(edit_similarity), prefix_start, 0, 1,
        "likeness of the prefix's greedy continuation to the rest, on tokens",
        "1 - Levenshtein distance / longer length", "library rapidfuzz",
    ),
    "longest_common_substring": GeneratedMetric(
        _after_prefix(longest_common_substring), prefix_start, 0, float("inf"),
        "most consecutive tokens of the greedy continuation that are somewhere in the rest of the text",
        "longest common substring of f(x_1 … x_P) and x_{P+1} … x_T", "ours",
    ),
}  # fmt: skip
