"""Many jobs by one command: none stops another, and killed ones are started again."""

import json
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loractl.cli import many
from loractl.cli.many import BOUND, Errand, Many, Result, carry_out, errands, line, local, on_ray, table, worst
from loractl.errors import InputError, JobError
from loractl.job import override, read_job
from tests import toy
from tests.cli.calling import JOB, call

TOY = "import loractl.cli, sys; from tests import toy; loractl.cli.load_plugins = toy.plugins; loractl.cli.main()"
WAITS_AT_FIRST = """
import os, pathlib, sys, time
pids = pathlib.Path("pids")
if sys.argv[-1].endswith("two.toml") and not pids.exists():
    pids.write_text(f"{os.getppid()} {os.getpid()}")
    time.sleep(300)
"""
DIES_AT_FIRST = "import os, pathlib; f = pathlib.Path('died'); f.exists() or (f.touch(), os.kill(os.getpid(), 9)); "


def jobs(here: Path, *names: str) -> list[Errand]:
    """Toy jobs of these names, each with its own number of steps."""
    settings = [[override(f"name={name}"), override(f"train.steps={i + 1}")] for i, name in enumerate(names)]
    return errands(read_job(here / "job.toml", toy.METHODS, each) for each in settings)


@pytest.fixture
def as_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that the tests start have the toy methods."""
    monkeypatch.setattr(many, "COMMAND", (sys.executable, "-c", TOY))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.mark.usefixtures("as_toy")
def test_a_job_that_fails_does_not_stop_the_others(here: Path) -> None:
    one, two, three = jobs(here, "one", "two", "three")
    two.destination.mkdir(parents=True)
    (two.destination / "job.toml").write_text("another job")
    results = list(local([one, two, three], retries=0))
    assert [(each.name, each.code) for each in results] == [("one", 0), ("two", InputError.exit_code), ("three", 0)]
    assert (here / "out/one/toy.txt").read_text() == "42 1\n" and (here / "out/three/toy.txt").read_text() == "42 3\n"
    assert results[0].numbers == {"loss": 0.5} and "is already there" in results[1].problems[0]
    assert worst(results) == InputError.exit_code


@pytest.mark.usefixtures("as_toy")
def test_a_job_whose_process_is_killed_is_started_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "COMMAND", (sys.executable, "-c", DIES_AT_FIRST + TOY))
    (again,) = local(jobs(here, "one"), retries=1)
    assert (again.code, again.numbers) == (0, {"loss": 0.5})
    (here / "died").unlink()
    (dead,) = local(jobs(here, "two"), retries=0)
    assert (dead.code, dead.problems) == (1, ("its process was ended by signal 9 each time",))


def test_two_jobs_for_one_place_are_refused(here: Path) -> None:
    with pytest.raises(JobError, match=r"two jobs write to .*out/same"):
        jobs(here, "same", "same")


def test_an_executor_that_there_is_not_is_refused() -> None:
    with pytest.raises(JobError, match='there is no "rai"; did you mean ray'):
        Many([], "rai")


def test_the_table_has_a_line_for_each_job() -> None:
    results = [
        Result("a", 0, 61.25, Path("/out/a"), numbers={"loss": 0.123456}),
        Result("long name", 5, 0.5, Path("/out/b"), ("the device is out of memory: lower train.batch_size",)),
    ]
    assert table(results).splitlines() == [
        "job        ended   time    result",
        "a          done    61.2 s  /out/a (loss 0.1235)",
        "long name  failed  0.5 s   (5) the device is out of memory: lower train.batch_size",
    ]
    assert line(results[1]) == "long name: failed after 0.5 s"
    assert json.loads(json.dumps(many.as_json(results[1])))["exit_code"] == 5


@pytest.mark.usefixtures("as_toy")
def test_several_jobs_are_one_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        (here / f"{name}.toml").write_text(JOB)
    code, out, _ = call(capsys, "--json", "run", "a.toml", "b.toml")
    *events, told = map(json.loads, out.splitlines())
    assert (code, told["event"]) == (0, "results")
    assert [(each["name"], each["exit_code"]) for each in told["jobs"]] == [("a", 0), ("b", 0)]
    assert (here / "out/b/toy.txt").exists()
    assert [each["job"] for each in events if each["event"] == "finished"] == ["a", "b"]
    code, out, err = call(capsys, "run", "a.toml", "b.toml", "--overwrite")
    assert (code, out.splitlines()[0].split()[0]) == (0, "job")
    assert "a: train 3/3" in err and "b: done" in err


@pytest.mark.usefixtures("as_toy")
def test_warnings_of_each_job_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        (here / f"{name}.toml").write_text(JOB)
    _, _, err = call(capsys, "--quiet", "run", "a.toml", "b.toml")
    told = [text for text in err.splitlines() if "a library prints" not in text]
    assert told == ["warning: a: nothing was learnt", "warning: b: nothing was learnt"]


@pytest.mark.usefixtures("as_toy")
def test_so_are_those_of_jobs_on_ray(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray is one that does its work here and at once."""
    monkeypatch.setattr(many, "_ray", PromptRay)
    for name in "ab":
        (here / f"{name}.toml").write_text(JOB)
    _, _, err = call(capsys, "--quiet", "run", "a.toml", "b.toml", "--executor", "ray")
    told = [text for text in err.splitlines() if "a library prints" not in text]
    assert told == ["warning: a: nothing was learnt", "warning: b: nothing was learnt"]
    _, out, _ = call(capsys, "--json", "run", "a.toml", "b.toml", "--executor", "ray", "--overwrite")
    events = [json.loads(text) for text in out.splitlines()][:-1]
    assert [(each["job"], each["text"]) for each in events] == [(name, "nothing was learnt") for name in "ab"]


