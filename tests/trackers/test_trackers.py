"""What both trackers share: they hear a run that asks for them, and a missing package stops it before it begins."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import loractl_tensorboard
import loractl_wandb
import pytest
from pydantic import Field

from loractl.cli import execute
from loractl.errors import InputError
from loractl.events import Event, Finished, Numbers, Pictures, Started
from loractl.job import spec_from_options
from loractl.method import Method
from loractl.sections import LogSection
from tests import toy

TRACKERS = [(loractl_tensorboard, loractl_tensorboard.TensorBoard), (loractl_wandb, loractl_wandb.WeightsAndBiases)]
each_tracker = pytest.mark.parametrize(("module", "make"), TRACKERS, ids=["tensorboard", "wandb"])


class TrackedSpec(toy.ToySpec):
    method: Literal["tracked"] = Field("tracked", description="which method runs the job")  # type: ignore[assignment]
    log: LogSection = Field(LogSection(), description="who is told of the run")


def missing(name: str) -> Any:
    raise ModuleNotFoundError(name)


@each_tracker
def test_a_package_that_is_not_installed_stops_the_run_before_it_begins(
    module: ModuleType, make: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "import_module", missing)
    plugins = replace(toy.plugins(), methods={"tracked": Method("tracked", "", TrackedSpec, toy.run)})
    plugins.add_listener(make())
    name = module.__name__.removeprefix("loractl_")
    values = {"model": "lab", "subject.prompt": "p", "train.steps": 1, "output.path": tmp_path / "o"}
    with pytest.raises(InputError, match=rf'names "{name}".*pip install "loractl\[{name}\]"'):
        execute(spec_from_options(TrackedSpec, {**values, "log.trackers": [name]}), plugins)
    assert not (tmp_path / "o").exists()
    execute(spec_from_options(TrackedSpec, values), plugins)
    assert (tmp_path / "o/toy.txt").is_file()


@each_tracker
def test_a_run_that_does_not_ask_is_not_heard(
    module: ModuleType, make: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "import_module", missing)
    tracker, events = make(), list[Event]()
    events += [Started({"name": "x", "log": {"trackers": []}}, tmp_path / "o"), Numbers(1, {"loss": 0.5})]
    events += [Pictures(1, tmp_path / "no.png", "samples"), Finished({}, {"loss": 0.5})]
    for event in [*events, *events]:
        tracker.on_event(event)
    assert list(tmp_path.iterdir()) == []
