"""Carrying out a job: what is left, what is said, and what is never replaced."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

import loractl.cli
from loractl.errors import InputError
from loractl.events import Emit, Note
from loractl.job import read_job
from loractl.method import Method, Outcome
from loractl.specs import Spec
from tests import toy
from tests.cli.calling import call


def test_a_run_leaves_its_result_and_the_resolved_job(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "run", "job.toml", "--set", "seed=5")
    assert (code, out) == (0, "a library prints to stdout\n")
    assert "warning: nothing was learnt" in err
    assert "train 3/3" in err
    first = here / "out/job/job.toml"
    result = first.with_name("toy.txt")
    assert result.read_text() == "5 3\n"
    result.unlink()
    text = first.read_text()
    assert call(capsys, "run", str(first), "--overwrite")[0] == 0
    assert result.read_text() == "5 3\n"
    assert first.read_text() == text.replace("overwrite = false", "overwrite = true")
    assert not list(first.parent.glob(".*"))


def test_the_command_and_the_job_file_are_one_value(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "toy", "a sks", "--steps", "2", "--out", "o", "--print-job")
    assert code == 0
    assert not (here / "o").exists()
    (here / "printed.toml").write_text(out, encoding="utf-8")
    assert call(capsys, "run", "printed.toml")[0] == 0
    by_file = (here / "o/job.toml").read_text()
    assert call(capsys, "toy", "a sks", "--steps", "2", "--out", "o", "--overwrite")[0] == 0
    assert (here / "o/job.toml").read_text() == by_file.replace("overwrite = false", "overwrite = true")


@pytest.mark.parametrize("command", [["run", "job.toml", "--out", "o"], ["toy", "p", "--out", "o"]])
def test_a_result_that_is_there_is_not_replaced(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *command)[0] == 0
    before = Path("o/job.toml").stat().st_mtime_ns
    code, _, err = call(capsys, *command)
    assert code == InputError.exit_code
    assert "o/job.toml is already there: choose another --out, or replace it with --overwrite" in err
    assert Path("o/job.toml").stat().st_mtime_ns == before
    assert call(capsys, *command, "--overwrite")[0] == 0


def test_a_result_that_is_one_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "x.toml").write_text('method = "file"\noutput.path = "x.bin"', encoding="utf-8")
    assert call(capsys, "run", "x.toml")[0] == 0
    assert (here / "x.bin").read_text() == "done\n"
    assert read_job(here / "x.job.toml", toy.METHODS).output.path == here / "x.bin"
    code, _, err = call(capsys, "run", "x.toml")
    assert (code, "x.bin is already there" in err) == (InputError.exit_code, True)


class AgainSpec(toy.ToySpec):
    method: Literal["again"] = Field("again", description="which method runs the job")  # type: ignore[assignment]  # another name than its parent's

    def is_done(self) -> bool:
        return False


@pytest.mark.parametrize("text", [b'method = "toy"\n', b"seed = 1\n", b"mine, no TOML\n", b"\xff"])
def test_a_job_is_recorded_over_none_of_another_kind(
    text: bytes, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {**toy.METHODS, "again": Method("again", "Do what has changed.", AgainSpec, toy.run)}
    monkeypatch.setattr(loractl.cli, "load_plugins", lambda: replace(toy.plugins(), methods=methods))
    record, again = here / "o/job.toml", ["run", "job.toml", "--set", "method=again", "--out", "o"]
    record.parent.mkdir()
    record.write_bytes(text)
    code, _, err = call(capsys, *again)
    assert (code, err.count("\n")) == (InputError.exit_code, 1)
    assert f"{record} is already there and holds " in err and "choose another --out" in err
    assert [path.name for path in record.parent.iterdir()] == ["job.toml"] and record.read_bytes() == text
    assert [call(capsys, *words)[0] for words in ([*again, "--overwrite"], again)] == [0, 0]


def test_nor_is_that_of_one_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "x.toml").write_text('method = "file"\noutput.path = "x.bin"', encoding="utf-8")
    (here / "x.job.toml").write_text('method = "toy"', encoding="utf-8")
    code, _, err = call(capsys, "run", "x.toml")
    assert (code, "a job of another method (toy)" in err) == (InputError.exit_code, True)
    assert not (here / "x.bin").exists()


class TellSpec(Spec):
    method: Literal["tell"] = Field("tell", description="which method runs the job")
    writes_nothing = True


def tell(_: TellSpec, emit: Emit) -> Outcome:
    emit(Note("telling"))
    return Outcome()


def test_a_method_that_writes_nothing_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = replace(toy.plugins(), methods={"tell": Method("tell", "Write nothing.", TellSpec, tell)})
    monkeypatch.setattr(loractl.cli, "load_plugins", lambda: plugins)
    (here / "x.toml").write_text('method = "tell"', encoding="utf-8")
    before = sorted(here.iterdir())
    for _ in range(2):
        code, _, err = call(capsys, "run", "x.toml")
        assert (code, "telling" in err) == (0, True)
    assert sorted(here.iterdir()) == before
    assert call(capsys, "check", "x.toml")[:2] == (0, "ok: tell would write nothing\n")
    assert json.loads(call(capsys, "check", "x.toml", "--json")[1])["output"] is None


def test_json_is_all_that_reaches_stdout(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "run", "job.toml", "--json", "--out", "o")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [event["event"] for event in events] == [
        *("started", "facts", *["progress"] * 3, "note", "wrote", "finished")
    ]
    assert (events[0]["job"]["train"]["steps"], events[0]["folder"]) == (3, str(here / "o"))
    assert events[-1] == {"event": "finished", "files": {"toy": str(here / "o/toy.txt")}, "numbers": {"loss": 0.5}}
    assert err == "a library prints to stdout\n"


def test_quiet_leaves_the_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--quiet", "run", "job.toml")[2] == "warning: nothing was learnt\n"
