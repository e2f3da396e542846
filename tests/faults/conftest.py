"""The tiny chain of stages that these tests disturb."""

import contextlib

import pytest


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """A folder with the chain's recipe; it is the working folder."""
    from faults.chain import write_chain
    from faults.launcher import LONGER

    write_chain(tmp_path, LONGER, finetune=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """What a run of the chain leaves that nothing disturbs."""
    from faults.chain import result, write_chain
    from faults.launcher import LONGER, Run

    folder = tmp_path_factory.mktemp("undisturbed")
    write_chain(folder, LONGER, finetune=False)
    with contextlib.chdir(folder):
        code, output = Run(1).finish()
        assert code == 0, output
        return result()
