"""What a step does to adapters, how large things are said to be, and how results come into their folder."""

import resource
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import nn

from loractl.errors import InputError
from loractl.families.family import Family
from loractl.families.pipeline import load_model
from loractl.inject import inject
from loractl.job import override, read_job
from loractl.plugins import load_plugins
from loractl.runs.album import Album
from loractl.runs.parts import LoraPart, put_in_place
from loractl.runs.sizes import whole
from tests.methods.lab_job import JOBS
from tests.runs.test_going_on import run


def lora(*settings: str) -> LoraPart:
    spec: Any = read_job(JOBS / "subject.toml", load_plugins().methods, [override(each) for each in settings])
    return LoraPart(load_model("lab", torch.device("cpu"), torch.float32), spec, spec.adapter)


def test_a_step_leaves_out_what_learns_alone_and_never_walks_through_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    part = lora("adapter.dropout=0.5", "adapter.text_encoder=true", "adapter.max_norm=1.0")

    def walked(_: nn.Module) -> None:
        raise AssertionError("the model was searched for its adapters")

    monkeypatch.setattr(inject, "injected", walked)
    for active in ({"denoiser"}, {"denoiser", "text_encoder"}):
        part.start_step(0, frozenset(active))
        left_out = {name for name, layers in part.layers.items() if any(each.keep is not None for each in layers)}
        assert left_out == {"unet", *(active - {"denoiser"})}
        part.end_step()
        assert all(each.keep is None for layers in part.layers.values() for each in layers)


def test_a_packed_weight_counts_as_many_as_it_computes_with() -> None:
    network = nn.Sequential(nn.Linear(8, 4), nn.Conv2d(3, 2, 3))
    cast(Any, network[0]).weight = nn.Parameter(torch.zeros(16, 1, dtype=torch.uint8), requires_grad=False)
    model: Any = SimpleNamespace(networks={"unet": network})
    assert whole(cast(Family, model)) == 8 * 4 + 4 + 3 * 2 * 9 + 2


def test_a_strangers_network_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    with pytest.raises(InputError, match=r"unet is already there: choose another --out"):
        run("full", tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_an_old_network_goes_when_the_new_one_is_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("new", "unet"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    there = []

    def removing(folder: Path, **_: Any) -> None:
        there.append((folder.exists(), (tmp_path / "unet" / "weights").read_text()))

    monkeypatch.setattr(shutil, "rmtree", removing)
    put_in_place(tmp_path / "new", tmp_path / "unet")
    assert there == [(False, "unet"), (True, "new")]


def test_a_long_runs_pictures_are_not_open_all_at_once(tmp_path: Path) -> None:
    class Studio:
        """Draws gray."""

        def samples(self, *_: Any) -> list[Image.Image]:
            return [Image.new("RGB", (8, 8))]

        def requests(self, *_: Any) -> Sequence[Any]:
            return [SimpleNamespace(prompt="a dog", seed=0)]

    spec: Any = SimpleNamespace(destination=lambda: tmp_path, sample=None)
    album = Album(spec, cast(Any, SimpleNamespace(prompt="a dog")), cast(Any, Studio()))
    for step in range(1, 81):
        album.add(step)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 40, limits[1]))
    try:
        assert {"grid", "progress"} == album.finish().keys()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
