"""Several processes learn what one learns, leave what one leaves, and end together."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loractl_dreambooth.run import cook as cook_dreambooth
from loractl_pti.run import cook as cook_pti
from safetensors.torch import load_file
from torch import nn

from loractl.errors import DeviceError, InputError, MismatchError
from loractl.events import Event, Facts, Note, Progress
from loractl.job import override, read_job
from loractl.plugins import load_plugins
from loractl.runs import processes
from loractl.runs.processes import helpers
from loractl.runs.recipe import Cook, Recipe
from loractl.runs.training import train
from loractl.sections import TrainingSpec
from loractl.train.stopping import Heard
from loractl.train.team import Team, gathered
from tests.methods.lab_job import JOBS
from tests.runs.test_going_on import SHORT, ctrl_c, results

assert ctrl_c  # a fixture

SPAWN = processes.CONTEXT

# AdamW makes a whole step of a gradient that is all rounding, so the rate is small.
PARALLEL = ("train.steps=3", "train.lr=5e-5", "checkpoint.every=2", "output.dtype=fp32", "prior.num_images=2")
SLICED = ("train.batch_size=2", "train.grad_accum=3", "adapter.dropout=0.1")  # every batch is cut in two
DEALT = ("train.batch_size=2", "train.grad_accum=2", "adapter.text_encoder=true", "data.caption_dropout=0.4")


@pytest.fixture(autouse=True, scope="module")
def quick_start() -> Iterator[None]:
    """Helpers are forks of a server that has imported torch, and has no CUDA to inherit."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["loractl.runs.training", "accelerate", "loractl.families.sd"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "CONTEXT", server)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of them train; runs of one name share a folder, and go on from one another."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def sliced(place: Path) -> Path:
    """What one process makes of the job that two are to slice."""
    run(place / "sliced", *SLICED, cook=watched_dreambooth)
    return place / "sliced"


def run(
    folder: Path,
    *settings: str,
    cook: Cook = cook_dreambooth,
    file: str = "subject.toml",
    interrupt_at: int | None = None,
) -> list[Event]:
    """Trains on the CPU; Ctrl-C comes in the step `interrupt_at`."""
    shared = folder.parent / f"class-{Path(file).stem}"
    where = (f"output.path={folder}", f"prior.images={shared}", "memory.device=cpu")
    layers = [override(each) for each in (*SHORT, *PARALLEL, *settings, *where)]
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.stage == "train" and event.done == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)

    train(read_job(JOBS / file, load_plugins().methods, layers), emit, cook)
    return events


def helps() -> bool:
    """Whether this process was started to help another."""
    return os.environ.get("RANK", "0") != "0"


# The team


def assist(number: int) -> None:
    """What the second process of `test_a_team_…` does; the first does the same with its own numbers."""
    with gathered("cpu") as team:
        exchange(team, number)


