"""Model folders: find, load, build and save `BertForMaskedLM` models and their tokenizers.

A model folder is Hugging Face's: config.json, model.safetensors or pytorch_model.bin, vocab.txt. Folders are data:
nothing in them is executed.
"""

import contextlib
import functools
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import BertConfig, BertForMaskedLM, BertTokenizer
from transformers.utils import logging as transformers_logging

from distill.corpus.tokenizing import forgets_case, listed_tokens, save_tokenizer
from distill.corpus.tokenizing import load_tokenizer as load_bert_tokenizer
from distill.corpus.vocabulary import SPECIAL_TOKENS
from distill.durable import whole_folder
from distill.errors import InputError, first_line
from distill.modeling.config import CONFIG_FILES, load_config
from distill.modeling.weight_files import (
    UNREADABLE,
    WEIGHT_FILES,
    check_shapes,
    has_weights,
)
from distill.recipe_types import is_hub_id

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
CLUE_TOKENS, GOOGLE_ROWS = 8021, 21128
"""clue/roberta_chinese_clue_large has rows for Google's vocabulary and uses the first 8,021 of them: rows behind them,
and only these, are left out when the folder is opened. In other folders such a difference is a wrong vocab.txt."""


def find_model(name: str, *, weights: bool = True) -> Path:
    """The local folder of a model: `name` itself if it is one, else the hub's, downloaded once (HF_ENDPOINT counts).

    Raises:
        InputError: no such folder or hub id, or a folder without config, tokenizer or weights.
    """
    folder = Path(name)
    if folder.is_dir():
        if below := _models_below(folder):
            raise InputError(f"{name}: not a model folder itself; there are below it: {', '.join(below)}; name one")
        return folder
    if folder.exists():
        raise InputError(f"{name}: found a file; name the folder with config.json, vocab.txt and the weights")
    if not is_hub_id(name):
        told = _models_beside(folder) or "; name a folder with config.json, vocab.txt and weights, or a hub id"
        raise InputError(f"{name}: no such model folder{told}")
    return _fetch(name, weights)


def _models_beside(folder: Path) -> str:
    """`; there are: ...` for the model folders where `folder` was looked for."""
    beside = sorted(path.parent.name for path in folder.parent.glob("*/config.json"))
    return f"; there are in {folder.parent}: {', '.join(beside[:8])}" if beside else ""


def _models_below(folder: Path) -> list[str]:
    """At most eight models in a run's or a fine-tuned model's folder; none if it is a model or tokenizer itself."""
    if any((folder / name).exists() for name in (*CONFIG_FILES, *TOKENIZER_FILES[:2])) or has_weights(folder):
        return []
    below = sorted(str(path.parent) for pattern in ("*", "models/*") for path in folder.glob(f"{pattern}/config.json"))
    return below[:8]


def _fetch(name: str, weights: bool) -> Path:
    """A hub model's folder: the copy fetched before if it is complete, else a new one, in one weight format."""
    patterns = ["config.json", *TOKENIZER_FILES]
    with contextlib.suppress(LocalEntryNotFoundError, ValueError):
        folder = Path(snapshot_download(name, local_files_only=True))
        if (folder / "config.json").exists() and (has_weights(folder) or not weights):
            return folder
    try:
        if weights:
            files = {file.rfilename for file in HfApi().model_info(name, timeout=20).siblings or []}
            single = next((file for file in WEIGHT_FILES if file in files), None)
            # an index and the files it lists have one beginning and share the ending
            kind = "pytorch_model*.bin*" if single and single.startswith("pytorch_model") else "*.safetensors*"
            patterns += [single] if single and not single.endswith(".json") else [kind]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's client lets through the errors of whichever HTTP library it uses
        raise InputError(
            f"{name}: no such folder, and it could not be fetched from the hub ({first_line(error)}); check the name, "
            f"go online, set HF_ENDPOINT to a mirror, or put the files into a folder and name that; see docs/faq.md"
        ) from None


def load_tokenizer(folder: str | Path) -> BertTokenizer:
    """The BERT WordPiece tokenizer of a folder; InputError if it has no vocabulary or lacks a special token."""
    tokenizer = load_bert_tokenizer(folder)
    listed = listed_tokens(Path(folder))  # the tokenizer itself puts special tokens that are missing at the end
    for token in SPECIAL_TOKENS:
        if token not in listed:
            raise InputError(f"{folder}: the vocabulary has no {token}; take the model's own tokenizer files")
    return tokenizer


