"""What a job of pictures writes: from a picture, from files of prompts, in parts, with previews, and what it tells."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loractl_infer import run
from loractl_infer.command import infer
from loractl_infer.run import Easel
from loractl_infer.shots import plan
from PIL import Image

from loractl.errors import InputError, JobError, MismatchError
from loractl.events import Event, Progress, Wrote
from loractl.families.pipeline import LAB, load_model
from loractl.families.sd import StableDiffusion
from loractl.formats import save_adapter
from loractl.formats.safefile import data_hash
from loractl.job import dump_job, read_job
from loractl.method import Outcome
from loractl.plugins import load_plugins
from loractl.sample.denoise import Request
from loractl.sample.picture import is_made, save_png, settings_texts, sheet
from loractl.tensors.adapter import Adapter
from tests.methods.lab_job import JOBS, run_job
from tests.sample.models import random_adapter
from tests.tiny import tiny_sd

REPAINT = JOBS / "repaint.toml"
FEW = ("sample.steps=2", "sample.prompts=['a red critter']", "sample.seeds=[1]", "sample.preview_every=1")
GRASS, HEAD = JOBS / "data/subject/grass.png", JOBS / "data/masks/head.png"


def made(outcome: Outcome, prompt: str = "a-red-critter", index: int = 0, seed: int = 1) -> Image.Image:
    return Image.open(outcome.files[f"{index:04d}-{prompt}-s{seed}"])


def run_infer(out: Path, *prompts: str, **options: Any) -> tuple[Outcome, list[Event]]:
    spec, events = infer([*prompts], out=out, steps=2, **options), list[Event]()
    return load_plugins().methods["infer"].run(spec, events.append), events


def test_the_example_repaints_what_its_mask_says(tmp_path: Path) -> None:
    outcome, events = run_job(REPAINT, tmp_path, *FEW)
    picture, start = np.asarray(made(outcome)), Image.open(GRASS).convert("RGB").resize((64, 64), 1)
    kept = np.asarray(Image.open(HEAD).convert("L").resize((64, 64), 1)) < 128
    assert (picture[kept] == np.asarray(start)[kept]).all() and (picture[~kept] != np.asarray(start)[~kept]).any()
    strip = tmp_path / "previews" / "0000-a-red-critter-s1.png"
    assert {"preview", "picture", "sheet"} == {event.what for event in events if isinstance(event, Wrote)}
    assert outcome.files["preview-0000-a-red-critter-s1"] == strip and Image.open(strip).width > 2 * 128
    told = json.loads(made(outcome).info["loractl"])
    assert told["mask"] == {"name": "head.png", "sha256": hashlib.sha256(HEAD.read_bytes()).hexdigest()}
    assert (told["strength"], told["paste_edge"], told["scheduler"]) == (1.0, 2, "DPM++ 2M")


def test_a_picture_to_start_from_shortens_the_run_and_its_trace(tmp_path: Path) -> None:
    model: Any = load_model("lab", torch.device("cpu"), torch.float32)
    save_adapter(tmp_path / "a.safetensors", random_adapter(model), "diffusers", name="a")
    use = f"{tmp_path / 'a.safetensors'}=0.01@0.0:0,1.0:1"
    outcome, events = run_infer(tmp_path / "out", "a red critter", image=GRASS, strength=0.5, seed=["1"], adapter=[use])
    assert [(event.done, event.total) for event in events if isinstance(event, Progress)] == [(1, 1)]
    (run,) = json.loads(outcome.files["trace"].read_text())["runs"]
    assert [(turn["step"], turn["fraction"], turn["weights"]) for turn in run["turns"]] == [(0, 0, {"a": 0.0})]


def test_prompts_come_from_a_file_and_seeds_from_ranges(tmp_path: Path) -> None:
    """The job that is kept says them itself."""
    (tmp_path / "prompts.txt").write_text("# mine\n\na blue house \n  a cup, <not a tag>\n", encoding="utf-8-sig")
    spec = infer(["a cat"], prompts_file=tmp_path / "prompts.txt", seed=["5..7", "1,9"])
    assert spec.sample.prompts == ("a cat", "a blue house", "a cup, <not a tag>")
    assert spec.sample.seeds == (5, 6, 7, 1, 9) and spec.sample.prompts_file is None
    (tmp_path / "none.txt").write_text("# nothing\n")
    with pytest.raises(JobError, match=r"--prompts-file: .*none\.txt has no prompts"):
        infer(prompts_file=tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"scheduler": "eulr"}, "--scheduler: there is no scheduler .eulr.; did you mean euler?"),
        ({"strength": 0.5}, r"--strength: it needs sample\.image"),
        ({"image": GRASS, "paste_edge": 2}, r"--paste-edge: it needs sample\.mask"),
        ({"image": GRASS, "strength": 0.01}, "strength 0.01 leaves none of 25 steps"),
        ({"seed": ["5.."]}, '--seed: "5.." is neither a number nor a range'),
        ({"seed": ["0.5"]}, "--seed"),
        ({"clip_skip": 0}, "--clip-skip"),
        ({"size": "96x"}, '--size: "96x" is no size: give pixels, as 512, or 768x512 for width and height'),
        ({"size": "0"}, '--size: "0" is no size'),
    ],
)
def test_what_cannot_be_meant_is_told_before_anything_is_loaded(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(JobError, match=problem):
        infer(["a cat"], **options)


def test_pictures_that_do_not_fit_are_told(tmp_path: Path) -> None:
    Image.new("L", (10, 10)).save(tmp_path / "small.png")
    with pytest.raises(InputError, match=r"small\.png has 10 × 10 pixels and its picture 256 × 256"):
        run_infer(tmp_path / "out", "a cat", image=GRASS, mask=tmp_path / "small.png")
    with pytest.raises(MismatchError, match=r"a multiple of 8 pixels: set sample\.size = 96x56, not 96x60"):
        run_infer(tmp_path / "out", "a cat", size="96x60")


def test_a_picture_may_be_wider_than_high(tmp_path: Path) -> None:
    """From a text, from a part of a picture and in a mask; the sheet keeps its shape."""
    Image.new("RGB", (200, 100), "red").save(tmp_path / "red.png")
    Image.new("L", (200, 100), 255).save(tmp_path / "all.png")
    red: dict[str, Any] = {"image": tmp_path / "red.png"}
    for options in ({}, red, {**red, "mask": tmp_path / "all.png"}):
        outcome, _ = run_infer(tmp_path / "out", "a red critter", size="96x64", seed=["1"], overwrite=True, **options)
        picture = made(outcome)
        assert picture.size == (96, 64) and parsed(picture.info["parameters"])["Size"] == "96x64"
        assert json.loads(picture.info["loractl"])["size"] == [96, 64]
    sheet = np.asarray(Image.open(outcome.files["sheet"]))
    rows, columns = np.nonzero((sheet[26:] != 255).any(-1))
    assert np.ptp(columns) + 1 == 128 and np.ptp(rows) + 1 == 85


@pytest.mark.parametrize(("said", "kept"), [("64", 64), ("96x64", "96x64"), ("64x64", 64)])
def test_a_square_is_said_by_its_side(said: str, kept: int | str, tmp_path: Path) -> None:
    spec = infer(["a cat"], size=said)
    assert spec.sample.size == kept
    (tmp_path / "job.toml").write_text(dump_job(spec))
    assert read_job(tmp_path / "job.toml", load_plugins().methods) == spec


def test_a_model_for_inpainting_always_has_a_mask() -> None:
    """All white where the job has none."""
    model = StableDiffusion(tiny_sd(in_channels=9, out_channels=4), torch.float32)
    cases: list[tuple[dict[str, Any], float]] = [
        ({}, 1.0),
        ({"image": GRASS}, 0.75),
        ({"image": GRASS, "mask": HEAD}, 0.75),
    ]
    for options, strength in cases:
        canvas = plan(infer(["a cat"], **options), model)[0].request.canvas
        assert canvas and canvas.mask and canvas.strength == strength
        assert canvas.mask.size == canvas.picture.size == (64, 64)
        assert (canvas.mask.getextrema() == (255, 255)) is ("mask" not in options)


def test_an_interrupted_run_makes_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit what it would have made in one go; the sheet shows all."""
    prompts, options = ("a red critter", "a blue house"), {"seed": ["1..3"], "guidance": 1.0}
    whole, _ = run_infer(tmp_path / "whole", *prompts, **options)
    render, calls = Easel._render, list[int]()

    def stopping(easel: Easel, *arguments: Any) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        render(easel, *arguments)

    monkeypatch.setattr(Easel, "_render", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_infer(tmp_path / "parts", *prompts, **options)
    assert len([*(tmp_path / "parts").glob("0*.png")]) == 4
    monkeypatch.setattr(Easel, "_render", render)
    (tmp_path / "parts" / whole.files["0001-a-red-critter-s2"].name).unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("0*.png")}
    parts, events = run_infer(tmp_path / "parts", *prompts, **options)
    assert parts.numbers == {"pictures": 6, "made": 3}
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("0*.png")}
    assert before.items() <= after.items() and len(after) == 6
    assert {path.read_bytes() for path in parts.files.values()} == {path.read_bytes() for path in whole.files.values()}
    again, events = run_infer(tmp_path / "parts", *prompts, **options)
    assert again.numbers["made"] == 0 and not [event for event in events if isinstance(event, Progress)]


