"""A grid has the right picture at every place, says so everywhere, and goes on where it stopped to the same bytes."""

import base64
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from loractl_grid.command import grid
from loractl_grid.ranges import numbers
from loractl_grid.run import common
from loractl_grid.shots import BATCH, axes, batches, plan
from loractl_grid.spec import GridSpec
from PIL import Image

from loractl.errors import JobError
from loractl.families.pipeline import load_model
from loractl.formats import save_adapter
from loractl.job import dump_job, read_job
from loractl.method import Method
from loractl.sample.adapted import apply
from loractl.sample.denoise import Request, render
from loractl.tensors.adapter import Adapter
from tests.methods.lab_job import JOBS, run_job
from tests.tensors.updates import random_update

ONE, TWO = (JOBS / f"data/adapters/{name}.safetensors" for name in ("one", "two"))
METHODS: Any = {"grid": Method("grid", "", GridSpec, lambda *_: None)}  # type: ignore[arg-type,return-value]
MODEL: Any = SimpleNamespace(guidance=4.0, resolution=64)
PROMPT = "a picture of a red critter in the snow"


# --- what a person writes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1..4", (1, 2, 3, 4)),
        ("0:1:0.25", (0, 0.25, 0.5, 0.75, 1)),
        ("0:1:0.1", tuple(tenth / 10 for tenth in range(11))),
        ("1:0:-0.5", (1, 0.5, 0)),
        ("0:1:0.4", (0, 0.4, 0.8)),
        ("-1, .5,2..3", (-1, 0.5, 2, 3)),
        ("7..7", (7,)),
    ],
)
def test_a_range_is_its_numbers(text: str, meant: tuple[float, ...]) -> None:
    assert numbers(text) == meant


@examples(deadline=None)
@given(st.integers(-50, 50), st.integers(0, 50), st.integers(1, 9))
def test_ranges_of_whole_numbers_are_whole_and_have_both_ends(first: int, count: int, step: int) -> None:
    last = first + count * step
    found = numbers(f"{first}:{last}:{step}")
    assert found == tuple(range(first, last + 1, step)) and {*map(type, found)} == {int}
    assert numbers(f"{first}..{first + count}") == tuple(range(first, first + count + 1))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "neither a number nor a range"),
        ("1,,2", "neither a number nor a range"),
        ("1e9", "neither a number nor a range"),
        ("nan", "neither a number nor a range"),
        ("0:1", "neither a number nor a range"),
        ("4..1", "no numbers: mind the step"),
        ("0:1:-0.1", "no numbers: mind the step"),
        ("0:1:0", "no numbers: mind the step"),
        ("0..1000", "more than 1000 numbers"),
        ("0:1:0.0000001", "more than 1000 numbers"),
    ],
)
def test_what_is_no_range_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        numbers(text)


def test_the_command_writes_the_job() -> None:
    words = grid(
        x="weight=0:1:0.5",
        y="seed=1..2",
        z=f"adapter={ONE}, {TWO}",
        prompt="a picture of a red critter with horns in the snow",
        steps=10,
    )
    assert words == read_job(JOBS / "grid.toml", METHODS)


def test_a_job_says_its_ranges_as_text_or_as_lists_and_its_paths_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    head = 'method = "grid"\nmodel = "lab"\nsample.prompt = "x"\ngrid.z.checkpoint = ["a.safetensors"]\n'
    specs = []
    for name, axis in (("text", '"0:1:0.5"'), ("list", "[0, 0.5, 1]")):
        (tmp_path / f"{name}.toml").write_text(f'{head}name = "n"\ngrid.x.weight = {axis}\n')
        specs.append(read_job(tmp_path / f"{name}.toml", METHODS))
    assert specs[0] == specs[1]
    (tmp_path / "again.toml").write_text(dump_job(specs[0]))
    again: Any = read_job(tmp_path / "again.toml", METHODS)
    assert again == specs[0] and again.grid.z.checkpoint == (tmp_path / "a.safetensors",)


