"""What a person sees of a run."""

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from loractl.cli.display import LINE_EVERY, Display, bars, duration, number, write_json
from loractl.events import Event, Facts, Finished, Note, Numbers, Pictures, Progress, Started


def shown(events: list[tuple[float, Event]], terminal: bool = False) -> str:
    """What a display prints for events at given seconds."""
    console = Console(force_terminal=terminal, width=100, record=True, file=open(os.devnull, "w"), color_system=None)  # noqa: SIM115, PTH123
    now = [0.0]
    display = Display(console, clock=lambda: now[0])
    for now[0], event in events:
        display.on_event(event)
    display.close()
    return console.export_text()


def test_progress_lines_are_few_and_tell_rate_and_rest() -> None:
    events: list[tuple[float, Event]] = [
        (step * 1.0, Progress("train", step, 20, {"loss": 1 / 3})) for step in range(21)
    ]
    lines = shown(events).splitlines()
    assert lines[0] == f"train {int(LINE_EVERY)}/20 (1/s, 15 s left)  loss 0.3333"
    assert len(lines) == 4
    assert lines[-1].startswith("train 20/20")


def test_a_new_stage_starts_its_own_clock() -> None:
    events = [(0, Progress("a", 1, 2)), (9, Progress("a", 2, 2)), (10, Progress("b", 0, 8)), (14, Progress("b", 8, 8))]
    assert shown([*events, (15, Finished({}, {"score": 2.0}))]).splitlines() == [
        "a 2/2 (0.111/s, 0 s left)",
        "b 8/8 (2/s, 0 s left)",
        "  score    2  ",
        "finished in 15 s",
    ]


def test_a_terminal_has_bars() -> None:
    text = shown(
        [(0, Facts("what learns", {"rank": 4})), (1, Progress("train", 1, 2)), (2, Progress("train", 2, 2))], True
    )
    assert "what learns" in text
    assert "━" in text
    assert "2/2" in text


def test_what_is_for_trackers_is_not_shown_but_for_new_pictures() -> None:
    events = [Started({"name": "x"}, Path("out")), Numbers(3, {"loss": 0.5}), Pictures(3, Path("a.png"), "samples")]
    assert shown([(0, event) for event in events]) == "wrote samples at step 3: a.png\n"


def test_a_table_loses_nothing_of_long_words() -> None:
    name, value = "a" * 90 + ".png", "b" * 150
    text = shown([(0, Facts("plan", {name: value})), (0, Finished({}, {name: 2.0}))])
    assert (text.count("a"), text.count("b"), "…" in text) == (181, 150, False)  # and the a of plan


def test_what_is_not_finite_is_null_in_json_and_without_a_bar() -> None:
    stream, nan = io.StringIO(), float("nan")
    write_json(stream, {"a": [1.5, nan], "b": {"c": float("inf"), "d": "NaN"}, "e": (True, Path("f"))})
    assert stream.getvalue() == '{"a": [1.5, null], "b": {"c": null, "d": "NaN"}, "e": [true, "f"]}\n'
    lines = bars({"a": nan, "b": 2.0, "c": float("inf"), "d": 1.0}, 4).splitlines()
    assert [line.split() for line in lines] == [["a", "nan"], ["b", "████", "2"], ["c", "inf"], ["d", "██", "1"]]


def test_markup_in_a_message_is_only_text() -> None:
    assert shown([(0, Note("[red]x[/] " + "long " * 60))]).count("\n") == 1
    assert shown([(0, Note("[bold]", "warning"))]) == "warning: [bold]\n"


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (125, "2 min 5 s"), (11520, "3 h 12 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(1541376, "1,541,376"), (0.012345, "0.01235"), (True, "True"), ("x", "x")])
def test_numbers(value: object, text: str) -> None:
    assert number(value) == text
