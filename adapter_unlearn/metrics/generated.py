"""Metrics of one sequence from its greedy continuations.

All compare token ids, never characters. The comparison libraries get token ids as words, so languages without spaces
are measured like any other. Raw argmax: no generation config, end token included.
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
"""The n of extraction likelihood: the paper's headline choice."""


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


def after_prefix(compare: Callable[[Sequence[int], Sequence[int]], float]) -> Callable[[Continuations], float]:
    """A metric that compares the prefix's continuation with the true rest, both as token ids."""

    def measure(continuations: Continuations) -> float:
        starts = prefix_start(len(continuations.tokens), continuations.prefix_tokens, continuations.scored_from)
        if not starts:
            raise NotScorableError("nothing after the prefix")
        return compare(continuations.after(starts[0]).tolist(), continuations.tokens[starts[0] :].tolist())

    return measure
