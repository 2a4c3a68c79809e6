"""What the Weights & Biases listener asks of wandb, seen by a stand-in with wandb's own signatures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import loractl_wandb
import pytest
from loractl_wandb import WeightsAndBiases

from loractl.events import Finished, Numbers, Pictures, Started
from tests import toy

JOB = {"name": "rex", "seed": 5, "log": {"trackers": ["wandb"]}}


@dataclass
class Wandb:
    """The package and its run in one; `said` holds what was logged, step by step."""

    logged_in: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    said: list[tuple[int, Any]] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
    finished: bool = False

    def login(self, *, prompt: bool) -> bool:
        assert not prompt, "a run asks nothing"
        return self.logged_in

    def Settings(self, *, console: str) -> str:  # noqa: N802
        return console

    def Image(self, path: str) -> str:  # noqa: N802
        return f"picture {Path(path).name}"

    def init(self, **settings: Any) -> "Wandb":
        assert Path(settings["dir"]).is_dir()
        self.settings = settings
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        assert not self.finished
        self.said.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    package = Wandb()
    monkeypatch.setattr(loractl_wandb, "import_module", {"wandb": package}.__getitem__)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return package


def test_a_run_is_told_whole(wandb: Wandb, tmp_path: Path) -> None:
    plugins = toy.plugins()
    plugins.add_listener(WeightsAndBiases())
    plugins.emit(Started(JOB, tmp_path / "o"))
    for event in (Pictures(0, Path("a.png"), "samples"), Numbers(1, {"loss": 0.5}), Finished({}, {"loss": 0.25})):
        plugins.emit(event)
    plugins.emit(Numbers(2, {"loss": 1.0}))
    assert wandb.settings["config"] == JOB
    assert (wandb.settings["name"], wandb.settings["dir"]) == ("rex", str(tmp_path / "o"))
    assert wandb.said == [(0, {"samples": "picture a.png"}), (1, {"loss": 0.5})]
    assert (wandb.summary, wandb.finished) == ({"loss": 0.25}, True)


@pytest.mark.parametrize(
    ("logged_in", "mode", "chosen"), [(False, "", "offline"), (True, "", None), (False, "online", None)]
)
def test_nothing_is_asked_and_a_stranger_s_run_stays_here(
    logged_in: bool, mode: str, chosen: str | None, wandb: Wandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.logged_in = logged_in
    monkeypatch.setenv("WANDB_MODE", mode)
    WeightsAndBiases().on_event(Started(JOB, tmp_path))
    assert (wandb.settings["mode"], wandb.settings["settings"]) == (chosen, "off")
