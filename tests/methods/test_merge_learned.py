"""Learned weights: found with pictures, written as a job, and what the merged file has."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from loractl_merge import start
from loractl_merge.blocks import block_of
from loractl_merge.command import merge
from loractl_merge.spec import MergeSpec

from loractl.errors import InputError, JobError, MismatchError
from loractl.events import Event, Facts
from loractl.families.pipeline import load_model
from loractl.formats import load_adapter, save_adapter
from loractl.job import read_job
from loractl.lab.subjects import main as draw_subject
from loractl.method import Outcome
from loractl.plugins import load_plugins
from loractl.sample.adapted import apply
from loractl.sample.denoise import Request, render
from loractl.sample.picture import save_png
from loractl.tensors.adapter import Adapter
from loractl.tensors.algebra import combine, scaled
from loractl.tensors.lowrank import LowRank
from tests.datasets.photos import save_photo
from tests.methods.lab_job import run_job
from tests.tensors.updates import delta, random_update
from tests.tiny import tiny_sd
from tests.train.blending import ADAPTERS

OUTSIDE = "unet.time_embedding.linear_1"  # in no block
ONE = {**ADAPTERS["one"], OUTSIDE: random_update((64, 16), 2, 0.2, 7)}
TWO = ADAPTERS["two"]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a tiny model, two adapters of it and two pictures."""
    tiny_sd().save_pretrained(tmp_path / "model")
    for name, modules in (("one", ONE), ("two", TWO)):
        save_adapter(tmp_path / f"{name}.safetensors", Adapter(modules), "kohya", dtype=torch.float32, name=name)
    for i in range(2):
        save_photo(tmp_path / "pictures" / f"{i}.png", (64, 64), seed=i)
    return tmp_path


def job(world: Path, **more: Any) -> MergeSpec:
    """A short one, with one small picture before and after."""
    learn = {"model": str(world / "model"), "pictures": str(world / "pictures"), "prompt": "a toy", "steps": 3}
    learn |= {"batch_size": 2, "lr": 0.1, "sample": {"seeds": [0], "steps": 1}, **more.pop("learn", {})}
    adapters = more.pop("adapters", [{}, {}])
    paths = [str(world / f"{name}.safetensors") for name in ("one", "two")]
    values = {
        "adapters": [{"path": path, **each} for path, each in zip(paths, adapters, strict=True)],
        "learn": learn,
        "output": {"path": str(world / "out" / "m.safetensors")},
    }
    return MergeSpec.model_validate_json(json.dumps({**values, **more}))


def run(spec: MergeSpec) -> tuple[Outcome, dict[str, Any]]:
    """The outcome, and the table of learned weights."""
    events: list[Event] = []
    outcome = start(spec, events.append)
    table = next(event for event in events if isinstance(event, Facts) and event.title == "learned weights")
    return outcome, dict(table.values)


def again(outcome: Outcome, into: Path) -> bytes:
    """What the job of the weights makes."""
    spec: Any = read_job(outcome.files["weights"], load_plugins().methods)
    moved = spec.output.model_copy(update={"path": into})
    return next(iter(start(spec.model_copy(update={"output": moved}), lambda _: None).files.values())).read_bytes()


def assert_equal(file: Path, wanted: dict[str, LowRank]) -> None:
    found = load_adapter(file).modules
    assert found.keys() == wanted.keys()
    for path, low in wanted.items():
        torch.testing.assert_close(delta(found[path]), delta(low), rtol=1e-5, atol=1e-6)


def test_the_file_has_the_learned_weights_and_the_job_makes_it_again(world: Path) -> None:
    outcome, table = run(job(world, alpha=0.6, learn={"keep": ["a cat", "a dog"]}))
    one, two = table["1: one.safetensors"], table["2: two.safetensors"]
    assert abs(one - 0.6) > 0.01 and abs(two - 0.4) > 0.01, "they have moved from where they started"
    assert_equal(outcome.files["kohya"], combine([ONE, TWO], [one, two]))
    assert again(outcome, world / "again" / "m.safetensors") == outcome.files["kohya"].read_bytes()
    assert outcome.files["pictures"].read_bytes().startswith(b"\x89PNG")


def test_per_block_every_block_has_its_own_and_what_is_in_none_rests(world: Path) -> None:
    outcome, table = run(job(world, learn={"per_block": True}, adapters=[{"weight": 0.5}, {"weight": -2.0}]))
    blocks = {path: block_of(path) for path in (*ONE, *TWO)}
    assert set(table) == {f"1: one.safetensors {blocks[path]}" for path in ONE if path != OUTSIDE} | {
        f"2: two.safetensors {blocks[path]}" for path in TWO
    }
    assert len(set(table.values())) == len(table), "each goes its own way"
    one = {path: scaled(low, table.get(f"1: one.safetensors {blocks[path]}", 0.5)) for path, low in ONE.items()}
    two = {path: scaled(low, table[f"2: two.safetensors {blocks[path]}"]) for path, low in TWO.items()}
    exact = combine([one, two], [1.0, 1.0])
    found = load_adapter(outcome.files["kohya"]).modules
    for path, low in exact.items():  # the table is rounded
        torch.testing.assert_close(delta(found[path]), delta(low), rtol=1e-3, atol=1e-3)
    assert again(outcome, world / "again" / "m.safetensors") == outcome.files["kohya"].read_bytes()


