"""Opening the tokenizer of a folder. What it does with text is in alignment.py and lookup.py."""

from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import InputError

if TYPE_CHECKING:
    from transformers import BertTokenizer


def load_tokenizer(folder: Path | str) -> "BertTokenizer":
    """transformers' BertTokenizer of a local folder.

    Raises:
        InputError: no vocabulary there. Without this check transformers would silently make one of 5 tokens.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise InputError(f"{folder}: no tokenizer there; a folder with vocab.txt or tokenizer.json is needed")
    from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(str(folder))