def test_another_model_of_the_same_name_makes_other_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And --overwrite all of them anew; of many pictures no file is left open for the sheet."""
    drawn = list[Any]()
    monkeypatch.setattr(run, "sheet", lambda rows, cell: drawn.extend(rows[0][1]) or sheet(rows, cell))
    one, two = (shutil.copytree(LAB, tmp_path / name / "model") for name in ("exp1", "exp2"))
    counts = []
    for model, overwrite in ((one, None), (one, None), (one, True), (two, None)):
        options: dict[str, Any] = {"model": str(model), "seed": ["1"], "guidance": 1.0, "overwrite": overwrite}
        outcome, _ = run_infer(tmp_path / "out", "a red critter", **options)
        counts.append(outcome.numbers["made"])
    assert counts == [1, 0, 1, 1]
    assert str(tmp_path) not in made(outcome).info["loractl"]
    assert len(drawn) == 4 and not any(getattr(each, "fp", None) for each in drawn)


def test_minimal_metadata_tell_the_version_alone(tmp_path: Path) -> None:
    outcome, _ = run_job(JOBS / "infer.toml", tmp_path, *FEW[:3], "output.metadata=minimal")
    assert {*made(outcome).info} == {"loractl.version"}


# --- what A1111 and its kin read --------------------------------------------------------------------------------------

# As A1111's `parse_generation_parameters` takes the last line apart.
FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def parsed(parameters: str) -> dict[str, str]:
    *_, last = parameters.split("\n")
    fields = {name: json.loads(value) if value.startswith('"') else value for name, value in FIELD.findall(last)}
    assert len(fields) >= 6
    return fields


def test_a_picture_tells_who_took_part_as_a1111_does(tmp_path: Path) -> None:
    model: Any = load_model("lab", torch.device("cpu"), torch.float32)
    lora, rex, tom = (tmp_path / f"{name}.safetensors" for name in ("a, b", "Rex", "Tom"))
    save_adapter(lora, random_adapter(model), "diffusers", name="a")
    for file in (rex, tom):
        save_adapter(file, Adapter({}, {}, {"text_encoder.t": torch.ones(2, 96)}), "a1111", name="t")
    options = {"seed": ["1"], "negative": "Rex", "clip_skip": 2, "scheduler": "DPM++ 2M Karras"}
    outcome, _ = run_infer(tmp_path / "out", "a red critter", adapter=[f"{lora}=0.5", str(rex), str(tom)], **options)
    info = made(outcome).info
    prompt, negative, _ = info["parameters"].split("\n")
    assert prompt == "a red critter <lora:a, b:0.5>" and negative == "Negative prompt: Rex"
    fields = parsed(info["parameters"])
    assert fields["Lora hashes"] == f"a, b: {data_hash(lora)[:12]}"
    assert fields["TI hashes"] == f"Rex: {hashlib.sha256(rex.read_bytes()).hexdigest()[:12]}", "Tom is in no text"
    assert (fields["Sampler"], fields["Clip skip"], fields["Size"]) == ("DPM++ 2M Karras", "2", "64x64")
    told = json.loads(info["loractl"])
    assert [file["name"] for file in told["files"]] == ["a, b.safetensors", "Rex.safetensors", "Tom.safetensors"]
    assert told["files"][0]["sha256"] == hashlib.sha256(lora.read_bytes()).hexdigest()
    assert told["clip_skip"] == 2 and str(tmp_path) not in info["parameters"] + info["loractl"]


def test_only_a_whole_picture_of_the_same_settings_is_made(tmp_path: Path) -> None:
    texts = settings_texts(Request("a cat: big", 1, 2, 3.0, 64), "/home/me/models/mine: 2", {}, "DDIM")
    assert parsed(texts["parameters"])["Model"] == "mine: 2" and "/home" not in "".join(texts.values())
    file = save_png(tmp_path / "a.png", Image.new("RGB", (64, 64)), texts)
    assert is_made(file, texts) and not is_made(file, {"loractl.version": "1"})
    assert not is_made(file, texts | {"loractl": texts["loractl"].replace("64", "32")})
    file.write_bytes(file.read_bytes()[:-60])
    assert not is_made(file, texts) and not is_made(tmp_path / "b.png", texts)
