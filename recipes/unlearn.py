"""`adapter-unlearn unlearn` as a script, for `accelerate launch recipes/unlearn.py --config RECIPE.yaml`."""

import sys

from adapter_unlearn.cli import main

if __name__ == "__main__":
    sys.exit(main(["unlearn", *sys.argv[1:]]))
