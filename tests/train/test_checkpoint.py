"""A checkpoint is whole or not there: whatever is killed, cut, flipped or full."""

import errno
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from loractl.errors import DiskFullError, InputError
from loractl.train import checkpoint
from loractl.train.checkpoint import checkpoints, latest_checkpoint, load_checkpoint, prune, save_checkpoint, verify
from loractl.train.loop import Plan, fit
from loractl.train.metrics import MetricsFile
from tests.train.network import Network, ignore, phases, same

CHANGES = {"mkdir", "open", "write", "flush", "rename", "replace", "unlink", "rmdir"}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync is for power cuts, which no test can make; that it is called in time is tested."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def content(step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {"parameter.a.0": torch.full((2, 3), float(step)), "state.a.0.step": torch.tensor(float(step))}
    return tensors, {"step": step, "losses": [1 / 3] * step}


def save(folder: Path, step: int, **options: Any) -> Path:
    return save_checkpoint(folder, *content(step), step, **options)


def is_that_of(path: Path | None, step: int) -> bool:
    if path is None:
        return False
    tensors, values = load_checkpoint(path)
    return same(tensors, content(step)[0]) and values == content(step)[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path / "deep" / "checkpoints", 250)
    assert path == tmp_path / "deep" / "checkpoints" / "step-000250" == latest_checkpoint(path.parent)
    assert names(path) == ["manifest.json", "state.json", "state.safetensors"]
    assert is_that_of(path, 250)


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is latest_checkpoint(tmp_path) is None


