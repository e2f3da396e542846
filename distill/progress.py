"""Progress bars of what takes long and trains nothing."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm


@contextlib.contextmanager
def show_progress(what: str, total: int, unit: str = "char") -> Iterator[Callable[[int], None]]:
    """A progress bar, in characters if nothing else is said."""
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=total, desc=what, unit=unit, unit_scale=True, mininterval=interval, delay=1) as bar:
        yield lambda done: bar.update(done) and None
