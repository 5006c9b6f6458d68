"""Texts or token ids from anywhere become one Dataset of sequences, in memory; sets are compared by shared n-grams."""

from adapter_unlearn.data.overlap import duplicates, overlaps
from adapter_unlearn.data.sequences import load_sequences

__all__ = ["duplicates", "load_sequences", "overlaps"]
