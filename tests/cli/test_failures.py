"""What the command line refuses, and the code it leaves with."""

import errno
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import loractl.cli
from loractl.cli.failures import advising
from loractl.errors import (
    DeviceError,
    FormatError,
    InputError,
    MismatchError,
    NumericsError,
    PluginError,
    ScoreError,
    Terminated,
)
from loractl.fields import fields
from loractl.plugins import load_plugins
from tests import toy
from tests.cli.calling import call, failing


def test_a_wrong_job_is_told_whole_and_runs_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["run", "job.toml", "--set", "train.step=1", "--set", "seed=x"]
    problems = [
        "--set train.step=1: unknown key; did you mean train.steps?",
        '--set seed=x: expected a whole number, found the text "x"',
    ]
    assert call(capsys, *wrong) == (2, "", "".join(f"error: {problem}\n" for problem in problems))
    code, out, err = call(capsys, *wrong, "--json")
    assert (code, err) == (2, "")
    assert json.loads(out) == {"event": "error", "exit_code": 2, "problems": problems}
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["runn"], "No such command 'runn'. Did you mean 'run'? (see loractl --help)"),
        (["run"], "(see loractl run --help)"),
        (["run", "job.toml", "--sett"], "No such option: --sett"),
        (["toy", "p", "--steps", "many"], "Invalid value for '--steps'"),
        ([], "Missing command. (see loractl --help)"),
        (["toy", "p", "--steps", "0"], "--steps: should be greater than or equal to 1, found 0"),
    ],
)
def test_wrong_arguments_are_one_sentence(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    code, out, err = call(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert json.loads(call(capsys, *words, "--json")[1])["exit_code"] == 2
    assert call(capsys, *words, "--", "--json")[1] == ""


def memory() -> Exception:
    return type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (InputError("no such file"), 3, "error: no such file"),
        (FormatError("a pickle"), 3, "error: a pickle"),
        (MismatchError("no target"), 4, "error: no target"),
        (DeviceError("no CUDA"), 5, "error: no CUDA"),
        (memory(), 5, "lower train.batch_size"),
        (PluginError("clash"), 6, "error: clash"),
        (NumericsError("nan"), 7, "error: nan"),
        (ScoreError("too low"), 8, "error: too low"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 74, "choose another --out"),
        (RuntimeError("io error: No space left on device (os error 28)"), 74, "free some space"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        (SystemExit(9), 9, ""),
    ],
)
def test_every_failure_has_its_code(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, error)
    left, _, err = call(capsys, "run", "job.toml")
    assert left == code
    assert says in err
    assert "Traceback" not in err
    left, out, _ = call(capsys, "--json", "run", "job.toml", "--overwrite")
    assert left == code
    assert not says or json.loads(out.splitlines()[-1])["exit_code"] == code
    assert Path("out/job/job.toml").exists() == isinstance(error, ScoreError), "whose result is there"


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_what_is_interrupted_may_say_how_it_goes_on(
    stop: type[BaseException], code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error: Any = stop()
    error.resume = "interrupted: `loractl run job.toml` goes on from step 7"
    failing(monkeypatch, error)
    left, _, err = call(capsys, "run", "job.toml")
    assert (left, err) == (code, f"error: {error.resume}\n")


@pytest.mark.parametrize("command", [["new", "toy"], ["run", "job.toml"]])
def test_a_path_that_can_not_be_is_no_bug(here: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (here / "afile").write_text("mine")
    for out in ("afile", "afile/below", "x" * 300 + "/y"):
        code, _, err = call(capsys, *command, "--out", out)
        assert code == InputError.exit_code and "choose another --out" in err and out.partition("/")[0] in err
        assert "Traceback" not in err
    assert (here / "afile").read_text() == "mine"


def test_a_file_without_rights_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/cache/x", None, "/cache/y"))
    code, _, err = call(capsys, "run", "job.toml")
    said = "error: /cache/y can't be read or written (Permission denied): mend the path, or choose another --out\n"
    assert (code, err) == (InputError.exit_code, said)


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        ("dreambooth", "lower train.batch_size, or lower sample.size, or set memory.gradient_checkpointing = true"),
        ("infer", 'lower sample.size, or set memory.offload = "blocks", or set memory.device = "cpu"'),
        ("merge", 'set memory.device = "cpu"'),
        ("ppim", 'set run.device = "cpu", or choose a smaller mask.model or caption.model'),
        ("convert", "choose a smaller model"),
    ],
)
def test_advice_for_a_full_device_names_keys_that_the_job_has(method: str, advice: str) -> None:
    spec = load_plugins().methods[method].spec
    with pytest.raises(DeviceError) as told, advising(spec):
        raise memory()
    assert str(told.value) == f"the device is out of memory: {advice}"
    assert set(re.findall(r"\w+\.\w+", advice)) <= dict(fields(spec)).keys()


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("oops"))
    code, out, err = call(capsys, "run", "job.toml", "--json")
    assert (code, json.loads(out.splitlines()[-1])["problems"]) == (1, ["ZeroDivisionError: oops"])
    assert "Traceback" in err


def test_a_full_disk_leaves_no_half_written_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    assert call(capsys, "run", "job.toml", "--out", "o")[0] == 74
    assert [path.name for path in Path("o").iterdir()] == ["toy.txt"]


def test_sigterm_is_terminated(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = toy.plugins()

    def run(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)

    methods = {"toy": replace(plugins.methods["toy"], run=run)}
    monkeypatch.setattr(loractl.cli, "load_plugins", lambda: replace(plugins, methods=methods))
    before = signal.getsignal(signal.SIGTERM)
    assert call(capsys, "run", "job.toml")[0] == 143
    assert signal.getsignal(signal.SIGTERM) is before
