"""Metrics of one sequence from its greedy continuations.

All of them compare token ids, never characters: libraries that compare words get token ids as words, so languages
without spaces are measured like any other. Decoding is raw argmax, without a generation config and through end tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from adapter_unlearn.metrics.continuations import Continuations, next_miss
from adapter_unlearn.metrics.predictions import NotScorableError

NGRAM = 10
"""The n of extraction likelihood, as in the paper's main results."""


def el_starts(length: int, prefix_tokens: int, scored_from: int) -> range:
    """Prefix lengths that extraction likelihood continues: n tokens or more are left, and the prompt is included."""
    return range(scored_from, length - NGRAM + 1)


def prefix_start(length: int, prefix_tokens: int, scored_from: int) -> range:
    """The length of the sequence's prefix, at least 1; empty where nothing follows it."""
    return range(max(prefix_tokens, 1), min(max(prefix_tokens, 1) + 1, length))


def extraction_likelihood(continuations: Continuations) -> float:
    """EL_10, extraction likelihood: n-gram overlap of continuation and text, mean over prefixes (Jang et al., 2022).

    For a prefix of t tokens, the number of the continuation's 10-grams, repeats included, that are among the 10-grams
    of the true rest is divided by the number of the latter, T - t - 9. The mean is over t = 1 … T - 10. With a prompt
    it is over the prefixes that include the whole prompt, because prompt tokens do not count.

    Raises:
        NotScorableError: T <= 10, or fewer than 10 tokens follow the prompt.
    """
    tokens = continuations.tokens
    starts = el_starts(len(tokens), continuations.prefix_tokens, continuations.scored_from)
    if not starts:
        raise NotScorableError(f"{len(tokens)} tokens, {continuations.scored_from + NGRAM} needed")
    last = {gram: place for place, gram in enumerate(_ngrams(tokens))}  # n-gram -> where it begins for the last time
    shares = []
    first, miss = starts[0], starts[0] - 1
    for start in starts:
        if start > miss:  # continuations of prefixes before the same miss end alike
            first, miss = start, next_miss(continuations.hits, start) or len(tokens)
            places = np.array([last.get(gram, -1) for gram in _ngrams(continuations.after(start))])
        rest = len(tokens) - start - NGRAM + 1
        shares.append(np.count_nonzero(places[start - first :] >= start) / rest)
    return float(np.mean(shares))


def _ngrams(tokens: np.ndarray) -> list[bytes]:
    """All n-grams in order, each as bytes, which are fast to look up."""
    raw, size = tokens.astype(np.int64).tobytes(), 8
    return [raw[size * i : size * (i + NGRAM)] for i in range(len(tokens) - NGRAM + 1)]


def rouge_l(continuation: Sequence[int], text: Sequence[int]) -> float:
    """ROUGE-L (F1 of the longest common subsequence), 0 to 1, identical 1. Library: rouge-score."""
    return float(_rouge().score(_words(text), _words(continuation))["rougeL"].fmeasure)


def bleu(continuation: Sequence[int], text: Sequence[int]) -> float:
    """Sentence BLEU to 4-grams, 0 to 1, identical 1. Library: sacrebleu.

    For fewer than 4 tokens only the orders that exist count (`effective_order`); orders without a match are smoothed
    exponentially. Both are sacrebleu's settings for single sentences.
    """
    return float(min(1.0, _bleu().sentence_score(_words(continuation), [_words(text)]).score / 100))


def edit_similarity(continuation: Sequence[int], text: Sequence[int]) -> float:
    """1 - Levenshtein distance / length of the longer, 0 to 1, identical 1. Library: rapidfuzz."""
    from rapidfuzz.distance import Levenshtein

    return float(Levenshtein.normalized_similarity(list(continuation), list(text)))


def longest_common_substring(continuation: Sequence[int], text: Sequence[int]) -> float:
    """Length of the longest run of tokens that is anywhere in both, in tokens. Library: difflib.

    Unlike the longest verbatim run, it finds text that is recited at another place.
    """
    return float(
        difflib.SequenceMatcher(None, list(continuation), list(text), autojunk=False).find_longest_match().size
    )


def _words(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


class _Spaces:
    """Tokenizer for rouge-score, whose default one removes everything but a-z and 0-9."""

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


def after_prefix(compare: Callable[[Sequence[int], Sequence[int]], float]) -> Callable[[Continuations], float]:
    """A metric that compares the continuation of the sequence's prefix with the true rest, both as token ids."""

    def measure(continuations: Continuations) -> float:
        starts = prefix_start(len(continuations.tokens), continuations.prefix_tokens, continuations.scored_from)
        if not starts:
            raise NotScorableError("nothing after the prefix")
        return compare(continuations.after(starts[0]).tolist(), continuations.tokens[starts[0] :].tolist())

    return measure
