"""A fleet on the lab model: each subject's result is that of its own DreamBooth run."""

import contextlib
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import loractl_dreambooth
import loractl_fleet
import pytest
import torch
from loractl_fleet.spec import FleetSpec, FleetSubject
from safetensors.torch import load_file

from loractl.cli.earlier import changes
from loractl.errors import JobError, ScoreError
from loractl.evaluate.report import write_scores
from loractl.evaluate.scores import Score
from loractl.events import Event, Note, Numbers, Progress
from loractl.formats import load_adapter
from loractl.inject.fleet import Fleet
from loractl.job import dump_job, override, read_job
from loractl.method import Outcome
from loractl.runs.fleet import Member
from tests.methods.lab_job import JOBS

METHODS = {
    method.name: method for plugin in (loractl_dreambooth, loractl_fleet) for method in plugin.register_methods()
}
SHORT = (
    "train.steps=4",
    "train.batch_size=2",
    "train.lr=1e-4",  # Adam makes large steps of the smallest gradients, rounding included
    "prior.num_images=3",
    f"prior.images={JOBS / 'data' / 'held-out'}",  # as class pictures, none need be made
    "train.ema=0.9",
    "adapter={targets=['attention', 'resnets.*.conv1'], dropout=0.1, max_norm=2e-3}",
    "checkpoint.every=2",
    "checkpoint.adapters=true",
    "sample.steps=1",
    "sample.seeds=[0]",
    "sample.at_start=false",
    "eval.encoders=[]",
    "output.dtype=fp32",
)
OTHERS = """
[[subjects]]
name = "plain"
seed = 7
data.path = "{jobs}/data/fleet/subject2"
data.flip = true
train = {{ steps = 3, batch_size = 1, grad_accum = 2, lr = 5e-5 }}
schedule = {{ name = "cosine", warmup_steps = 1 }}

[[subjects]]
name = "large"
prompt = "sks monster"
data.path = "{jobs}/data/fleet/subject3"
prior.weight = 0.5
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects who differ in all that may differ."""
    text = (JOBS / "fleet.toml").read_text(encoding="utf-8")
    first = text[: text.index('[[subjects]]\nname = "striped"')].replace("data/subject", f"{JOBS}/data/subject")
    file = tmp_path_factory.mktemp("job") / "fleet.toml"
    file.write_text(first + OTHERS.format(jobs=JOBS), encoding="utf-8")
    return file


def read(job: Path, out: Path, *settings: str) -> FleetSpec:
    spec = read_job(job, METHODS, [override(each) for each in (*SHORT, *settings, f"output.path={out}")])
    assert isinstance(spec, FleetSpec)
    return spec


def run(spec: Any, kill_after: int | None = None) -> tuple[Outcome | None, list[Event]]:
    """Runs a job; `kill_after` steps it dies, as kill -9 would have it."""
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.stage == "train" and event.done == kill_after:
            raise Killed

    with contextlib.suppress(Killed):
        return METHODS[spec.method].run(spec, emit), events
    return None, events


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def together(job: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FleetSpec, Outcome, list[Event]]:
    spec = read(job, tmp_path_factory.mktemp("fleet"))
    outcome, events = run(spec)
    assert outcome is not None
    return spec, outcome, events


def run_alone(spec: FleetSpec, seat: int, folder: Path) -> Outcome:
    """The subject's own job, which is a DreamBooth job."""
    (folder / "solo.toml").write_text(dump_job(spec.solo(spec.subjects[seat])), encoding="utf-8")
    outcome, _ = run(read_job(folder / "solo.toml", METHODS, [override(f"output.path={folder / 'out'}")]))
    assert outcome is not None
    return outcome


