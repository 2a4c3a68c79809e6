"""Ruff and mypy as tests, so that `pytest` alone says whether the code is as it should be."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("words", ["ruff check", "ruff format --check", "mypy"])
def test_tool_is_content(words: str) -> None:
    done = subprocess.run([sys.executable, "-m", *words.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_are_short() -> None:
    files = [file for folder in ("loractl", "plugins") for file in (ROOT / folder).rglob("*.py")]
    long = {str(file): count for file in files if (count := len(file.read_text(encoding="utf-8").splitlines())) > 300}
    assert files
    assert long == {}


def test_ci_runs_the_command_of_the_readme() -> None:
    """.ci/run reads the README's test command; here, that there is exactly one to read."""
    pattern = r'^pip install .*"\.\[dev\]" && pytest.*$'
    assert len(re.findall(pattern, (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)) == 1
    assert "README.md" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_pins_name_every_direct_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    names = {re.split(r"[<>=\[;]", each)[0].lower() for each in asked} - {"loractl"}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert names <= set(re.findall(r"^([a-z0-9-]+)==[0-9][0-9.]*$", pins, re.MULTILINE))
