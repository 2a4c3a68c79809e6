"""docs/training.md: every command in it is understood."""

import shlex
from pathlib import Path

import pytest

from loractl.cli import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
COMMANDS = [line for block in PAGE.split("```sh\n")[1:] for line in block.partition("```")[0].splitlines()]


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 8


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as left:
        main(shlex.split(command)[1:])
    assert left.value.code == 0, capsys.readouterr().err
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", ["dreambooth", "ti", "pti"])
def test_the_page_names_each_training_method(name: str) -> None:
    assert f"| `{name}` |" in PAGE
