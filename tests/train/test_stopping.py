"""Signals and time: the first asks, the second stops, and what was there before comes back."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from loractl.errors import Terminated
from loractl.train.stopping import Stop

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[object]]:
    """What is installed outside, as the command line does; a signal that nobody catches fails the test."""

    def fail(number: int, _: object) -> None:
        raise AssertionError(f"signal {number} went past")

    before = [signal.signal(number, fail) for number in SIGNALS]
    yield [fail] * len(SIGNALS)
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_the_first_signal_asks_and_the_second_leaves_at_once(number: int, error: type[BaseException]) -> None:
    with Stop() as stop:
        assert stop.requested is None
        send(number)
        assert stop.requested == number
        with pytest.raises(error) as asked:
            stop.leave()
        with pytest.raises(error) as told:
            send(number)
    assert asked.type is told.type is error


def test_the_second_signal_says_how_to_leave() -> None:
    with Stop():
        send(signal.SIGINT)
        with pytest.raises(Terminated):
            send(signal.SIGTERM)


def test_every_usr1_asks_for_one_checkpoint_and_stops_nothing() -> None:
    with Stop() as stop:
        for _ in range(2):
            assert not stop.checkpoint_wanted
            send(signal.SIGUSR1)
            assert stop.checkpoint_wanted
        assert not stop.checkpoint_wanted and stop.requested is None


@pytest.mark.parametrize("failing", [False, True])
def test_handlers_are_put_back(handlers: list[object], failing: bool) -> None:
    try:
        with Stop():
            assert not any(signal.getsignal(number) in handlers for number in SIGNALS)
            if failing:
                raise ValueError
    except ValueError:
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stop() as stop:
        send(signal.SIGINT)
    assert stop.requested is None


def test_on_another_thread_it_is_inert(handlers: list[object]) -> None:
    seen: list[object] = []

    def elsewhere() -> None:
        with Stop(max_seconds=0) as stop:
            seen.extend([[signal.getsignal(number) for number in SIGNALS], stop.out_of_time()])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [handlers, True]


def test_time_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stop, endless = Stop(max_seconds=60), Stop()
    now = 159.9
    assert not stop.out_of_time()
    now = 160.0
    assert stop.out_of_time() and not endless.out_of_time()