def test_fixed_factors_stay(world: Path) -> None:
    outcome, table = run(job(world, adapters=[{"layers": {"to_v": 0.0}}, {}]))
    one = {path: scaled(low, 0.0 if path.endswith("to_v") else 1.0) for path, low in ONE.items()}
    weights = [table["1: one.safetensors"], table["2: two.safetensors"]]
    assert_equal(outcome.files["kohya"], combine([one, TWO], weights))


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"algorithm": "karcher"}, "learn finds the weights of the plain sum: leave karcher out"),
        ({"learn": {"keep": ["a cat"]}}, "learn.keep has 1 prompts for 2 adapters"),
        ({"learn": {"per_block": True}, "adapters": [{"blocks": "ALL"}, {}]}, "remove blocks from the adapters"),
        ({"learn": {"per_block": True}, "alpha": 1.0}, "begin with weights other than 0"),
    ],
)
def test_what_a_job_cannot_mean_is_refused(world: Path, more: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        job(world, **more)


def test_the_command_writes_the_job(world: Path) -> None:
    files = [world / "one.safetensors", world / "two.safetensors"]
    spec = merge(files, learn=world / "pictures", prompt="a toy", keep=["a cat", "a dog"], per_block=True, steps=9)
    assert spec.learn is not None
    assert (spec.learn.model.source, spec.learn.prompt, spec.learn.steps) == ("lab", "a toy", 9)
    assert (spec.learn.pictures, spec.learn.keep) == (world / "pictures", ("a cat", "a dog"))
    assert spec.learn.per_block
    assert merge(files).learn is None
    with pytest.raises(JobError, match=r"--learn: learn\.prompt: missing"):
        merge(files, learn=world / "pictures")
    with pytest.raises(JobError, match=r"learn\.pictures: missing"):
        merge(files, prompt="a toy")


def test_what_the_model_cannot_learn_with_is_refused(world: Path) -> None:
    spec, one = job(world), world / "one.safetensors"
    modules = {"text_encoder_2.layers.0.fc1": random_update((8, 8), 2, 1.0, 0)}
    save_adapter(one, Adapter(ONE | modules), "diffusers", name="one", overwrite=True)
    with pytest.raises(MismatchError, match="adapts text_encoder_2, which the model to learn with lacks"):
        start(spec, lambda _: None)
    vectors = {"unet.conv_in.bias": torch.ones(16)}
    save_adapter(one, Adapter(ONE, vectors=vectors), "kohya", name="one", overwrite=True)
    with pytest.raises(MismatchError, match="learn is for weights alone"):
        start(spec, lambda _: None)


def test_what_is_there_is_not_replaced(world: Path) -> None:
    spec = job(world)
    there = world / "out" / "m.weights.toml"
    there.parent.mkdir()
    there.write_text("mine")
    with pytest.raises(InputError, match=r"m\.weights\.toml is already there"):
        start(spec, lambda _: None)
    assert [path.name for path in there.parent.iterdir()] == [there.name] and there.read_text() == "mine"


PROMPT = "a picture of a sks critter"
GUIDANCE = 3.0  # it exaggerates what the model says: pictures at 1 give weights that are too small, at 4 too large ones
TEACHER = f"""
method = "dreambooth"
model = "lab"
data.path = "pictures"
subject.prompt = "{PROMPT}"
adapter.rank = 4
train = {{ steps = 150, batch_size = 4, lr = 2e-3 }}
sample = {{ at_start = false, seeds = [0], steps = 1 }}
eval.encoders = []
output = {{ dtype = "fp32", format = ["diffusers"] }}
"""


def trained(folder: Path, subject: str) -> Path:
    """The file of an adapter that has learnt a subject of the lab."""
    draw_subject(folder / "pictures", subject)
    (folder / "job.toml").write_text(TEACHER)
    return run_job(folder / "job.toml", folder / "out")[0].files["diffusers"]


def planted_pictures(adapters: Sequence[Path], weights: Sequence[float], folder: Path) -> Path:
    """What the lab draws with the adapters at these weights."""
    model = load_model("lab", torch.device("cpu"), torch.float32)
    for number, (path, weight) in enumerate(zip(adapters, weights, strict=True)):
        apply(model, path, f"adapter{number}", weight)
    requests = [Request(PROMPT, 7000 + i, 20, GUIDANCE, model.resolution) for i in range(64)]
    for i, picture in enumerate(render(model.pipeline, requests, 32)):
        save_png(folder / f"{i:03}.png", picture)
    return folder


@pytest.mark.slow
def test_planted_weights_are_recovered_from_pictures_alone(tmp_path: Path) -> None:
    """The planted model's pictures, the denoising loss alone, 200 steps of 16 from the plain mean."""
    adapters = [trained(tmp_path / name, name) for name in ("subject", "subject3")]
    pictures = planted_pictures(adapters, (0.7, 0.3), tmp_path / "planted")
    values = {
        "adapters": [{"path": str(path)} for path in adapters],
        "learn": {
            **{"model": "lab", "pictures": str(pictures), "prompt": PROMPT, "batch_size": 16},
            "sample": {"seeds": [0], "steps": 1},
        },
        "output": {"path": str(tmp_path / "m.safetensors")},
    }
    found = list(run(MergeSpec.model_validate_json(json.dumps(values)))[1].values())
    assert found == pytest.approx([0.7, 0.3], abs=0.05)
