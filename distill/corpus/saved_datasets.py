"""Text from the library `datasets`: folders that `save_to_disk` wrote, and datasets of the hub.

Both are Arrow files on disk, which formats.py reads without the library.
"""

import json
from pathlib import Path

from distill.errors import InputError

HUB = "hf:"
DEFAULT_SPLIT = "train"


def is_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder, as a dataset or as a dictionary of splits."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def dataset_files(folder: Path) -> list[Path]:
    """The Arrow files of a saved dataset.

    Raises:
        InputError: several splits, or an unreadable description.
    """
    description = folder / "dataset_dict.json"
    try:
        if description.is_file():
            splits = json.loads(description.read_text("utf-8"))["splits"]
            if len(splits) != 1:
                raise InputError(f"{folder}: a dataset of several splits; name one: {folder / str(splits[0])}")
            return dataset_files(folder / str(splits[0]))
        description = folder / "state.json"
        return [folder / str(file["filename"]) for file in json.loads(description.read_text("utf-8"))["_data_files"]]
    except (OSError, KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
        raise InputError(f"{description}: not what `datasets` writes; save the dataset again") from error


def hub_files(name: str) -> list[Path]:
    """The Arrow files of `hf:OWNER/NAME[:CONFIG[:SPLIT]]` in the cache of `datasets`; downloaded if they are not there.

    Raises:
        InputError: no such dataset, config or split, or the hub cannot be reached.
    """
    import datasets

    location, _, rest = name.removeprefix(HUB).partition(":")
    config, _, split = rest.partition(":")
    if "[" in split:
        raise InputError(f"{name}: a split is read whole; name it without [...]")
    try:
        found = datasets.load_dataset(location, config or None, split=split or DEFAULT_SPLIT)
    except (OSError, ValueError, RuntimeError) as error:  # the hub's errors, and what its HTTP client raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{name}: cannot be loaded ({reason}); check the name (hf:OWNER/NAME[:CONFIG[:SPLIT]]) and the network, "
            "set HF_ENDPOINT to a mirror, or give a folder that save_to_disk wrote"
        ) from error
    return sorted({Path(file["filename"]) for file in found.cache_files})
