"""A teacher assistant's starting weights as a model folder: some layers of the teacher, its embeddings and its head.

    python scripts/init_checkpoint_TA.py --teacher pretrained_model_path/RoBERTa --output saves/rbt6-init

A recipe's `init_layers` does the same without this step; the folder serves MiniRBT's --init_checkpoint_S.
"""

import argparse
from pathlib import Path

from transformers import BertConfig

from distill.cli import guard
from distill.errors import InputError
from distill.modeling.initialise import check_layers, copy_layers
from distill.modeling.models import build_model, find_model, load_config, load_masked_lm, save_model


def main() -> None:
    parser = argparse.ArgumentParser(description="Teacher layers as a teacher assistant's starting weights.")
    parser.add_argument("--teacher", default="pretrained_model_path/RoBERTa", help="model folder or hub id")
    parser.add_argument("--layers", default="0,2,4,7,9,11", help="teacher layers to copy, counted from 0")
    parser.add_argument("--output", required=True, help="new model folder")
    arguments = parser.parse_args()
    try:
        layers = [int(layer) for layer in arguments.layers.split(",")]
    except ValueError:
        raise InputError(f"--layers: expected numbers like 0,2,4,7,9,11, found '{arguments.layers}'") from None
    output = Path(arguments.output)
    if output.exists():
        raise InputError(f"{output}: exists already; name a new folder")
    folder = find_model(arguments.teacher)
    original = load_config(folder)
    config = BertConfig(**{**original.to_dict(), "num_hidden_layers": len(layers)})
    check_layers(layers, original, config, where="--layers")
    teacher = load_masked_lm(folder)
    assistant = build_model(config, seed=0)
    copy_layers(teacher, assistant, layers)
    card = f"# Teacher assistant\n\nLayers {layers} of `{arguments.teacher}` with its embeddings and prediction head.\n"
    save_model(assistant, output, tokenizer=folder, card=card)
    print(f"{output}: {len(layers)} layers of {arguments.teacher}")


if __name__ == "__main__":
    guard(main)