@pytest.mark.parametrize("seat", [0, 1, 2])
def test_each_adapter_is_that_of_its_own_run(
    together: tuple[FleetSpec, Outcome, list[Event]], seat: int, tmp_path: Path
) -> None:
    spec, outcome, _ = together
    subject = spec.solo(spec.subjects[seat])
    alone = run_alone(spec, seat, tmp_path)
    one, other = load_file(alone.files["diffusers"]), load_file(outcome.files[f"{subject.name}: diffusers"])
    assert one.keys() == other.keys() and any(bool(one[key].any()) for key in one if "lora_B" in key)
    assert max(float((one[key] - other[key]).abs().max()) for key in one) < 1e-5
    folders = (tmp_path / "out", subject.destination())
    one, other = (load_file(folder / "adapters/step-000002.safetensors") for folder in folders)
    assert max(float((one[key] - other[key]).abs().max()) for key in one) < 1e-5
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in folders]
    losses = [[json.loads(line)["loss"] for line in each] for each in lines]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == subject.train.steps


@pytest.mark.parametrize("at_once", [1, 2])
def test_so_it_is_where_few_go_through_the_model_at_once(
    together: tuple[FleetSpec, Outcome, list[Event]], job: Path, at_once: int, tmp_path: Path
) -> None:
    spec, outcome, _ = together
    groups, seated = list[int](), Fleet.seated

    def watched(fleet: Fleet, counts: list[int]) -> Any:
        groups.append(sum(map(bool, counts)))
        return seated(fleet, counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fleet, "seated", watched)
        other, _ = run(read(job, tmp_path, f"at_once={at_once}"))
    assert other is not None and max(groups) == at_once < len(spec.subjects)
    for subject in spec.subjects:
        one, same = (load_file(each.files[f"{subject.name}: diffusers"]) for each in (outcome, other))
        assert max(float((one[key] - same[key]).abs().max()) for key in one) < 1e-5


def test_so_are_the_text_encoders(job: Path, tmp_path: Path) -> None:
    spec = read(job, tmp_path / "fleet", "train.steps=2", "adapter.text_encoder=true", "train.text_encoder_lr=1e-4")
    outcome, _ = run(spec)
    assert outcome is not None
    one = load_file(run_alone(spec, 2, tmp_path).files["diffusers"])
    other = load_file(outcome.files["large: diffusers"])
    learned = [key for key in one if key.startswith("text_encoder") and "lora_B" in key]
    assert len(learned) == 12 and all(one[key].any() for key in learned)
    assert max(float((one[key] - other[key]).abs().max()) for key in one) < 1e-5


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_subjects_differ(together: tuple[FleetSpec, Outcome, list[Event]]) -> None:
    spec, outcome, events = together
    found = [load_file(outcome.files[f"{subject.name}: diffusers"]) for subject in spec.subjects]
    for one, other in combinations(found, 2):
        assert not any(torch.equal(one[key], other[key]) for key in one)
    norms = [low.delta().norm() for low in load_adapter(outcome.files["large: diffusers"]).modules.values()]
    assert 1.9e-3 < max(norms) < 2.2e-3, "adapter.max_norm binds, and averages of bounded factors are near it"
    told = [event.values for event in events if isinstance(event, Numbers)]
    assert [sorted({key.partition("/")[0] for key in each}) for each in told] == [
        *[["large", "plain", "spotted"]] * 3,
        ["large", "spotted"],
    ]


def test_a_killed_fleet_goes_on_bit_for_bit(
    job: Path, together: tuple[FleetSpec, Outcome, list[Event]], tmp_path: Path
) -> None:
    whole = together[1]
    spec = read(job, tmp_path)
    assert run(spec, kill_after=3)[0] is None
    outcome, events = run(spec)
    assert outcome is not None
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "large: going on from step 2 of 4" in notes and "plain: going on from step 2 of 3" in notes
    for what, path in outcome.files.items():
        assert path.read_bytes() == whole.files[what].read_bytes(), what
    for name in ("spotted", "plain", "large"):
        one, other = (each.destination() / name / "metrics.jsonl" for each in (spec, together[0]))
        assert one.read_bytes() == other.read_bytes()


