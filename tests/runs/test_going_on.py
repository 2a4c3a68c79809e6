"""An interrupted run goes on as if nothing had happened, in every method and phase; or says why it can't."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loractl.errors import InputError, MismatchError, NumericsError, Terminated
from loractl.events import Event, Note, Progress, Wrote
from loractl.job import override, read_job
from loractl.plugins import load_plugins
from tests.methods.lab_job import JOBS

SHORT = (
    "train.steps=8",
    "train.batch_size=2",
    "train.ema=0.9",
    "checkpoint.every=2",
    "sample.steps=1",
    "sample.seeds=[0]",
    "sample.prompts=['a critter']",
    "sample.at_start=false",
    "eval.encoders=[]",
)
PRIOR = ("prior.num_images=2",)
RUNS = {
    "dreambooth": ("subject.toml", ("schedule.name=cosine", "adapter.dropout=0.1", *PRIOR)),
    "full": ("naive.toml", ()),
    "ti": ("ti.toml", ("data.crop=random", "sample.every=3")),
    "sequential": ("pti.toml", ("phases.mode=sequential", "phases.token_share=0.5", *PRIOR)),
    "alternating": ("pti.toml", ("phases.mode=alternating", "phases.turn=1", "phases.token_share=0.5", *PRIOR)),
    "joint": ("pti.toml", ("phases.mode=joint", "phases.token_share=0.4", "adapter.text_encoder=true", *PRIOR)),
}


class Killed(BaseException):
    """As kill -9 would: nothing catches it."""


def run(name: str, out: Path, *settings: str, kill_after: int | None = None) -> list[Event]:
    """Runs a job; `kill_after` steps it dies."""
    file, own = RUNS[name]
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.stage == "train" and event.done == kill_after:
            raise Killed

    methods = load_plugins().methods
    spec = read_job(JOBS / file, methods, [override(each) for each in (*SHORT, *own, *settings, f"output.path={out}")])
    with contextlib.suppress(Killed):
        methods[spec.method].run(spec, emit)
    return events


def results(folder: Path) -> dict[str, bytes]:
    """What a run leaves, less its checkpoints."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in found.items() if not name.startswith("checkpoints/")}


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    run(name, tmp_path / "whole")
    run(name, tmp_path / "parts", kill_after=4)
    run(name, tmp_path / "parts", kill_after=7)
    events = run(name, tmp_path / "parts")
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "going on from step 6 of 8" in notes
    whole, parts = results(tmp_path / "whole"), results(tmp_path / "parts")
    assert whole.keys() == parts.keys() and "metrics.jsonl" in whole
    assert [file for file in whole if whole[file] != parts[file]] == []


def test_sampling_on_the_way_does_not_touch_the_training(tmp_path: Path) -> None:
    run("ti", tmp_path / "often", "sample.every=1", "eval.encoders=['lab']", "eval.every=4", "eval.samples=2")
    run("ti", tmp_path / "never")
    often, never = results(tmp_path / "often"), results(tmp_path / "never")
    assert often["metrics.jsonl"] == never["metrics.jsonl"]
    one, two = (load_file(tmp_path / name / "embeddings" / "rex.safetensors") for name in ("often", "never"))
    assert torch.equal(one["emb_params"], two["emb_params"])
    assert "progress.png" in often


def test_a_changed_job_is_judged_key_by_key(tmp_path: Path) -> None:
    run("dreambooth", tmp_path, kill_after=5)
    with pytest.raises(MismatchError, match=r"adapter.rank: 16 → 4"):
        run("dreambooth", tmp_path, "adapter.rank=4")
    with pytest.raises(MismatchError, match="pictures"):
        run("dreambooth", tmp_path, f"data.path={JOBS / 'data' / 'subject' / 'grass.png'}", "data.captions=auto")
    events = run("dreambooth", tmp_path, "train.lr=5e-4", "train.steps=9")
    warnings = [event.text for event in events if isinstance(event, Note) and event.level == "warning"]
    assert warnings == ["the interrupted run goes on with a change: train.lr: 0.001 → 0.0005"]


