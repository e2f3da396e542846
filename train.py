"""`python train.py RECIPE` is `distill train RECIPE`; with MiniRBT's flags it runs the one stage they describe."""

import sys

from distill.cli import guard, main
from distill.minirbt_flags import looks_like_minirbt, run_minirbt_flags

if __name__ == "__main__":
    if looks_like_minirbt(sys.argv[1:]):
        flags = [argument for argument in sys.argv[1:] if argument != "--debug"]
        guard(lambda: run_minirbt_flags(flags), debug="--debug" in sys.argv)
    else:
        main(["train", *sys.argv[1:]])