def test_a_text_with_a_comma_stands_in_quotes() -> None:
    assert grid(x='prompt="a cat, red",a dog').grid.x.prompt == ("a cat, red", "a dog")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"x": "weight=0:1"}, r'^--x: "0:1" is neither a number nor a range'),
        ({"x": "seed=1,1"}, "^--x: 1 is given twice"),
        ({"x": "seed=0.5"}, '^--x: expected a list of whole numbers, found the text "0.5"$'),
        ({"x": "prompt="}, "^--x: an axis needs at least one value$"),
        ({"x": "seed=-1"}, "^--x: .*greater than or equal to 0"),
        ({"x": "seeds=1"}, r"^--x: unknown key; did you mean grid\.x\.seed\?"),
        ({"x": "weight=0,1"}, "an axis of weights needs adapters, or their files along another axis"),
        ({"x": "seed=1", "y": "seed=2"}, "two axes say seed"),
        ({"x": f"adapter={ONE}", "y": f"checkpoint={TWO}"}, "two axes say adapter, or checkpoint, which is the same"),
        ({"x": "adapter=no.safetensors"}, r"^--x: there is no file or folder .*no\.safetensors"),
        ({"x": "seed=1", "prompt": None}, "say what the pictures show"),
    ],
)
def test_what_makes_no_grid_is_refused_before_anything_is_loaded(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(JobError, match=why):
        grid(**{"prompt": PROMPT, **settings})


# --- which pictures those are ----------------------------------------------------------------------------------------


def test_every_place_asks_for_what_its_axes_say() -> None:
    spec = grid(x="steps=2,5", y="prompt=a cat,a dog", z="guidance=1,7", seed=9, size=32)
    shots = plan(spec, MODEL)
    assert [shot.request for shot in shots] == [
        Request(prompt, 9, steps, guidance, 32)
        for guidance in (1, 7)
        for prompt in ("a cat", "a dog")
        for steps in (2, 5)
    ]
    assert shots[1].file == Path("out/grid/pictures/z1-y1-x2.png")
    assert len({shot.file for shot in shots}) == len(shots)
    assert [axis.labels for axis in axes(spec)] == [("2", "5"), ("a cat", "a dog"), ("1", "7")]


def test_a_weight_is_for_the_file_on_an_axis_or_else_for_all() -> None:
    both = plan(grid(x="weight=0,0.5", prompt="x", adapter=[str(ONE), f"{TWO}=0.8"]), MODEL)
    assert [shot.uses for shot in both] == [((ONE, 0.0), (TWO, 0.0)), ((ONE, 0.5), (TWO, 0.5))]
    own = plan(grid(x="weight=0,0.5", y=f"adapter={TWO}", prompt="x", adapter=[f"{ONE}=0.8"]), MODEL)
    assert [shot.uses for shot in own] == [((ONE, 0.8), (TWO, 0.0)), ((ONE, 0.8), (TWO, 0.5))]
    plain = plan(grid(x="seed=1", prompt="x", adapter=[f"{ONE}=0.8"]), MODEL)
    assert [shot.uses for shot in plain] == [((ONE, 0.8),)]


def test_the_page_says_what_its_pictures_have_in_common(tmp_path: Path) -> None:
    def facts(**settings: Any) -> dict[str, object]:
        spec = grid(prompt="a cat", adapter=[f"{ONE}=0.8"], **settings)
        return common(spec, plan(spec, MODEL)[0])

    same = {"model": "lab", "prompt": "a cat", "steps": 25, "guidance": 4.0, "size": 64}
    assert facts(x="seed=1,2", y=f"adapter={TWO}", z="weight=0,1") == {**same, "adapters": "one 0.8"}
    assert facts(x="weight=0,1") == {**same, "seed": 42, "adapters": "one"}
    (tmp_path / "model_index.json").touch()
    assert facts(x="steps=1,2", model=str(tmp_path))["model"] == tmp_path.name


def test_what_is_rendered_together_is_alike_and_nothing_is_left_out() -> None:
    shots = plan(grid(x=f"adapter={TWO},{ONE}", y="steps=2,3", z="seed=1..5", prompt="x"), MODEL)
    groups = batches(shots)
    assert sorted(shot.file for group in groups for shot in group) == sorted(shot.file for shot in shots)
    assert all(len(group) <= BATCH and len({shot.alike() for shot in group}) == 1 for group in groups)
    files = [group[0].uses[0][0] for group in groups]
    assert files == sorted(files), "each adapter is put on once"
    assert batches(shots[::-1]) != [] and len(groups) == 2 * 2 * 2


# --- the lab ---------------------------------------------------------------------------------------------------------


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


def test_the_tables_and_the_page_have_the_pictures(made: tuple[Path, Path, Any]) -> None:
    folder, _, outcome = made
    assert {name: file.name for name, file in outcome.files.items()} == {
        "table-z1": "table-z1.png",
        "page": "grid.html",
    }
    found = re.search(r'id="data">(.*?)</script>', (folder / "grid.html").read_text(encoding="utf-8"))
    assert found
    data = json.loads(found[1])
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


def test_an_adapter_that_has_changed_under_its_name_makes_new_pictures(made: tuple[Path, Path, Any]) -> None:
    folder, file, _ = made
    before = (folder / "pictures/z1-y1-x2.png").read_bytes()
    file.unlink()
    strong(file, 2)
    outcome, _ = run_job(JOBS / "grid.toml", folder, *settings(file))
    assert outcome.numbers["made"] == 6
    assert (folder / "pictures/z1-y1-x2.png").read_bytes() != before
