"""Options of every command: with - or _, and a wrong one is no traceback."""

import pytest

from distill.cli import main


def leave(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize("option", ["--max-seq-length", "--max_seq_length"])
def test_options_take_dashes_and_underscores(capsys, option):
    code, error = leave(capsys, "pack", option, "many")
    assert code == 2 and "Invalid value for '--max-seq-length'" in error


@pytest.mark.parametrize("command", [["models"], ["vocab", "check"], ["segmenter", "train"]])
def test_unknown_option_is_a_usage_error(capsys, command):
    code, error = leave(capsys, *command, "--bogus")
    assert code == 2 and "No such option: --bogus" in error


def test_missing_option_is_named(capsys):
    code, error = leave(capsys, "vocab", "train")
    assert code == 2 and "--text" in error
