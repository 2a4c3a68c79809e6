"""Prompts read on the CPU, for pictures that are made elsewhere: the same pictures, and each prompt is read once."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from loractl.families.family import Family
from loractl.families.pipeline import load_model
from loractl.sample.canvas import Canvas
from loractl.sample.denoise import Request, pipeline_for
from loractl.sample.reading import KEPT, Reader
from loractl.sample.schedule import Use
from loractl.sample.session import Session
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank
from tests.families.conftest import PROMPT, Folder, load
from tests.families.tiny import PIPELINES
from tests.methods.lab_job import JOBS, run_job

CPU, META = torch.device("cpu"), torch.device("meta")  # the second in a GPU's place; what is there has no numbers
SIDE = 64


def apart(folder: Path, device: torch.device) -> Family:
    return load_model(str(folder), device, torch.float32, texts_on_cpu=True)


def request(model: Family, prompt: str = PROMPT, canvas: Canvas | None = None) -> Request:
    return Request(prompt, 3, 2, model.guidance, SIDE, canvas=canvas)


def devices(said: Any) -> set[torch.device]:
    if isinstance(said, Tensor):
        return {said.device}
    return {device for each in said for device in devices(each)} if isinstance(said, tuple | list) else set()


class Reached(Exception):  # noqa: N818  it is no error
    """The prompt has been read."""


def leave(*_: Any, **__: Any) -> None:
    raise Reached


@contextmanager
def counted(model: Family) -> Iterator[list[str]]:
    """The text encoders that were called."""
    calls: list[str] = []
    hooks = [
        model.networks[name].register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        for name in model.text_encoder_names
    ]
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", PIPELINES)
def test_text_encoders_stay_and_the_others_hear_them_on_the_device(folder: Folder, name: str) -> None:
    model = apart(folder(name), META)
    assert model.device == META and model.text_device == CPU
    for part, network in model.movable.items():
        assert {each.device for each in network.parameters()} == {CPU if part in model.encoders else META}
    assert model.pipeline._execution_device == META
    said: list[Any] = []
    model.pipeline.prepare_latents = leave
    with Session(model) as session:
        answers = session._reader._known
        with pytest.raises(Reached):
            list(session.render([request(model)]))
        said += answers.values()
    assert said and devices(said) == {META}
    with counted(model) as calls, pytest.raises(Reached):
        list(session.render([request(model)]))
    assert not calls, "it was read already"
    model.offloaded = True
    assert model.device == META, "of what stays"


@pytest.mark.parametrize("name", PIPELINES)
def test_pictures_are_the_same(folder: Folder, name: str) -> None:
    made = []
    for model in (load(folder(name)), apart(folder(name), CPU)):
        with Session(model) as session:
            made += [np.asarray(each) for each in session.render([request(model), request(model, "a cat")])]
    assert np.array_equal(made[0], made[2]) and np.array_equal(made[1], made[3])


def test_so_are_those_from_a_picture(folder: Folder) -> None:
    canvas = Canvas(Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)), 0.6)
    made = []
    for model in (load(folder("sd")), apart(folder("sd"), CPU)):
        with Session(model) as session:
            made += [np.asarray(each) for each in session.render([request(model, canvas=canvas)])]
    assert np.array_equal(made[0], made[1])
    other = pipeline_for(apart(folder("sd"), META).pipeline, request(model, canvas=canvas))
    with Reader(apart(folder("sd"), META)).reading(other, ()):
        assert other._execution_device == META


def test_texts_are_read_anew_when_what_reads_them_has_changed(folder: Folder) -> None:
    model = apart(folder("sd"), CPU)
    (path, layer), *_ = (
        (path, each) for path, each in model.components["text_encoder"].named_modules() if path.endswith("v_proj")
    )
    low = LowRank(torch.randn(1, layer.in_features), torch.randn(layer.out_features, 1), 1.0)
    with Session(model) as session, counted(model) as calls:

        def read() -> tuple[bool, Tensor]:
            """Whether anything was, and what the prompt is now."""
            calls.clear()
            list(session.render([request(model)]))
            return bool(calls), next(reversed(session._reader._known.values()))[0]

        anew, plain = read()
        assert anew and not read()[0]
        session.add("one", Adapter({f"text_encoder.{path}": low}))
        anew, adapted = read()
        assert anew and not torch.equal(adapted, plain) and not read()[0]
        session.set_weights({"one": Use(0.5)})
        anew, weaker = read()
        assert anew and not torch.equal(weaker, adapted)
        session.drop("one")
        assert torch.equal(read()[1], plain)


def test_no_more_is_kept_than_is_allowed(folder: Folder) -> None:
    model = apart(folder("sd"), CPU)
    with Session(model) as session:
        for number in range(KEPT + 3):
            list(session.render([request(model, f"number {number}")]))
        assert len(session._reader._known) == KEPT


@pytest.mark.parametrize("job", ["infer", "grid"])
def test_a_job_says_it(job: str, tmp_path: Path) -> None:
    short = ("sample.steps=2",)
    plain, _ = run_job(JOBS / f"{job}.toml", tmp_path / "there", *short)
    here, _ = run_job(JOBS / f"{job}.toml", tmp_path / "here", *short, "memory.text_encoders=cpu")
    for key, file in plain.files.items():
        if file.suffix == ".png":
            assert np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(here.files[key])))
