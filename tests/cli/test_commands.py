"""The commands that only answer, and where options may stand."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loractl
from loractl.cli import GLOBAL_OPTIONS, hoist
from loractl.errors import InputError
from tests.cli.calling import call


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
    assert call(capsys, "new", "toy", "--out", "a/b/new.toml")[0] == 0
    assert (here / "a/b/new.toml").read_text() == (here / "new.toml").read_text()
    code, _, err = call(capsys, "check", "new.toml")
    assert code == 2
    assert [line.split(": ")[2] for line in err.splitlines()] == ["model.source", "subject.prompt"]


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


@pytest.mark.parametrize(
    ("text", "minutes"), [("90s", 1.5), ("15m", 15), ("2h", 120), ("1h30m", 90), ("1h1s", 60 + 1 / 60)]
)
def test_max_time_is_a_key_of_the_job(text: str, minutes: float, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "run", "job.toml", "--max-time", text, "--print-job")
    assert (code, tomllib.loads(out)["train"]["max_minutes"]) == (0, minutes)


@pytest.mark.parametrize("text", ["", "2", "90 s", "1.5h", "30m1h", "2d", "-3m", "0s"])
def test_max_time_is_hours_minutes_and_seconds(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "run", "job.toml", "--max-time", text)
    assert (code, err.count("\n"), "error: --max-time: should be " in err) == (2, 1, True)


def test_max_time_is_for_jobs_that_train(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "x.toml").write_text('method = "file"', encoding="utf-8")
    code, _, err = call(capsys, "run", "x.toml", "--max-time", "2h")
    assert (code, err.startswith("error: --max-time: the method file can't go on from where")) == (2, True)
