"""Every test of the command line has a folder of its own, with a job in it, and the toy methods for plugins."""

from pathlib import Path

import pytest

import loractl.cli
from tests import toy
from tests.cli.calling import JOB


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tests' current folder, with a job in it and the toy methods installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loractl.cli, "load_plugins", toy.plugins)
    (tmp_path / "job.toml").write_text(JOB, encoding="utf-8")
    return tmp_path
