"""Make a language model stop reciting given texts, by a removable LoRA adapter, and prove it sequence by sequence."""

__version__ = "0.1.0.dev0"
