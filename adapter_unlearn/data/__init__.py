"""Read texts or token ids as a Dataset of sequences, in memory, and compare sets by the n-grams that they share."""

from adapter_unlearn.data.overlap import bos_tokens, duplicates, overlaps
from adapter_unlearn.data.sequences import load_sequences
from adapter_unlearn.data.sets import Sets, digest

__all__ = ["Sets", "bos_tokens", "digest", "duplicates", "load_sequences", "overlaps"]