def exchange(team: Team, number: int) -> tuple[Heard, torch.Tensor, list[nn.Parameter]]:
    both, one, none = (nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
    both.grad = torch.full((2, 3), float(number))
    if number == 1:
        one.grad = torch.ones(2, 3)
    heard = team.meet(Heard(late=number == 3, checkpoint=False, signal=number))
    loss = team.average(torch.tensor(number / 2), [both, one, none])
    team.require_same(7, [torch.arange(3.0)])
    return heard, loss, [both, one, none]


def test_a_team_hears_what_one_hears_and_has_the_mean_of_all() -> None:
    with helpers(1, assist, 3), gathered("cpu") as team:
        heard, loss, (both, one, none) = exchange(team, 1)
    assert heard == Heard(3, late=True, checkpoint=False) and heard.leaving
    assert loss == (1 / 2 + 3 / 2) / 2
    assert both.grad is not None and both.grad.eq(2).all()
    assert one.grad is not None and one.grad.eq(0.5).all() and none.grad is None
    assert "WORLD_SIZE" not in os.environ


def differ(number: int) -> None:
    with gathered("cpu") as team:
        team.require_same(0, [torch.tensor([1.0, number])])


def test_processes_that_start_apart_are_refused() -> None:
    with pytest.raises(MismatchError, match="2 processes start from different weights"), helpers(1, differ, 2):
        differ(3)


def die() -> None:
    with gathered("cpu"):
        os._exit(9)


def test_a_process_that_is_killed_ends_the_others() -> None:
    with pytest.raises(DeviceError, match="was killed"), helpers(1, die), gathered("cpu") as team:
        team.meet()


def test_a_process_that_can_not_begin_is_told_of() -> None:
    with pytest.raises(DeviceError, match="process 2 of 2 ended before it began"), helpers(1, Unreadable()):
        raise AssertionError


def test_a_process_has_all_it_needs_to_meet_the_others_when_it_says_that_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever dies later, for want of memory as a rule, leaves the first waiting for minutes."""
    monkeypatch.setattr(processes, "CONTEXT", SPAWN)
    before = {process.pid for process in multiprocessing.active_children()}
    with helpers(1, exec, "import os, sys; os._exit('accelerate' not in sys.modules)"):
        (process,) = [each for each in multiprocessing.active_children() if each.pid not in before]
        process.join(60)
        assert process.exitcode == 0


class Unreadable:
    """Can be sent, and not received."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)

    def __call__(self) -> None:
        """Is never reached."""


def test_alone_a_team_changes_nothing() -> None:
    parameter = nn.Parameter(torch.ones(2))
    loss = torch.tensor(3.0)
    assert Team().average(loss, [parameter]) is loss and parameter.grad is None
    assert Team().meet(Heard(2)) == Heard(2)


# The runs


def only_reads(spec: TrainingSpec) -> None:
    """From now on this process fails if it opens, makes or moves anything in the output's folder but to read it."""
    folder = str(spec.destination())

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in ("os.mkdir", "os.rename", "os.remove") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writes and str(arguments[0]).startswith(folder):
            raise AssertionError(f"{event} {arguments}")

    sys.addaudithook(audit)


def watched_dreambooth(spec: TrainingSpec) -> Recipe:
    if helps():
        only_reads(spec)
    return cook_dreambooth(spec)


def watched_pti(spec: TrainingSpec) -> Recipe:
    if helps():
        only_reads(spec)
    return cook_pti(spec)


def test_two_processes_that_slice_batches_make_the_adapter_of_one(sliced: Path, place: Path) -> None:
    events = run(place / "two", *SLICED, "memory.processes=2", cook=watched_dreambooth)
    assert [event.values["processes"] for event in events if isinstance(event, Facts)] == [2]
    assert_same(sliced, place / "two")


def test_two_processes_that_deal_batches_out_make_the_adapter_and_token_of_one(place: Path) -> None:
    """Here not every batch has a gradient for everything: a caption that was dropped has no token."""
    for name, count in (("one", 1), ("many", 2)):
        run(place / name, *DEALT, f"memory.processes={count}", cook=watched_pti, file="pti.toml")
    assert_same(place / "one", place / "many")


def assert_same(one: Path, other: Path) -> None:
    """That two runs left the same files, with the same tensors and numbers in them but for rounding."""
    files, others = results(one), results(other)
    assert files.keys() == others.keys() and "metrics.jsonl" in files
    for name in files:
        if name.endswith(".safetensors"):
            assert_close(one / name, other / name)
    told = [[json.loads(line) for line in each["metrics.jsonl"].splitlines()] for each in (files, others)]
    assert len(told[1]) == 3
    for alone, together in zip(*told, strict=True):
        assert together == pytest.approx(alone, rel=1e-4)


def assert_close(one: Path, other: Path) -> None:
    expected, found = load_file(one), load_file(other)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-5)


def failing(spec: TrainingSpec) -> Recipe:
    """In a helper the second step fails; the loop asks what learns in it once before."""
    recipe, asked = cook_dreambooth(spec), set[int]()

    def active(step: int) -> frozenset[str]:
        if helps() and step == 1 and step in asked:
            raise InputError("a picture went away")
        asked.add(step)
        return recipe.active(step)

    return replace(recipe, active=active)


def test_a_failure_in_one_process_ends_all_with_its_sentence_and_a_checkpoint(place: Path) -> None:
    with pytest.raises(InputError, match=r"^process 2 of 2: a picture went away$"):
        run(place / "broken", *SLICED, "memory.processes=2", cook=failing)
    assert (place / "broken" / "checkpoints" / "latest").read_text().strip() == "step-000001"


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_a_checkpoint_that_one_process_goes_on_from(sliced: Path, place: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as left:
        run(place / "parts", *SLICED, "memory.processes=2", interrupt_at=1)
    assert "after 2 of 3 steps" in left.value.resume  # type: ignore[attr-defined]
    events = run(place / "parts", *SLICED)
    assert any(isinstance(event, Note) and event.text == "going on from step 2 of 3" for event in events)
    assert_same(sliced, place / "parts")


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")  # so does accelerate launch


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "processes"), [(TORCHRUN, 1), ((), 2)], ids=["a launcher", "loractl itself"])
def test_the_command_line_starts_or_joins_processes(
    sliced: Path, tmp_path: Path, launcher: tuple[str, ...], processes: int
) -> None:
    where = (
        f"output.path={tmp_path}",
        f"prior.images={sliced.parent / 'class-subject'}",
        "memory.device=cpu",
        f"memory.processes={processes}",
    )
    settings = [word for each in (*SHORT, *PARALLEL, *SLICED, *where) for word in ("--set", each)]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "loractl", "--json", "run", str(JOBS / "subject.toml"), *settings],
        capture_output=True,
        text=True,
        check=True,
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("started") == kinds.count("finished") == 1
    assert [event["values"]["processes"] for event in events if event["event"] == "facts"] == [2]
    (tmp_path / "job.toml").unlink()
    assert_same(sliced, tmp_path)
