"""The command line: every command, thin. Heavy modules are imported inside the command that needs them."""

import errno
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from distill import __version__
from distill.commands.compare import add_compare_command
from distill.commands.data import add_data_commands
from distill.commands.doctor import add_doctor_command
from distill.commands.export import add_export_command
from distill.commands.latency import add_latency_command
from distill.commands.models import add_model_commands
from distill.commands.report import add_report_commands
from distill.commands.segmenter import add_segmenter_commands
from distill.commands.tasks import add_task_commands
from distill.commands.train import add_train_command
from distill.commands.vocabulary import vocab_app
from distill.errors import InputError
from distill.launch.interruption import Terminated, signals_raise

PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EROFS)
"""What the system says to a path that the user named wrongly."""
MOST_CHARS = 1000
"""Of an error message; a name may be a megabyte long."""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
app = typer.Typer(
    help="Small, fast Chinese BERT encoders by staged distillation. With --debug an error shows its traceback.",
    add_completion=True, pretty_exceptions_enable=False, context_settings=SETTINGS, rich_markup_mode=None,
)  # fmt: skip
segmenter_app = typer.Typer(help="Train and score word segmenters.", context_settings=SETTINGS)
add_segmenter_commands(segmenter_app)
app.add_typer(segmenter_app, name="segmenter")
app.add_typer(vocab_app, name="vocab")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"distill {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options of no command."""


add_data_commands(app)
add_train_command(app)
add_compare_command(app)
add_task_commands(app)
add_latency_command(app)
add_model_commands(app)
add_report_commands(app)
add_export_command(app)
add_doctor_command(app)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; an InputError becomes one line and exit code 2, unless --debug asks for the traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [_with_dashes(argument) for argument in arguments if argument != "--debug"] or ["--help"]
    guard(lambda: app(arguments, prog_name="distill", standalone_mode=False, obj=arguments), debug)


def _with_dashes(argument: str) -> str:
    """`--max_seq_length=32` as `--max-seq-length=32`: long options take both."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def guard(command: Callable[[], Any], debug: bool = False) -> None:
    """Runs `command` and leaves the process with its exit code."""
    try:
        with signals_raise():
            code = command()
    except InputError as error:
        _leave(f"error: {error}", 2, debug)
    except typer.Exit as done:
        code = done.exit_code
    except KeyboardInterrupt:
        _leave("stopped", 130, debug)
    except Terminated as terminated:
        _leave("stopped; the same command goes on", 128 + terminated.signum, debug)
    except Exception as error:
        _leave_for(error, debug)
    if code == 130:  # typer's answer to Ctrl-C
        _leave("stopped", 130, debug=False)
    sys.exit(code if isinstance(code, int) else 0)


def _leave_for(error: Exception, debug: bool) -> None:
    """Exit codes of the errors that come from libraries and stages."""
    if hasattr(error, "format_message"):  # a mistake on the command line, as typer or click tells it
        context = getattr(error, "ctx", None)
        see = f"; see `{context.command_path} --help`" if context else ""
        told = " ".join(error.format_message().split())  # choices stand on lines of their own, behind tabs
        _leave(f"error: command line: {told.rstrip('.')}{see}", 2, debug)
    if isinstance(error, typer.Abort):
        _leave("stopped", 130, debug)
    if type(error).__module__ == "distill.launch.processes":
        signum = getattr(error, "signum", 0)
        _leave(f"{'stopped' if signum else 'error'}: {error}", 128 + signum if signum else 1, debug)
    if isinstance(error, OSError) and error.errno in PATH_ERRORS and error.filename is not None:
        _leave(f"error: {error.filename}: {error.strerror}; check the path and its permissions", 2, debug)
    if debug or not isinstance(error, (OSError, MemoryError)):
        raise error
    _leave(f"error: {type(error).__name__}: {error}", 1, debug)


def _leave(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    print(one_line(message), file=sys.stderr)
    sys.exit(code)


def one_line(message: str) -> str:
    """A message that is one line whatever names went into it: no control characters, at most MOST_CHARS long."""
    line = "".join(c if c.isprintable() else " " if c == "\n" else repr(c)[1:-1] for c in message[:MOST_CHARS])
    return line if len(message) <= MOST_CHARS else f"{line}..."
