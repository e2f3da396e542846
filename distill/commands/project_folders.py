"""MiniRBT's project structure: what run_chinese_ref.py and my_datasets.py do without arguments.

dataset/train and dataset/dev hold the text, pretrained_model_path/ltp the segmenter, pretrained_model_path/RoBERTa the
teacher with its vocabulary. References go below dataset/references, their list into dataset/data.json, packed data
into saves/data.
"""

import os
import sys
from pathlib import Path

from distill.errors import InputError

TEXT = {"train": Path("dataset/train"), "dev": Path("dataset/dev")}
SEGMENTER = Path("pretrained_model_path/ltp")
TOKENIZER = Path("pretrained_model_path/RoBERTa")
REFERENCES = Path("dataset/references")
DATA_JSON = Path("dataset/data.json")
PACKED = Path("saves/data")
MAX_SEQ_LENGTH = 512


def is_filled(folder: Path) -> bool:
    """Whether a user has put something into a folder, which comes with a README."""
    return folder.is_dir() and any(file.name != "README.md" for file in folder.iterdir())


def write_project_references() -> None:
    """Writes the references of dataset/train and dataset/dev and lists both in dataset/data.json.

    Raises:
        InputError: text, segmenter or tokenizer is not where the project structure has it.
    """
    from distill.corpus.prepare import prepare_references
    from distill.corpus.reference import reference_paths
    from distill.corpus.segment import check_segmenter
    from distill.corpus.text import expand_text

    for folder, what in (
        (SEGMENTER, "the LTP model (e.g. LTP/small or LTP/legacy)"),
        (TOKENIZER, "the teacher's vocab.txt"),
    ):
        if not is_filled(folder):
            raise InputError(
                f"{folder}: nothing there; put {what} there, or give arguments (python run_chinese_ref.py --help)"
            )
    if not _texts("train"):
        raise InputError(f"{TEXT['train']}: no text there; put your *.txt there, one passage a line (or *.jsonl)")
    check_segmenter(f"ltp:{SEGMENTER}")
    from distill.durable import write_json
    from distill.progress import show_progress

    listed: dict[str, dict[str, list[str]]] = {}
    for split, folder in TEXT.items():
        files = expand_text([folder]) if _texts(split) else []
        references = reference_paths(files, folder, REFERENCES / split)
        if files:
            prepare_references(
                [folder], output=REFERENCES / split, tokenizer=TOKENIZER, segmenter=f"ltp:{SEGMENTER}",
                processes=os.cpu_count() or 1, progress=show_progress, report=lambda line: print(line, file=sys.stderr),
            )  # fmt: skip
        listed[split] = {f"{split}_files": [str(file) for file in files],
                         f"{split}_ref_files": [str(file) for file in references]}  # fmt: skip
    write_json(DATA_JSON, listed)
    print(f"{REFERENCES}: references of {sum(len(_texts(split)) for split in TEXT)} file(s), listed in {DATA_JSON}")


def pack_arguments() -> list[str]:
    """The arguments with which `distill pack` packs what dataset/data.json lists: the teacher's vocabulary, 512 tokens.

    Raises:
        InputError: dataset/data.json is not there.
    """
    if not DATA_JSON.exists():
        raise InputError(f"{DATA_JSON}: not there; run python run_chinese_ref.py first, or give arguments (see --help)")
    return ["pack", "--data", str(DATA_JSON), "--tokenizer", str(TOKENIZER), "--max-seq-length", str(MAX_SEQ_LENGTH),
            "--output", str(PACKED)]  # fmt: skip


def _texts(split: str) -> list[Path]:
    from distill.corpus.text import texts_below

    return texts_below(TEXT[split]) if TEXT[split].is_dir() else []
