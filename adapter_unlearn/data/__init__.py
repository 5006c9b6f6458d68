"""Texts or token ids from anywhere become one Dataset of sequences, in memory; sets are compared by shared n-grams."""

from adapter_unlearn.data.overlap import bos_tokens, duplicates, overlaps
from adapter_unlearn.data.sequences import load_sequences
from adapter_unlearn.data.sets import Sets

__all__ = ["Sets", "bos_tokens", "duplicates", "load_sequences", "overlaps"]
