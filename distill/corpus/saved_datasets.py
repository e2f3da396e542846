"""Text from the library `datasets`: folders that `save_to_disk` wrote, and datasets of the hub.

Both are Arrow files on disk, which formats.py reads without the library.
"""

import os
from pathlib import Path, PurePath

from distill.errors import InputError, first_line
from distill.json_file import read_object

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
    if description.is_file():
        splits = read_object(description, what="a dictionary of splits").get("splits")
        if not isinstance(splits, list) or not splits or not all(map(_is_below, splits)):
            raise _not_a_dataset(description)
        if len(splits) != 1:
            raise InputError(f"{folder}: a dataset of several splits; name one: {folder / splits[0]}")
        folder = folder / splits[0]
    description = folder / "state.json"
    files = read_object(description, what="the state of a dataset").get("_data_files")
    if not isinstance(files, list) or not all(
        isinstance(file, dict) and _is_below(file.get("filename")) for file in files
    ):
        raise _not_a_dataset(description)
    found = [folder / file["filename"] for file in files]
    for file in found:
        if not os.path.isfile(file):
            raise InputError(f"{description}: lists {file.name}, which is not there; save the dataset again")
    return found


def _is_below(name: object) -> bool:
    """Whether a name in a description stays in the described folder."""
    return (
        isinstance(name, str)
        and bool(name)
        and "\0" not in name
        and not PurePath(name).is_absolute()
        and ".." not in PurePath(name).parts
    )


def _not_a_dataset(description: Path) -> InputError:
    return InputError(f"{description}: not what `datasets` writes; save the dataset again")


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
        reason = first_line(error, None)
        raise InputError(
            f"{name}: cannot be loaded ({reason}); check the name (hf:OWNER/NAME[:CONFIG[:SPLIT]]) and the network, "
            "set HF_ENDPOINT to a mirror, or give a folder that save_to_disk wrote"
        ) from error
    return sorted({Path(file["filename"]) for file in found.cache_files})
