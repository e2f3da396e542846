"""`python train.py RECIPE` is `distill train RECIPE`; with MiniRBT's flags it runs the one stage they describe."""

import sys

from distill.cli import guard, main
from distill.commands.minirbt_flags import looks_like_minirbt, read_minirbt_flags
from distill.commands.train import run_loaded_recipe

if __name__ == "__main__":
    if looks_like_minirbt(sys.argv[1:]):
        flags = [argument for argument in sys.argv[1:] if argument != "--debug"]
        guard(lambda: run_loaded_recipe(*read_minirbt_flags(flags), dry_run=False), debug="--debug" in sys.argv)
    else:
        main(["train", *sys.argv[1:]])
