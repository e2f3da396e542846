"""Neural LTP models: loading them, on the CPU or on every GPU, and their speed.

Unlike `ltp.LTP(path)` this checks that the weights are the config's, and that nothing but LTP's own code is called.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from distill.corpus.characters import batches, windows
from distill.corpus.ltp_models import Cut, ModelFolder, targets
from distill.errors import InputError, first_line

NEURAL_CHARS = 500  # neural LTP reads 510 word pieces; a piece has at least one character, NFD set aside
NEURAL_BATCH, NEURAL_BATCH_CHARS = 128, 16_384


def neural_windows(run: str) -> Iterator[str]:
    """A run in pieces that neural LTP reads whole."""
    # Tokenizers that strip accents decompose characters first: one Hangul syllable can become three word pieces.
    grows = len(run) != len(unicodedata.normalize("NFD", run))
    return windows(run, NEURAL_CHARS // 3 if grows else NEURAL_CHARS)


def devices() -> list[str]:
    """Where neural LTP works: every GPU that torch sees, else the CPU."""
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]


def load_neural(folder: ModelFolder, on: Sequence[str] | None = None) -> Cut:
    """A neural LTP model over windows of text, one copy a device, each taking a batch when it is done with the last."""
    models: SimpleQueue[Any] = SimpleQueue()
    on = on or devices()
    for device in on:
        model = _build_neural(folder)
        models.put(model.to(device) if device != "cpu" else model)

    def cut_batch(batch: list[str]) -> list[list[str]]:
        model = models.get()
        try:
            return model.pipeline(batch, tasks=["cws"]).cws
        finally:
            models.put(model)

    def cut(pieces: list[str]) -> list[list[str]]:
        words: list[list[str]] = [[] for _ in pieces]
        # The longest first, so that a GPU with too little memory says so at once and none waits long for the last.
        order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i]))
        work = batches((pieces[i] for i in order), most=NEURAL_BATCH, chars=NEURAL_BATCH_CHARS)
        with ThreadPoolExecutor(len(on)) as pool:  # torch lets go of the interpreter while a GPU works
            found = (words_of_piece for batch in pool.map(cut_batch, work) for words_of_piece in batch)
            for i, piece_words in zip(order, found, strict=True):
                words[i] = _with_lost_start(pieces[i], piece_words)
        return words

    return cut


def _with_lost_start(piece: str, words: list[str]) -> list[str]:
    """LTP loses characters at a piece's start that its tokenizer drops (combining marks): they go to the first word."""
    lost = len(piece) - sum(map(len, words))
    if not lost:
        return words
    return [piece[:lost] + words[0], *words[1:]] if words else [piece]


def _build_neural(folder: ModelFolder) -> Any:
    from ltp.nerual import LTP

    for target in targets(folder.config["model"]):
        _check_target(folder.path, target)
    try:
        model = LTP(config=folder.config)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        reason = first_line(error)
        raise InputError(f"{folder.path / 'config.json'}: no model that ltp can build ({reason})") from error
    state = _read_weights(folder.files[1])
    expected = model.model.state_dict().keys()
    # The key position_ids was saved by transformers before 4.31; heads other than cws are not used here.
    missing = sorted(key for key in expected - state.keys() if key.startswith(("backbone.", "task_heads.cws.")))
    if missing or "task_heads.cws" not in {".".join(key.split(".")[:2]) for key in expected}:
        what = f"{len(missing)} weights such as {missing[0]!r}" if missing else "the word segmentation head"
        raise InputError(f"{folder.files[1]}: lacks {what}; it does not belong to {folder.path / 'config.json'}")
    try:
        model.model.load_state_dict({key: state[key] for key in expected & state.keys()}, strict=False)
    except RuntimeError as error:
        raise InputError(f"{folder.files[1]}: weights of other shapes than config.json says ({error})") from error
    tokenizer = _load_tokenizer(folder.path, model.model.backbone.config)
    vocabulary, embeddings = len(tokenizer), model.model.backbone.config.vocab_size
    # Embeddings padded up to a multiple of 64 or 128 are usual; anything else is another model's vocabulary.
    if not 0 <= embeddings - vocabulary < min(128, embeddings / 10):
        raise InputError(
            f"{folder.path}: {vocabulary} tokens in the vocabulary, {embeddings} in the model; fetch it again"
        )
    if not hasattr(tokenizer, "batch_encode_plus"):
        tokenizer.batch_encode_plus = tokenizer.__call__  # gone in transformers 5, still called by LTP 4.2.14
    model.tokenizer = tokenizer
    return model.eval()


def _load_tokenizer(folder: Path, config: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        # Told nothing about code in the folder, transformers would ask at the terminal.
        return AutoTokenizer.from_pretrained(str(folder), config=config, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # what its parser, written in Rust, raises has no other class
        reason = first_line(error)
        raise InputError(f"{folder}: its tokenizer files cannot be used ({reason}); download them again") from None


def _check_target(path: Path, target: str) -> None:
    """Raises InputError unless `target` is a module class of ltp_core itself, or its backbone loader.

    Without it `ltp_core.models.ltp_model.torch.hub.load`, say, would be called with arguments from config.json.
    """
    from ltp_core.models.utils import load_transformers
    from ltp_core.models.utils.instantiate import find_callable
    from torch import nn

    try:
        found = find_callable(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{path / 'config.json'}: {target!r} is not in the ltp that is installed") from error
    own = str(getattr(found, "__module__", "")).startswith("ltp_core.models.")
    is_layer = isinstance(found, type) and issubclass(found, nn.Module)
    if not own or not (is_layer or found is load_transformers):
        raise InputError(f"{path / 'config.json'}: wants to run {target!r}, no part of a model; do not trust it")


def _read_weights(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    import pickle

    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = first_line(error, None)
        raise InputError(f"{file}: not a plain state_dict of tensors ({reason}); download it again") from error
    if not isinstance(state, dict):
        raise InputError(f"{file}: holds {type(state).__name__}, not a state_dict; download it again")
    return state
