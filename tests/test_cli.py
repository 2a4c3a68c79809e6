"""The command line: what it prints, what it refuses, and the code it leaves with."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from rich.console import Console

import loractl
import loractl.cli
from loractl.cli import GLOBAL_OPTIONS, hoist, main
from loractl.cli.display import LINE_EVERY, Display, duration, number
from loractl.errors import (
    DeviceError,
    FormatError,
    InputError,
    MismatchError,
    NumericsError,
    PluginError,
    Terminated,
)
from loractl.events import Emit, Event, Facts, Finished, Note, Progress
from loractl.job import read_job
from loractl.method import Method, Outcome
from loractl.specs import Spec
from tests import toy

ROOT = Path(__file__).parents[1]
JOB = 'method = "toy"\nmodel = "lab"\nsubject.prompt = "p"\ntrain.steps = 3\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tests' current folder, with a job in it and the toy methods installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loractl.cli, "load_plugins", toy.plugins)
    (tmp_path / "job.toml").write_text(JOB, encoding="utf-8")
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, out, err


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(*_: Any) -> Any:
        raise error

    plugins = toy.plugins()
    method = replace(plugins.methods["toy"], run=run)
    monkeypatch.setattr(loractl.cli, "load_plugins", lambda: replace(plugins, methods={"toy": method}))


# --- running ---------------------------------------------------------------------------------------------------------


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
    assert [event["event"] for event in events] == ["facts", *["progress"] * 3, "note", "wrote", "finished"]
    assert events[-1] == {"event": "finished", "files": {"toy": str(here / "o/toy.txt")}, "numbers": {"loss": 0.5}}
    assert err == "a library prints to stdout\n"


def test_quiet_leaves_the_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--quiet", "run", "job.toml")[2] == "warning: nothing was learnt\n"


# --- asking ----------------------------------------------------------------------------------------------------------


def test_check_says_what_would_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "check", "job.toml")[:2] == (0, "ok: toy would write out/job\n")
    answer = json.loads(call(capsys, "check", "job.toml", "--json")[1])
    assert answer == {"ok": True, "method": "toy", "name": "job", "output": "out/job", "there": False}
    assert not (here / "out").exists()


def test_methods_lists_all_with_their_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "methods")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["method", "file", "toy"]
    assert {"name": "toy", "summary": "Do next to nothing.", "distribution": "toys 1.0", "command": True} in json.loads(
        call(capsys, "methods", "--json")[1]
    )["methods"]


def test_schema_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    one = json.loads(call(capsys, "schema", "toy")[1])
    assert one["properties"]["method"]["const"] == "toy"
    both = json.loads(call(capsys, "schema")[1])
    assert [each["$ref"] for each in both["anyOf"]] == ["#/$defs/FileSpec", "#/$defs/ToySpec"]
    assert set(one["$defs"]) < set(both["$defs"])
    assert call(capsys, "schema", "ty")[0] == 2


def test_new_writes_a_job_that_asks_for_what_is_missing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "new", "toy", "--out", "new.toml")[0] == 0
    assert (here / "new.toml").read_text() == call(capsys, "new", "toy")[1]
    assert call(capsys, "new", "toy", "--out", "new.toml")[0] == InputError.exit_code
    code, _, err = call(capsys, "check", "new.toml")
    assert code == 2
    assert [line.split(": ")[2] for line in err.splitlines()] == ["model.source", "subject.prompt"]


def test_show_prints_what_a_file_holds(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "jobs/data/adapters/one.safetensors")
    code, out, _ = call(capsys, "show", file)
    assert code == 0
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if not line.startswith(" ")}
    assert lines["kind"] == ["lora"] and lines["format"] == ["kohya"] and lines["base"] == ["unknown"]
    assert lines["components"] == ["unet:", "modules", "14,", "ranks", "4,", "alphas", "2"]
    assert lines["tokens"] == lines["vectors"] == lines["unknown"] == ["none"]
    data = json.loads(call(capsys, "show", file, "--json")[1])
    assert data["unknown"] == [] and "modules" not in data and len(data["content_hash"]) == 64
    bars = [line.split()[-3:] for line in out.splitlines() if "█" in line]
    assert [(name, float(size)) for name, _, size in bars] == [
        (name, pytest.approx(size, rel=1e-3)) for name, size in data["blocks"].items()
    ]
    longest = max(bars, key=lambda bar: float(bar[2]))
    assert len(longest[1]) == 30 == max(len(bar[1]) for bar in bars)


def test_show_lists_the_modules_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "jobs/data/adapters/one.safetensors")
    data = json.loads(call(capsys, "show", file, "--modules", "--json")[1])
    assert len(data["modules"]) == data["components"]["unet"]["modules"]
    assert sum(each["norm"] ** 2 for each in data["modules"].values()) == pytest.approx(data["norm"] ** 2)
    assert sum(size**2 for size in data["blocks"].values()) == pytest.approx(data["norm"] ** 2)
    path, first = next(iter(data["modules"].items()))
    out = call(capsys, "show", file, "--modules")[1]
    assert f"{path}: rank 4, alpha 2, shape {first['shape'][0]} {first['shape'][1]}, norm " in " ".join(out.split())


def test_show_tells_what_a_program_makes_of_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "jobs/data/adapters/two.safetensors")
    code, out, _ = call(capsys, "show", file, "--for", "a1111")
    assert code == 0
    assert out.splitlines()[0].endswith("28 ignored") and out.splitlines()[1].startswith(
        "ignored: 28 keys; names with dots"
    )
    data = json.loads(call(capsys, "show", file, "--for", "diffusers", "--json")[1])
    assert data["file"] == "28 loaded" and [group["count"] for group in data["groups"]] == [28]
    assert len(data["groups"][0]["keys"]) == 28
    code, _, err = call(capsys, "show", file, "--for", "comfy")
    assert (code, "choose one of comfyui, forge, a1111, diffusers" in err) == (InputError.exit_code, True)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for word in (*GLOBAL_OPTIONS, "run", "check", "methods", "schema", "new", "show", "toy"):
        assert word in out
    assert call(capsys, "--version")[:2] == (0, f"loractl {loractl.__version__}\n")


@given(st.lists(st.sampled_from([*GLOBAL_OPTIONS, "run", "x", "--set", "--"])))
def test_global_options_stand_anywhere_before_two_dashes(words: list[str]) -> None:
    moved = hoist(words)
    end = words.index("--") if "--" in words else len(words)
    front = {word for word in words[:end] if word in GLOBAL_OPTIONS}
    assert set(moved[: len(front)]) == front
    assert moved[len(front) :] == [word for word in words[:end] if word not in GLOBAL_OPTIONS] + words[end:]


# --- failing ---------------------------------------------------------------------------------------------------------


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
    left, out, _ = call(capsys, "--json", "run", "job.toml")
    assert left == code
    assert not says or json.loads(out)["exit_code"] == code
    assert not Path("out/job/job.toml").exists()


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("oops"))
    code, out, err = call(capsys, "run", "job.toml", "--json")
    assert (code, json.loads(out)["problems"]) == (1, ["ZeroDivisionError: oops"])
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


# --- showing ---------------------------------------------------------------------------------------------------------


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


def test_markup_in_a_message_is_only_text() -> None:
    assert shown([(0, Note("[red]x[/] " + "long " * 60))]).count("\n") == 1
    assert shown([(0, Note("[bold]", "warning"))]) == "warning: [bold]\n"


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (125, "2 min 5 s"), (11520, "3 h 12 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(1541376, "1,541,376"), (0.012345, "0.01235"), (True, "True"), ("x", "x")])
def test_numbers(value: object, text: str) -> None:
    assert number(value) == text


# --- the real thing --------------------------------------------------------------------------------------------------

PROBE = """
import sys
from loractl.cli import main
try:
    main(sys.argv[1:])
finally:
    assert 'torch' not in sys.modules
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("check bad.toml", 2),
        ("methods", 0),
        ("new dreambooth", 0),
        ("schema", 0),
        ("infer --help", 0),
        ("run", 2),
    ],
)
def test_torch_is_not_imported(here: Path, words: str, code: int) -> None:
    (here / "bad.toml").write_text('method = "dreambooth"', encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", PROBE, *words.split()], capture_output=True, text=True)
    assert (done.returncode, "AssertionError" in done.stderr) == (code, False)


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "loractl", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"loractl {loractl.__version__}\n")
