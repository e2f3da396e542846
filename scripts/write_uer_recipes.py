"""The pre-training recipes of UER's 24 Chinese RoBERTa miniatures, which differ in their architecture alone.

    python scripts/write_uer_recipes.py --output jsons/recipes/uer

Each is jsons/recipes/uer_medium.json with another name; `distill train RECIPE` trains it.
"""

import argparse
from pathlib import Path

from distill.cli import guard
from distill.durable import write_whole
from distill.modeling.architectures import LAYERS, WIDTHS, miniature

MEDIUM = Path(__file__).resolve().parent.parent / "jsons/recipes/uer_medium.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Recipes of UER's 24 miniatures.")
    parser.add_argument("--output", default="jsons/recipes/uer", help="folder for the 24 recipes")
    output = Path(parser.parse_args().output)
    medium = MEDIUM.read_text(encoding="utf-8")
    for name in (miniature(layers, width) for layers in LAYERS for width in WIDTHS):
        write_whole(output / f"{name}.json", medium.replace(miniature(8, 512), name))
    print(f"{output}: {len(LAYERS) * len(WIDTHS)} recipes")


if __name__ == "__main__":
    guard(main)
