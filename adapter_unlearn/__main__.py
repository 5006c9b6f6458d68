"""`python -m adapter_unlearn`, also under `accelerate launch -m`."""

from adapter_unlearn.cli import entry_point

if __name__ == "__main__":
    entry_point()
