"""A grid has the right picture at every place, says so everywhere, and goes on where it stopped to the same bytes."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loractl_grid import run
from loractl_grid.spec import GridSpec
from PIL import Image

from loractl.families.pipeline import load_model
from loractl.formats import save_adapter
from loractl.job import read_job
from loractl.method import Method
from loractl.sample.adapted import apply
from loractl.sample.axes import draw_table
from loractl.sample.denoise import Request, render
from loractl.sample.schedule import Schedule, Use
from loractl.sample.session import Session
from loractl.tensors.adapter import Adapter
from tests.methods.lab_job import JOBS, run_job
from tests.tensors.updates import random_update

METHODS: Any = {"grid": Method("grid", "", GridSpec, lambda *_: None)}  # type: ignore[arg-type,return-value]
PROMPT = "a picture of a red critter in the snow"


def strong(file: Path, seed: int) -> Path:
    """An adapter that anyone can see."""
    blocks = ("down_blocks.0", "up_blocks.1")
    model = load_model("lab", torch.device("cpu"), torch.float32)
    paths = [f"unet.{block}.resnets.0.conv1" for block in blocks]
    shapes = [tuple(model.components["unet"].get_submodule(path[5:]).weight.shape) for path in paths]
    modules = {path: random_update(shape, 4, 1.0, seed) for path, shape in zip(paths, shapes, strict=True)}
    save_adapter(file, Adapter(modules), "kohya", name="strong")
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """The folder of a finished grid, the adapter of it, and the outcome."""
    folder = tmp_path_factory.mktemp("grid")
    file = strong(folder / "strong.safetensors", 1)
    outcome, _ = run_job(JOBS / "grid.toml", folder / "out", *settings(file))
    return folder / "out", file, outcome


def settings(file: Path) -> tuple[str, ...]:
    return (f'grid.z.adapter=["{file}"]', 'grid.x.weight="0,0.5"', 'grid.y.seed="1..3"', "sample.steps=2")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def data_of(folder: Path) -> Any:
    """What the page shows."""
    found = re.search(r'id="data">(.*?)</script>', (folder / "grid.html").read_text(encoding="utf-8"))
    assert found
    return json.loads(found[1])


def test_each_picture_is_that_of_its_weight_and_seed(made: tuple[Path, Path, Any]) -> None:
    folder, file, outcome = made
    model = load_model("lab", torch.device("cpu"), torch.float32)
    apply(model, file, "mine", 0.5)
    spec: Any = read_job(JOBS / "grid.toml", METHODS)
    (right,) = render(model.pipeline, [Request(spec.sample.prompt, 3, 2, model.guidance, 64)])
    found, plain = (Image.open(folder / f"pictures/z1-y3-x{x}.png") for x in (2, 1))
    assert np.abs(np.asarray(found, int) - np.asarray(right, int)).max() <= 1
    assert np.abs(np.asarray(plain, int) - np.asarray(right, int)).max() > 10
    assert outcome.numbers == {"pictures": 6, "made": 6}
    told = json.loads(found.info["loractl"])
    assert (told["seed"], told["steps"], told["adapters"]) == (3, 2, {"strong": 0.5})
    assert "<lora:strong:0.5>" in found.info["parameters"]


def test_each_picture_follows_its_schedule(tmp_path: Path) -> None:
    """Off in the second of two steps is another picture than on, or off, all along."""
    file = strong(tmp_path / "strong.safetensors", 1)
    job = tmp_path / "grid.toml"
    job.write_text(
        f'method = "grid"\nmodel = "lab"\nadapters = [{{ path = "{file}", weight = 0.5 }}]\nseed = 3\n'
        f'[grid]\nx.schedule = "1/0:1,0.6:0/0"\n[sample]\nprompt = "{PROMPT}"\nsteps = 2\n'
    )
    run_job(job, tmp_path / "out")
    files = [tmp_path / f"out/pictures/z1-y1-x{x}.png" for x in (1, 2, 3)]
    model = load_model("lab", torch.device("cpu"), torch.float32)
    with Session(model) as session:
        session.add("a", file, Use(0.5, Schedule(((0.0, 1.0), (0.6, 0.0)))))
        (right,) = session.generate(PROMPT, seeds=[3], steps=2)
    on, found, off = (np.asarray(Image.open(each), int) for each in files)
    assert np.abs(found - np.asarray(right, int)).max() <= 1
    assert min(np.abs(found - other).max() for other in (on, off)) > 10
    assert json.loads(Image.open(files[1]).info["loractl"])["files"][0]["schedule"] == "0:1,0.6:0"


def test_the_tables_and_the_page_have_the_pictures(made: tuple[Path, Path, Any]) -> None:
    folder, _, outcome = made
    assert {name: file.name for name, file in outcome.files.items()} == {
        "table-z1": "table-z1.png",
        "page": "grid.html",
    }
    data = data_of(folder)
    files = [folder / f"pictures/z1-y{y}-x{x}.png" for y in (1, 2, 3) for x in (1, 2)]
    assert [base64.b64decode(text) for text in data["pictures"]] == [file.read_bytes() for file in files]
    assert [axis["labels"] for axis in data["axes"]] == [["0", "0.5"], ["1", "2", "3"], ["strong"]]
    assert data["facts"]["model"] == "lab" and "seed" not in data["facts"]
    table = np.asarray(Image.open(folder / "table-z1.png"))
    last = np.asarray(Image.open(files[-1]).resize((128, 128), Image.Resampling.NEAREST))
    assert np.array_equal(table[-136:-8, -136:-8], last)


def test_what_was_stopped_goes_on_to_the_same_bytes(made: tuple[Path, Path, Any]) -> None:
    """One picture is missing, one is torn, one is of other settings; the rest is not made again."""
    folder, file, _ = made
    before, pictures = contents(folder), folder / "pictures"
    kept = pictures / "z1-y3-x1.png"
    stamp = kept.stat().st_mtime_ns
    (pictures / "z1-y1-x1.png").unlink()
    (pictures / "z1-y2-x1.png").write_bytes(before["pictures/z1-y2-x1.png"][:2000])
    (pictures / "z1-y2-x2.png").write_bytes(before["pictures/z1-y2-x1.png"])
    outcome, _ = run_job(JOBS / "grid.toml", folder, *settings(file))
    assert outcome.numbers == {"pictures": 6, "made": 3}
    assert contents(folder) == before
    assert kept.stat().st_mtime_ns == stamp


def test_what_is_overwritten_is_made_again(made: tuple[Path, Path, Any]) -> None:
    """To the same bytes; and of many pictures no file is left open for the tables."""
    folder, file, _ = made
    before = contents(folder)
    with pytest.MonkeyPatch.context() as patch:
        drawn = list[Any]()
        patch.setattr(run, "draw_table", lambda x, y, each, *more: drawn.extend(each) or draw_table(x, y, each, *more))
        outcome, _ = run_job(JOBS / "grid.toml", folder, *settings(file), "output.overwrite=true")
    assert outcome.numbers == {"pictures": 6, "made": 6} and contents(folder) == before
    assert len(drawn) == 6 and not any(getattr(each, "fp", None) for each in drawn)


def test_minimal_metadata_tell_the_version_alone(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    few = (*settings(made[1])[:1], "grid.x.weight=[0.5]", "grid.y.seed=[1]", "sample.steps=1")
    run_job(JOBS / "grid.toml", tmp_path, *few, "output.metadata=minimal")
    assert {*Image.open(tmp_path / "pictures/z1-y1-x1.png").info} == {"loractl.version"}
    assert data_of(tmp_path)["facts"] == {}


def test_an_adapter_that_has_changed_under_its_name_makes_new_pictures(made: tuple[Path, Path, Any]) -> None:
    folder, file, _ = made
    before = (folder / "pictures/z1-y1-x2.png").read_bytes()
    file.unlink()
    strong(file, 2)
    outcome, _ = run_job(JOBS / "grid.toml", folder, *settings(file))
    assert outcome.numbers["made"] == 6
    assert (folder / "pictures/z1-y1-x2.png").read_bytes() != before