def test_steps_that_would_move_a_phase_are_refused(tmp_path: Path) -> None:
    run("sequential", tmp_path, kill_after=7)
    with pytest.raises(MismatchError, match=r"train\.steps"):
        run("sequential", tmp_path, "train.steps=20")


def test_overwrite_starts_over_and_never_refuses(tmp_path: Path) -> None:
    run("ti", tmp_path, kill_after=5)
    with pytest.raises(InputError, match="interrupted run"):
        run("ti", tmp_path, "checkpoint.resume=never")
    events = run("ti", tmp_path, "output.overwrite=true")
    assert not [event for event in events if isinstance(event, Note) and "going on" in event.text]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as a terminal has it: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(
    number: signal.Signals, error: type[BaseException], tmp_path: Path
) -> None:
    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "train" and event.done == 3:
            os.kill(os.getpid(), number)

    methods = load_plugins().methods
    settings = (*SHORT, "checkpoint.every=100", f"output.path={tmp_path}")
    spec = read_job(JOBS / "ti.toml", methods, [override(each) for each in settings])
    with pytest.raises(error):
        methods["ti"].run(spec, emit)
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-000003"


def test_sigusr1_makes_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.stage == "train" and event.done == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    methods = load_plugins().methods
    settings = (*SHORT, "checkpoint.every=100", f"output.path={tmp_path}")
    spec = read_job(JOBS / "ti.toml", methods, [override(each) for each in settings])
    methods["ti"].run(spec, emit)
    assert [event.path.name for event in events if isinstance(event, Wrote) and event.what == "checkpoint"] == [
        "step-000003"
    ]


def test_time_runs_out_at_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run("ti", tmp_path, "train.max_minutes=1e-6", "checkpoint.every=100")
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-000001"


def test_what_is_not_finite_stops_the_run_and_is_explained(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"grass\.png|night\.png|wall\.png|desert\.png"):
        run("ti", tmp_path, "noise.offset=1e30")
    assert "time" in (tmp_path / "stopped.txt").read_text()
    assert not list(tmp_path.glob("*.safetensors"))


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    from loractl.train.lock import lock

    with lock(tmp_path), pytest.raises(InputError, match="in use"):
        run("ti", tmp_path)


def test_nothing_learnt_is_said(tmp_path: Path) -> None:
    events = run("ti", tmp_path, "embedding.lr=1e-12", "embedding.init=a critter")
    warnings = [event.text for event in events if isinstance(event, Note) and event.level == "warning"]
    assert any("nothing was learnt" in text for text in warnings)


def test_the_trace_says_what_moved_when(tmp_path: Path) -> None:
    run("sequential", tmp_path)
    tokens, adapter = json.loads((tmp_path / "trace.json").read_text())
    assert (tokens["steps"], tokens["learning"]) == ([0, 4], ["tokens"])
    assert tokens["moved"]["tokens"] > 0 and tokens["moved"]["denoiser"] == 0
    assert (adapter["steps"], adapter["learning"]) == ([4, 8], ["denoiser"])
    assert adapter["moved"]["tokens"] == 0 and adapter["moved"]["denoiser"] > 0


@pytest.mark.parametrize("claimed", [None, "pti"])
def test_numbers_that_no_run_of_the_method_wrote_are_refused_before_training(
    claimed: str | None, tmp_path: Path
) -> None:
    """They make nothing beside them the run's own either."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n', encoding="utf-8")
    if claimed:
        (tmp_path / ".run").write_text(claimed, encoding="utf-8")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"metrics\.jsonl is already there"):
        run("ti", tmp_path)
    (tmp_path / "rex.learned_embeds.safetensors").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"rex\.learned_embeds\.safetensors is already there"):
        run("ti", tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_strangers_file_is_refused_before_training_and_an_own_one_replaced(tmp_path: Path) -> None:
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "embeddings" / "rex.safetensors").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"rex\.safetensors is already there"):
        run("ti", tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    run("ti", tmp_path / "own", "checkpoint.every=100")
    run("ti", tmp_path / "own", "checkpoint.every=100")  # as if it had been killed just before its end
