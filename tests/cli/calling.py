"""Calls the command line in this process, and the job that the tests call it with."""

from dataclasses import replace
from typing import Any

import pytest

import loractl.cli
from loractl.cli import main
from tests import toy

JOB = 'method = "toy"\nmodel = "lab"\nsubject.prompt = "p"\ntrain.steps = 3\n'


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, out, err


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(*_: Any) -> Any:
        raise error

    plugins = toy.plugins()
    method = replace(plugins.methods["toy"], run=run)
    monkeypatch.setattr(loractl.cli, "load_plugins", lambda: replace(plugins, methods={"toy": method}))
