"""The command line as one of several processes that accelerate launch or torchrun has started."""

from dataclasses import replace
from pathlib import Path

import pytest

import loractl.cli
from tests import toy
from tests.cli.calling import call


class SharedSpec(toy.ToySpec):
    def require_shareable(self, processes: int) -> None:
        """Any number will do."""


def launch(patch: pytest.MonkeyPatch, index: int, size: int = 2) -> None:
    for name, value in {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": size}.items():
        patch.setenv(name, str(value))


@pytest.mark.parametrize("index", [0, 1])
def test_what_one_process_does_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    launch(monkeypatch, index)
    code, _, err = call(capsys, "run", "job.toml")
    assert code == 2 and "toy is the work of one process, not of 2" in err
    assert not (here / "out").exists()


@pytest.mark.parametrize(("index", "told"), [(0, True), (1, False)])
def test_the_first_alone_tells_and_records(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, index: int, told: bool
) -> None:
    plugins = toy.plugins()
    shared = replace(plugins.methods["toy"], spec=SharedSpec)
    monkeypatch.setattr(loractl.cli, "load_plugins", lambda: replace(plugins, methods={"toy": shared}))
    launch(monkeypatch, index)
    code, out, err = call(capsys, "--json", "run", "job.toml")
    assert code == 0 and ("finished" in out) is told
    assert (here / "out/job/toy.txt").exists() and (here / "out/job/job.toml").exists() is told
    assert told or "toy" not in err


def test_one_process_is_none_of_several(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, 0, size=1)
    assert call(capsys, "--quiet", "run", "job.toml")[0] == 0
