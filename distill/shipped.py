"""Files of the repository's top level that commands look up by name, and docs/, whose pages messages name.

In a checkout they stand beside the package, in an installed wheel inside it, where setup.py puts them.
"""

from pathlib import Path

FOLDERS = ("distill_configs", "jsons")


def shipped(name: str | Path) -> Path:
    """Where the file or folder of that name is, as the repository has it."""
    package = Path(__file__).resolve().parent
    inside = package / "shipped_files"
    return (inside if inside.is_dir() else package.parent) / name


def or_shipped(path: str | Path) -> Path:
    """`path` as given, or the shipped file of that name if nothing is there."""
    path = Path(path)
    is_ours = not path.is_absolute() and path.parts[:1] and path.parts[0] in FOLDERS
    return shipped(path) if is_ours and not path.exists() and shipped(path).exists() else path
