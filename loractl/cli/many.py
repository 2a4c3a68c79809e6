"""Many jobs by one command: each in a process of its own, here one after the other or spread over a Ray cluster.

A job that fails does not stop the others. All are read before the first is run, and travel as what they resolve to, so
a worker elsewhere needs only the files that they name, under the same paths.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from loractl.errors import JobError, LoractlError, PluginError, Terminated, did_you_mean
from loractl.events import Note
from loractl.job import dump_job
from loractl.specs import Spec

BOUND = "import ctypes, signal; ctypes.CDLL(None).prctl(1, signal.SIGKILL); from loractl.cli import main; main()"
"""The command line in a process that Linux ends with the one that started it: a job must not live on when its worker is
killed, and keep the retried one out of its folder.
"""

COMMAND = (sys.executable, *(("-c", BOUND) if sys.platform == "linux" else ("-m", "loractl")))
DIED = LoractlError.exit_code
"""The code of a job whose process was killed each time it was started."""


@dataclass(frozen=True)
class Errand:
    """A resolved job, as TOML, where its result goes, and the folder it is run from."""

    name: str
    job: str
    destination: Path
    folder: Path


@dataclass(frozen=True)
class Result:
    """How a job ended: its exit code, what went wrong if anything did, the numbers it measured, and its warnings as
    events.
    """

    name: str
    code: int
    seconds: float
    destination: Path
    problems: Sequence[str] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[Mapping[str, Any]] = ()


Work = Callable[[Errand, int], Result]  # (errand, retries)
Hear = Callable[[str, Mapping[str, Any]], None]  # (a job's name, one of its events as JSON values)


def _deaf(name: str, event: Mapping[str, Any]) -> None:
    """Hears nothing."""


class Executor(Protocol):
    def __call__(self, given: Sequence[Errand], retries: int, gpus: float | None, hear: Hear, /) -> Iterator[Result]:
        """The result of each as soon as it is there; `gpus` are for each. Of what runs elsewhere the warnings are
        heard, and when it has ended.
        """


@dataclass(frozen=True)
class Many:
    """What `loractl run` returns for several jobs."""

    errands: Sequence[Errand]
    executor: str = "local"
    retries: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise JobError(f'--executor: there is no "{self.executor}"; {did_you_mean(self.executor, EXECUTORS)}')

    def results(self, hear: Hear = _deaf) -> Iterator[Result]:
        """Carries the jobs out; each result as soon as it is there. `hear` is told of their events, of jobs that run
        elsewhere of warnings alone.
        """
        return EXECUTORS[self.executor](self.errands, self.retries, self.gpus, hear)


def errands(specs: Iterable[Spec]) -> list[Errand]:
    """Raises JobError where two jobs would write to one place."""
    found: dict[Path, Errand] = {}
    for spec in (each.resolved() for each in specs):
        place = spec.destination()
        if place in found:
            raise JobError(f"two jobs write to {place}: give one of them another name or output.path")
        found[place] = Errand(spec.name, dump_job(spec), place, Path.cwd())
    return list(found.values())


def worst(results: Iterable[Result]) -> int:
    """The exit code for all: the highest."""
    return max((result.code for result in results), default=0)


def carry_out(errand: Errand, retries: int, hear: Hear = _deaf) -> Result:
    """Runs a job in a process of its own. One that is killed is started `retries` times again, and goes on from its
    last checkpoint if its method has such.
    """
    began, warnings = time.monotonic(), list[Mapping[str, Any]]()

    def listen(name: str, event: Mapping[str, Any]) -> None:
        if is_warning(event):
            warnings.append(event)
        hear(name, event)

    for _ in range(retries + 1):
        code, last = _process(errand, listen)
        if code >= 0:
            break
    return replace(_result(errand, code, last, time.monotonic() - began), warnings=tuple(warnings))


def is_warning(event: Mapping[str, Any]) -> bool:
    return (event.get("event"), event.get("level")) == (Note.kind, "warning")


def local(given: Sequence[Errand], retries: int, _: float | None = None, hear: Hear = _deaf) -> Iterator[Result]:
    """One after the other."""
    for errand in given:
        yield carry_out(errand, retries, hear)


def on_ray(
    given: Sequence[Errand], retries: int, gpus: float | None = None, hear: Hear = _deaf, *, work: Work = carry_out
) -> Iterator[Result]:
    """On the Ray cluster of RAY_ADDRESS, or on one that is started on this machine: as many at once as have room, a CPU
    and `gpus` GPUs for each, by default 1 if the cluster has any. Yields them as they end, each when its
    warnings are told.
    """
    ray = _ray()
    mine = not ray.is_initialized()
    if mine:
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    try:
        share = gpus if gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
        task = ray.remote(num_cpus=1, num_gpus=share, max_retries=retries)(work)
        waiting = {task.remote(errand, retries): errand for errand in given}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            result = _received(ray, done, waiting.pop(done))
            for event in result.warnings:
                hear(result.name, event)
            yield result
    finally:
        if mine:
            ray.shutdown()


EXECUTORS: Mapping[str, Executor] = {"local": local, "ray": on_ray}


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise PluginError("--executor ray needs the package ray: pip install 'loractl[ray]'") from error
    return ray


def _received(ray: Any, done: Any, errand: Errand) -> Result:
    try:
        result: Result = ray.get(done)
    except ray.exceptions.RayError as error:
        problem = f"its worker was lost each time ({type(error).__name__}): look at the cluster, and run it again"
        return Result(errand.name, DIED, 0.0, errand.destination, (problem,))
    return result


def line(result: Result) -> str:
    """What is said when a job has ended."""
    return f"{result.name}: {_ended(result)} after {result.seconds:.1f} s"


def table(results: Sequence[Result]) -> str:
    """One line for each job, as plain text."""
    head = ("job", "ended", "time", "result")
    rows = [(r.name, _ended(r), f"{r.seconds:.1f} s", _told(r)) for r in results]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )


def as_json(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "exit_code": result.code,
        "seconds": round(result.seconds, 3),
        "output": str(result.destination),
        "problems": list(result.problems),
        "numbers": dict(result.numbers),
    }


def sentences(result: Result) -> list[str]:
    """All that went wrong in a job, each under its name."""
    return [f"{result.name}: {problem}" for problem in result.problems]


def _ended(result: Result) -> str:
    return "failed" if result.code else "done"


def _told(result: Result) -> str:
    if result.code:
        return f"({result.code}) {result.problems[0].splitlines()[0] if result.problems else 'see above'}"
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in list(result.numbers.items())[:4])
    return f"{result.destination}{f' ({numbers})' if numbers else ''}"


def _process(errand: Errand, hear: Hear) -> tuple[int, Mapping[str, Any]]:
    """Exit code, negative where a signal ended the process, and its last event.

    When this process is asked to stop, the job is too, and has the time it takes to write a checkpoint.
    """
    with _job_file(errand) as file:
        command, last = [*COMMAND, "--json", "run", str(file)], dict[str, Any]()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=errand.folder) as process:
            try:
                for text in process.stdout or ():
                    last = _event(text)
                    hear(errand.name, last)
            except KeyboardInterrupt as stop:
                if isinstance(stop, Terminated):  # Ctrl-C reaches the job by itself
                    process.terminate()
                process.communicate()
                raise
    return process.returncode, last


def _event(text: str) -> dict[str, Any]:
    """Nothing for a line that a killed process left half written."""
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        return {}
    return found


@contextlib.contextmanager
def _job_file(errand: Errand) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        file = Path(folder, f"{errand.name}.toml")
        file.write_text(errand.job, encoding="utf-8")
        yield file


def _result(errand: Errand, code: int, last: Mapping[str, Any], seconds: float) -> Result:
    """From the last event of a run, which is "finished", "error" or, where it was done already, a note."""
    problems = tuple(last.get("problems", ()))
    if code < 0:
        code, problems = DIED, (f"its process was ended by signal {-code} each time",)
    numbers = last.get("numbers", {}) if last.get("event") == "finished" else {}
    return Result(errand.name, code, seconds, errand.destination, problems, numbers)