def in_a_child(work: Callable[[], object]) -> int:
    """Runs it in a fork of this process; returns the status, as os.waitpid does."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    return os.waitpid(child, 0)[1]


def dying(number: int, work: Callable[[], object]) -> Callable[[], None]:
    """The work, killed before its call number `number` that changes a file or a folder."""
    calls = count(1)

    def watch(_: object, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ in CHANGES and next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched() -> None:
        sys.setprofile(watch)
        work()
        sys.setprofile(None)

    return watched


def broken(folder: Path, step: int) -> None:
    save(folder, step)
    (folder / f"step-{step:06d}" / checkpoint.VALUES).write_text("{}")


SCENES: dict[str, tuple[Callable[[Path], object], int, set[int | None]]] = {
    "first": (lambda _: None, 10, {None, 10}),
    "next, and the only one that is kept": (lambda folder: save(folder, 5), 10, {5, 10}),
    "once more": (lambda folder: save(folder, 10), 10, {10}),
    "in place of a broken one": (lambda folder: (save(folder, 5), broken(folder, 10)), 10, {5, 10}),
    "of a run that was taken back": (lambda folder: (save(folder, 5), broken(folder, 20)), 10, {5, 10}),
}


@pytest.mark.parametrize("scene", SCENES)
def test_killed_at_any_moment_it_leaves_the_old_or_the_new(tmp_path: Path, scene: str) -> None:
    prepare, step, expected = SCENES[scene]
    (tmp_path / "before").mkdir()
    prepare(tmp_path / "before")
    found: set[int | None] = set()
    for number in count(1):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "before", folder)
        status = in_a_child(dying(number, lambda folder=folder: save(folder, step, keep=1)))  # type: ignore[misc]
        path = latest_checkpoint(folder)
        found.add(int(path.name[5:]) if path else None)
        assert path is None or is_that_of(path, int(path.name[5:]))
        assert save(folder, step, keep=1) == latest_checkpoint(folder)
        assert names(folder) == ["latest", f"step-{step:06d}"]
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert number > 15 and found == expected


def test_each_thing_happens_after_what_it_relies_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5)
    done: list[tuple[str, str]] = []

    def record(module: Any, name: str, target: Callable[[Any], Path]) -> None:
        real = getattr(module, name)

        def recorded(*args: Any, **options: Any) -> Any:
            path = target(args[-1])
            done.append((name, "temporary" if path.name.startswith(".step") else path.name))
            return real(*args, **options)

        monkeypatch.setattr(module, name, recorded)

    inodes = lambda fd: next(p for p in (tmp_path, *tmp_path.rglob("*")) if p.stat().st_ino == os.fstat(fd).st_ino)  # noqa: E731
    record(os, "fsync", inodes)
    record(os, "replace", Path)
    record(os, "rename", Path)
    record(shutil, "rmtree", Path)
    save(tmp_path, 10, keep=1)
    shown = [(what, "file" if name.endswith(".tmp") else name) for what, name in done]
    files = [
        step
        for name in (checkpoint.TENSORS, checkpoint.VALUES, checkpoint.MANIFEST)
        for step in (("fsync", "file"), ("replace", name), ("fsync", "temporary"))
    ]
    parent = ("fsync", tmp_path.name)
    publish = [("rename", "step-000010"), parent, ("fsync", "file"), ("replace", "latest"), parent]
    assert shown[: len(files) + len(publish)] == files + publish
    assert shown[len(files) + len(publish) :] == [
        ("rmtree", "temporary"),
        ("rename", "temporary"),
        ("rmtree", "temporary"),
    ]


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.VALUES, checkpoint.MANIFEST])
def test_a_flipped_or_missing_byte_is_noticed_and_the_one_before_is_taken(tmp_path: Path, file: str) -> None:
    old, new = save(tmp_path, 5), save(tmp_path, 10)
    data = (new / file).read_bytes()
    places = range(0, len(data), 7)
    for damaged in (data[:-1], data + b"x", b"", *(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in places)):
        (new / file).write_bytes(damaged)
        assert verify(new) and latest_checkpoint(tmp_path) == old
        with pytest.raises(InputError, match="step-000010 is not a whole checkpoint"):
            load_checkpoint(new)
    (new / file).unlink()
    assert verify(new) and latest_checkpoint(tmp_path) == old
    (new / file).write_bytes(data)
    assert not verify(new) and latest_checkpoint(tmp_path) == new


def test_when_all_are_broken_it_says_so(tmp_path: Path) -> None:
    for step in (5, 10):
        (save(tmp_path, step) / checkpoint.TENSORS).unlink()
    with pytest.raises(InputError, match=r"step-000010: state.safetensors cannot be read .*step-000005.*--overwrite"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("text", [b"", b"step-000099\n", b"\xff\xff", b"../secret\n"])
def test_without_a_sound_pointer_the_newest_is_taken(tmp_path: Path, text: bytes) -> None:
    save(tmp_path, 999_999)
    newest = save(tmp_path, 1_000_000)
    (tmp_path / "latest").write_bytes(text)
    assert latest_checkpoint(tmp_path) == newest


def test_the_newest_and_the_spared_are_kept(tmp_path: Path) -> None:
    best = save(tmp_path, 1)
    for step in range(2, 8):
        save(tmp_path, step, keep=3, spare=[best])
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{step:06d}" for step in (1, 5, 6, 7)]
    prune(tmp_path, 1, [tmp_path / "step-000005"])
    assert names(tmp_path) == ["latest", "step-000005", "step-000007"]


def test_those_of_a_run_that_was_taken_back_go(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    save(tmp_path, 12, spare=[tmp_path / "step-000020"])
    assert names(tmp_path) == ["latest", *(f"step-{step:06d}" for step in (5, 10, 12, 20))]
    assert is_that_of(latest_checkpoint(tmp_path), 12)


def test_too_little_room_is_known_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5)
    free = checkpoint.HEADROOM + 27  # of the 28 bytes in the tensors
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free))  # type: ignore[attr-defined]
    monkeypatch.setattr(checkpoint, "_write", None)
    with pytest.raises(DiskFullError, match=f"{free:,} bytes free and a checkpoint needs 28 and"):
        save(tmp_path, 10)
    assert names(tmp_path) == ["latest", "step-000005"]


def fail_with(number: int) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
def test_a_disk_that_fills_up_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    save(tmp_path, 5)
    with monkeypatch.context() as patch, pytest.raises(DiskFullError, match="step-000010 was not written: make room"):
        patch.setattr(os, call, fail_with(number))
        save(tmp_path, 10)
    assert names(tmp_path) == ["latest", "step-000005"] and is_that_of(latest_checkpoint(tmp_path), 5)


def test_a_file_that_may_not_grow_leaves_the_last_one(tmp_path: Path) -> None:
    save(tmp_path, 5)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))  # Python ignores the signal that comes with it
    try:
        with pytest.raises(DiskFullError, match="the disk is full"):
            save_checkpoint(tmp_path, {"large": torch.zeros(2**16)}, {}, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["latest", "step-000005"] and is_that_of(latest_checkpoint(tmp_path), 5)


def test_a_second_ctrl_c_while_it_is_written_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 5)

    def interrupt(_: Path) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_entry", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 10)
    assert names(tmp_path) == ["latest", "step-000005"]


def test_a_killed_training_goes_on_to_the_bytes_of_the_uninterrupted_one(tmp_path: Path) -> None:
    plan = Plan(20, grad_accum=2, schedule="cosine", warmup_steps=2, active=phases, ema=0.9)

    def run(network: Network, folder: Path, killed_at: int | None = None) -> None:
        metrics = MetricsFile(folder)
        if path := latest_checkpoint(folder / "checkpoints"):
            network.training.restore(*load_checkpoint(path))
        metrics.truncate(network.training.step)

        def after_step(done: int) -> None:
            if done in (7, 14):
                save_checkpoint(folder / "checkpoints", *network.training.state(), done)
            if done == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

        folder.mkdir(exist_ok=True)
        fit(network.training, network.loss, ignore, after_step, on_numbers=metrics.add)

    whole, resumed = Network(plan), Network(plan)
    run(whole, tmp_path / "whole")
    assert os.WTERMSIG(in_a_child(lambda: run(Network(plan), tmp_path / "killed", killed_at=9))) == signal.SIGKILL
    assert len((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()) == 9
    run(resumed, tmp_path / "killed")
    assert same(whole.everything(), resumed.everything()) and resumed.lines == []
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*.*")) for folder in sorted(tmp_path.iterdir())]
    assert files[0] == files[1] and len(files[0]) == 7
    for name in files[0]:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    values = json.loads((tmp_path / "killed/checkpoints/step-000014/state.json").read_bytes())
    assert values["step"] == 14 and len(values["losses"]) == 14