def load_masked_lm(folder: str | Path, *, need_head: bool = True) -> BertForMaskedLM:
    """The model of a folder in float32, complete: weights that are missing are an error, never made up.

    Args:
        need_head: whether the prediction head is used; a folder of an encoder alone is refused then.
    Raises:
        InputError: no weights, missing or misshapen weights, weights that are not finite, no prediction head.
    """
    folder = Path(folder)
    config = load_config(folder)
    check_shapes(folder, config)
    try:
        with quiet_transformers():
            loaded: Any = BertForMaskedLM.from_pretrained(
                folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True,
                attn_implementation="sdpa", weights_only=True,
            )  # fmt: skip
    except UNREADABLE as error:
        raise InputError(f"{folder}: weights cannot be loaded ({first_line(error)})") from None
    model, info = loaded
    check_finite(model, folder)
    if (rows := used_rows(folder, config)) != config.vocab_size:
        model.resize_token_embeddings(rows)
    missing = sorted(info["missing_keys"])
    if missing and need_head:
        raise InputError(
            f"{folder}: no masked-language-model head ({len(missing)} weights missing, e.g. {missing[0]}), "
            f"but its logits are used here; take a model saved with its head, or kd_weight 0; see docs/faq.md"
        )
    return model


def used_rows(folder: Path, config: BertConfig) -> int:
    """Vocabulary rows of a folder's model once it is loaded: the config's, but for CLUE's, which has too many."""
    has_tokens = any((folder / name).exists() for name in TOKENIZER_FILES[:2])
    if config.vocab_size != GOOGLE_ROWS or not has_tokens or len(listed_tokens(folder)) != CLUE_TOKENS:
        return config.vocab_size
    _warn_of_rows(folder)
    return CLUE_TOKENS


@functools.cache
def _warn_of_rows(folder: Path) -> None:
    logger.warning("%s: %s vocabulary rows for CLUE's %s tokens; the others are left out", folder, f"{GOOGLE_ROWS:,}",
                   f"{CLUE_TOKENS:,}")  # fmt: skip


def check_finite(model: torch.nn.Module, folder: Path) -> None:
    """InputError if a weight that was loaded from `folder` is no number."""
    broken = next((name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()), None)
    if broken:
        raise InputError(f"{folder}: {broken} holds NaN or infinity; the model is broken, take another one")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and reports of transformers; what matters in them we say ourselves."""
    verbosity, progress_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress_bar:
            transformers_logging.enable_progress_bar()


def build_model(config: BertConfig, *, seed: int, attention: str = "sdpa") -> BertForMaskedLM:
    """A new model with random weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForMaskedLM._from_config(BertConfig(**config.to_diff_dict()), attn_implementation=attention)


def check_vocabulary(tokenizer: BertTokenizer, config: BertConfig, *, tokens_from: str, model: str) -> None:
    """InputError unless the model has exactly one row for every token."""
    if len(tokenizer) != config.vocab_size:
        raise InputError(
            f"{model}: the model has {config.vocab_size} vocabulary rows, but the tokenizer of {tokens_from} has "
            f"{len(tokenizer)} tokens; they must be equal (`distill vocab check` says what is wrong with a model)"
        )


def check_same_tokens(a: BertTokenizer, b: BertTokenizer, *, a_name: str, b_name: str) -> None:
    """InputError unless both tokenizers give every token the same id."""
    ours, theirs = a.get_vocab(), b.get_vocab()
    if ours == theirs:
        return
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    raise InputError(
        f"{a_name} and {b_name} have different vocabularies ({len(ours)} and {len(theirs)} tokens, {len(differing)} "
        f"differ, e.g. '{differing[0]}'); teacher, student and data must share one; see docs/faq.md"
    )


def save_model(model: BertForMaskedLM, folder: Path, *, tokenizer: Path, card: str) -> None:
    """Writes a complete model folder that opens with transformers alone; whole or absent.

    Args:
        tokenizer: folder whose tokenizer files are copied.
        card: text of README.md.
    Raises:
        OSError: it could not be written; a folder that was there stays as it was.
    """
    try:
        with whole_folder(folder) as partial:
            with warnings.catch_warnings(), quiet_transformers():
                warnings.simplefilter("ignore")
                model.save_pretrained(partial)
            copy_tokenizer(tokenizer, partial)
            (partial / "README.md").write_text(card, encoding="utf-8")
    except SafetensorError as error:  # what a full disk looks like to safetensors
        raise OSError(f"{folder}: {first_line(error)}") from None


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer of a folder, or a vocab.txt; settings that are missing or forget case are written."""
    if source.is_file():
        shutil.copyfile(source, target / "vocab.txt")
        source = target
    for name in TOKENIZER_FILES if source != target else ():
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    if not (source / "tokenizer_config.json").exists() or forgets_case(source):
        save_tokenizer(load_tokenizer(source), target)
