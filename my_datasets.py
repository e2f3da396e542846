"""`python my_datasets.py` packs what dataset/data.json lists, ahead of training; arguments make it `distill pack`."""

import sys

from distill.cli import guard, main
from distill.commands.project_folders import pack_arguments

if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(["pack", *sys.argv[1:]])
    else:
        guard(lambda: main(pack_arguments()))