def test_a_subject_that_misses_its_score_does_not_keep_the_others_from_their_files(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Member.finish

    def miss(member: Member, overwrite: bool) -> Outcome:
        outcome = finish(member, overwrite)
        if member.spec.name == "spotted":
            raise ScoreError("too low")
        return outcome

    monkeypatch.setattr(Member, "finish", miss)
    with pytest.raises(ScoreError, match=r"^spotted: too low$"):
        run(read(job, tmp_path, "train.steps=1"))
    for name in ("spotted", "plain", "large"):
        assert (tmp_path / name / "pytorch_lora_weights.safetensors").is_file()


def test_each_subject_is_judged_by_its_own_scores_and_its_limit_may_change(job: Path, tmp_path: Path) -> None:
    settings = ('eval.encoders=["lab"]', "eval.fail_below.subject_fidelity=0.8")
    spec = read(job, tmp_path, *settings)
    for subject, value in zip(spec.subjects, (0.9, 0.5, 0.8), strict=True):
        scores = Score(value, value, value, 1)
        write_scores(tmp_path / subject.name / "scores.json", {"subject_fidelity": scores}, {})
    assert spec.shortfalls() == ["plain: subject_fidelity is 0.500, below 0.8"]
    (tmp_path / "job.toml").write_text(dump_job(spec), encoding="utf-8")
    lower = read(job, tmp_path, *settings[:1], "eval.fail_below.subject_fidelity=0.4")
    assert (lower.shortfalls(), changes(lower, METHODS)) == ([], [])
    first, *others = lower.subjects
    flipped = first.model_copy(update={"data": first.data.model_copy(update={"flip": True})})
    other = lower.model_copy(update={"subjects": (flipped, *others)})
    assert changes(other, METHODS) == ["subjects[0].data.flip: false → true"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["adapter.kind=full"], 'adapter.kind must be "lora"'),
        (["prior.source=prediction"], 'prior.source must be "images"'),
        (["data.path=."], "each of .* names its own pictures"),
        (["memory.phases=true"], "leave memory.phases out"),
        (["subjects=[]"], "at least 1"),
    ],
)
def test_impossible_fleets_are_refused(job: Path, settings: list[str], problem: str, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=problem):
        read(job, tmp_path, *settings)


def test_what_a_subject_does_not_say_the_job_says(job: Path, tmp_path: Path) -> None:
    spec = read(job, tmp_path, "data.jitter=0.2")
    spotted, plain, large = (spec.solo(subject) for subject in spec.subjects)
    assert (spotted.seed, plain.seed, large.seed) == (42, 7, 42)
    assert [each.train.lr for each in (spotted, plain, large)] == [1e-4, 5e-5, 1e-4]
    assert [each.data.jitter for each in (spotted, plain, large)] == [0.2] * 3
    assert [each.data.flip for each in (spotted, plain, large)] == [False, True, False]
    assert (plain.subject.prompt, large.subject.prompt) == ("a picture of a sks critter", "sks monster")
    assert spotted.prior.images == JOBS / "data" / "held-out"
    (tmp_path / "job.toml").write_text(dump_job(spec), encoding="utf-8")
    assert read_job(tmp_path / "job.toml", METHODS) == spec


def test_subjects_of_one_class_share_its_pictures(tmp_path: Path) -> None:
    spec = read_job(JOBS / "fleet.toml", METHODS, [override(f"output.path={tmp_path}")])
    assert isinstance(spec, FleetSpec)
    assert {spec.solo(subject).prior.images for subject in spec.subjects} == {tmp_path / "_class"}
    other = FleetSpec(**{**dict(spec), "subjects": (spec.subjects[0], renamed(spec.subjects[1], "a toy"))})
    assert {other.solo(subject).prior.images for subject in other.subjects} == {None}


def renamed(subject: FleetSubject, class_prompt: str) -> FleetSubject:
    return subject.model_copy(update={"class_prompt": class_prompt})
