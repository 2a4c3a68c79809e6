"""What the TensorBoard listener writes, read back by TensorBoard itself."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loractl_tensorboard import TensorBoard
from PIL import Image

from loractl.events import Event, Finished, Numbers, Pictures, Started
from tests import toy

pytest.importorskip("tensorboard")


def tell(folder: Path, events: Sequence[Event]) -> None:
    """A run's events, as its listeners hear them."""
    plugins = toy.plugins()
    plugins.add_listener(TensorBoard())
    for event in [Started({"name": "x", "log": {"trackers": ["tensorboard"]}}, folder), *events]:
        plugins.emit(event)


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def numbers(steps: range, slope: float = 1.0) -> list[Event]:
    return [Numbers(step, {"loss": slope * step, "eval/subject": 0.5}) for step in steps]


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in read(folder).Scalars(name)]


def test_numbers_and_results_are_read_back(tmp_path: Path) -> None:
    tell(tmp_path, [*numbers(range(1, 4)), Finished({}, {"subject_fidelity": 0.75})])
    assert set(read(tmp_path).Tags()["scalars"]) == {"loss", "eval/subject", "result/subject_fidelity"}
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert scalars(tmp_path, "result/subject_fidelity") == [(3, 0.75)]


def test_pictures_are_read_back(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shown = [Pictures(step, tmp_path / "a.png", "samples") for step in (0, 3)]
    tell(tmp_path, [shown[0], *numbers(range(1, 4)), shown[1], Finished({}, {})])
    found = read(tmp_path).Images("samples")
    assert [each.step for each in found] == [0, 3]
    assert all(np.array_equal(np.asarray(Image.open(BytesIO(each.encoded_image_string))), pixels) for each in found)


def test_a_run_that_goes_on_takes_the_place_of_what_was_lost(tmp_path: Path) -> None:
    tell(tmp_path, [*numbers(range(1, 8)), Finished({}, {})])
    tell(tmp_path, [*numbers(range(5, 10), slope=2.0), Finished({}, {})])
    expected = [(step, float(step)) for step in range(1, 5)] + [(step, 2.0 * step) for step in range(5, 10)]
    assert scalars(tmp_path, "loss") == expected


def test_the_next_run_of_a_process_has_its_own_file(tmp_path: Path) -> None:
    tracker = TensorBoard()
    for name in ("one", "two"):  # the first is interrupted: nothing says that it is over
        tracker.on_event(Started({"name": name, "log": {"trackers": ["tensorboard"]}}, tmp_path / name))
        tracker.on_event(Numbers(1, {name: 1.0}))
    tracker.on_event(Finished({}, {}))
    assert [read(tmp_path / name).Tags()["scalars"] for name in ("one", "two")] == [["one"], ["two"]]