class PromptRay:
    exceptions = SimpleNamespace(RayError=OSError)

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {}

    def remote(self, **_: object) -> Any:
        """What Ray pickles between a worker and here is pickled."""
        return lambda work: SimpleNamespace(remote=lambda *args: pickle.dumps(work(*args)))

    def wait(self, waiting: list[bytes], num_returns: int) -> tuple[list[bytes], list[bytes]]:
        return waiting[:num_returns], waiting[num_returns:]

    def get(self, done: bytes) -> Any:
        return pickle.loads(done)


def test_all_that_went_wrong_is_told_whole(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "other.toml").write_text(JOB)
    bad = Result("job", 3, 1.0, here, ("two pictures fail:\na.png\nb.png", "and one more thing"))
    monkeypatch.setitem(many.EXECUTORS, "local", lambda *_: iter([bad, Result("other", 0, 1.0, here)]))
    code, _, err = call(capsys, "--quiet", "run", "job.toml", "other.toml")
    assert (code, err) == (3, "error: job: two pictures fail:\na.png\nb.png\nerror: job: and one more thing\n")
    _, out, err = call(capsys, "--quiet", "--json", "run", "job.toml", "other.toml")
    assert err == "" and [json.loads(text)["event"] for text in out.splitlines()] == ["results"]


def test_all_jobs_are_read_before_the_first_is_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a.toml").write_text(JOB)
    for name in "bc":
        (here / f"{name}.toml").write_text(f"{JOB}stepps = 3\n")
    code, _, err = call(capsys, "run", "a.toml", "b.toml", "c.toml")
    assert code == JobError.exit_code and "b.toml" in err and "c.toml" in err
    assert not (here / "out").exists()


def test_one_job_is_printed_and_no_more(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        (here / f"{name}.toml").write_text(JOB)
    code, _, err = call(capsys, "--print-job", "run", "a.toml", "b.toml")
    assert code == JobError.exit_code and "--print-job" in err


@pytest.mark.slow
def test_ray_brings_all_results_though_a_worker_is_killed(here: Path) -> None:
    """And the killed worker's job does not go on behind the back of the one that does it again."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    given, killed, heard = jobs(here, "one", "two", "three", "four"), list[int](), list[str]()
    root = str(Path(__file__).parents[2])

    def work(errand: Errand, retries: int) -> Result:
        bind, _, _ = BOUND.partition("from")
        many.COMMAND = (sys.executable, "-c", f"{bind}\n{WAITS_AT_FIRST}\n{TOY}")
        os.environ["PYTHONPATH"] = root
        return carry_out(errand, retries)

    def kill() -> None:
        pids = here / "pids"
        while not (pids.exists() and pids.read_text()):
            time.sleep(0.05)
        killed.extend(map(int, pids.read_text().split()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        done = on_ray(given, retries=2, hear=lambda name, event: heard.append(f"{name}: {event['text']}"), work=work)
        results = {result.name: result for result in done}
    finally:
        ray.shutdown()
    killer.join(1)
    assert {name: (result.code, result.problems) for name, result in results.items()} == {
        each.name: (0, ()) for each in given
    }
    assert sorted(heard) == sorted(f"{each.name}: nothing was learnt" for each in given)
    for steps, errand in enumerate(given, 1):
        assert (errand.destination / "toy.txt").read_text() == f"42 {steps}\n"
    assert not Path(f"/proc/{killed[1]}").exists()
