"""`distill report`: asks the models what only they can tell, then release/ makes the page from the run's files."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from distill.errors import InputError
from distill.examining import examine_models
from distill.release.card import refresh_cards
from distill.release.pictures import draw_curves
from distill.release.report import write_report
from distill.release.run_folder import open_run

logger = logging.getLogger(__name__)


def report_run(folder: Path) -> tuple[Path, list[str]]:
    """Writes the page, the pictures and the models' cards of a run.

    Returns: the page, and what could not be read, one line each.
    Raises:
        InputError: no folder of a run.
        OSError: the disk takes no page.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run = open_run(folder)
    for part in (examine_models, draw_curves, refresh_cards):
        with run.noting():
            part(run)
    return write_report(run), list(dict.fromkeys(run.problems))


def report_at_end(folder: Path, show: Callable[[str], None]) -> None:
    """Writes the report of a run that has ended well, whose exit code it does not change."""
    try:
        page, problems = report_run(folder)
    except Exception as error:  # a run of days does not fail by its report, whatever a library does
        logger.warning("the report failed", exc_info=not isinstance(error, (InputError, OSError)))
        show(f"report: not written ({error}); `distill report {folder}` tries again")
        return
    for problem in problems:
        show(f"report: {problem}")
    show(f"report: {page}")
