"""One file at a time: whatever it holds it ends as a row, the same one in every kind of worker."""

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from loractl.events import Event, Progress
from loractl.prepare.assemble import prepare
from loractl.prepare.caption_rules import Rules
from loractl.prepare.captioning import Wording
from loractl.prepare.checks import Limits
from loractl.prepare.cutting import Cutting
from loractl.prepare.networks import Network
from loractl.prepare.on_ray import on_ray
from loractl.prepare.plan import Plan, Workplace
from loractl.prepare.process import Done, Masking, Recipe, Task, died, process
from loractl.prepare.reading import Passing, Photo, members
from loractl.prepare.table import Row, read_rows
from loractl.prepare.workers import alone, in_processes
from tests.datasets.photos import save_photo

HOSTILE = Path(__file__).parents[1] / "data/hostile-images"
LOOSE = Limits(0, 1000, 0, 0, 1, 0, 1)
RECIPE = Recipe(limits=LOOSE, cutting=Cutting(size=16))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(5):
        save_photo(tmp_path / f"photos/{seed}.png", (40, 24), seed)
    return tmp_path / "photos"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plan(photos: Path, out: Path) -> Plan:
    return Plan("test", photos, out, RECIPE, workplace=Workplace(0))


def quiet(_: Event) -> None:
    """Hears nothing."""


def kills_its_worker(task: Task, recipe: Recipe, out: Path) -> Done:
    if task.name == "3.png":
        os._exit(9)
    return process(task, recipe, out)


# --- every file ends as a row ----------------------------------------------------------------------------------------


def test_every_hostile_file_ends_as_a_row_within_its_memory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = replace(RECIPE, max_pixels=20_000_000)
    tasks = [Task(each.path, each.name) for each in members(HOSTILE) if each.ignored is None]
    rows = [each.row for each in in_processes(partial(process, recipe=recipe, out=tmp_path), tasks, died, 1, 1000)]
    assert sorted(row.source for row in rows) == sorted(task.name for task in tasks) and len(tasks) > 100
    for row in rows:
        assert row.status in ("kept", "unreadable") and "\n" not in row.reason
        assert bool(row.outputs) == (row.status == "kept") and bool(row.reason) == (row.status == "unreadable")
        assert "worker" not in row.reason, f"{row.source}: {row.reason}"
        for output in row.outputs:
            with Image.open(tmp_path / output.file) as picture:
                assert picture.size == output.size and picture.mode == "RGB"
    assert {"kept", "unreadable"} == {row.status for row in rows}
    assert capfd.readouterr().err == "", "no decoder writes to the terminal"


def test_a_file_that_kills_its_worker_costs_no_other(photos: Path, tmp_path: Path) -> None:
    tasks = [Task(each.path, each.name) for each in members(photos)]
    work = partial(kills_its_worker, recipe=RECIPE, out=tmp_path / "out")
    rows = {each.row.source: each.row for each in in_processes(work, tasks, died, 2)}
    assert {name for name, row in rows.items() if row.status == "kept"} == {"0.png", "1.png", "2.png", "4.png"}
    assert "worker process died" in rows["3.png"].reason and rows["3.png"].key == "", "it is tried again"


def test_a_picture_with_more_memory_than_there_is_fails_alone(tmp_path: Path) -> None:
    Image.new("RGB", (6000, 6000)).save(tmp_path / "large.png")
    work = partial(process, recipe=RECIPE, out=tmp_path)
    row = alone(work, Task(tmp_path / "large.png", "large.png"), died, 160).row
    assert row.status == "unreadable" and "memory" in row.reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "it does not fit into the memory"),
        (OSError(errno.EIO, "Input/output error"), "it can't be read: [Errno 5] Input/output error"),
        (OSError(errno.EMFILE, "Too many open files"), "it can't be read"),
    ],
)
@pytest.mark.parametrize("where", ["PIL.ImageFile.ImageFile.load", "PIL.ImageOps.exif_transpose"])
def test_what_the_machine_fails_at_is_tried_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception, said: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    task = Task(photos / "0.png", "0.png")
    with monkeypatch.context() as patch:
        patch.setattr(where, fails)
        row = process(task, RECIPE, tmp_path).row
    assert row.status == "unreadable" and row.reason.startswith(said) and row.key == ""
    assert process(replace(task, known=row), RECIPE, tmp_path).row.status == "kept"


def test_a_broken_file_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    row = process(Task(tmp_path / "a.png", "a.png"), RECIPE, tmp_path).row
    assert row.status == "unreadable" and row.key
    assert not process(Task(tmp_path / "a.png", "a.png", known=row), RECIPE, tmp_path).fresh


def test_a_mask_that_the_machine_failed_at_is_tried_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Photo:
        raise Passing("it can't be read")

    Image.new("L", (40, 24), 255).save(tmp_path / "mask.png")
    task = Task(photos / "0.png", "0.png", tmp_path / "mask.png")
    with monkeypatch.context() as patch:
        patch.setattr("loractl.prepare.masks.read_photo", fails)
        row = process(task, RECIPE, tmp_path).row
    assert row.status == "kept" and row.verdict[0].startswith("mask: its mask mask.png can't be read") and row.key == ""
    again = process(replace(task, known=row), RECIPE, tmp_path).row
    assert not again.verdict and again.outputs[0].mask and again.key


@pytest.mark.parametrize("subject", ["mask", "alpha"])
def test_a_subject_that_cant_be_looked_for_is_noted(tmp_path: Path, subject: Literal["mask", "alpha"]) -> None:
    cover = Image.new("L", (40, 24))
    cover.paste(255, (0, 0, 10, 24))
    cover.save(tmp_path / "mask.png")
    save_photo(tmp_path / "without.png", (40, 24))
    with Image.open(tmp_path / "without.png") as picture:
        picture.putalpha(cover)
        picture.save(tmp_path / "with.png")
    recipe = replace(RECIPE, cutting=Cutting("subject", 16, subject=subject))
    found = process(Task(tmp_path / "with.png", "with.png", tmp_path / "mask.png"), recipe, tmp_path).row
    lacking = process(Task(tmp_path / "without.png", "without.png"), recipe, tmp_path).row
    assert found.outputs[0].crop == (0, 0, 24, 24) and not found.notes
    what = {"mask": "mask", "alpha": "transparency"}[subject]
    assert lacking.notes == (f"no {what} to find the subject by: cut at the center",)
    assert lacking.outputs[0].crop == (8, 0, 32, 24)


# --- the same everywhere ---------------------------------------------------------------------------------------------


def test_workers_make_what_one_process_makes(photos: Path, tmp_path: Path) -> None:
    here = plan(photos, tmp_path / "here")
    prepare(here, quiet)
    prepare(replace(here, out=tmp_path / "there", workplace=Workplace(2)), quiet)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


@pytest.mark.slow
def test_a_cluster_makes_what_one_process_makes(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    here = plan(photos, tmp_path / "here")
    prepare(here, quiet)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        prepare(replace(here, out=tmp_path / "there", workplace=Workplace(1, executor="ray")), quiet)
        assert contents(tmp_path / "here") == contents(tmp_path / "there")
        tasks = [Task(each.path, each.name) for each in members(photos)]
        work = partial(kills_its_worker, recipe=RECIPE, out=tmp_path / "out")
        rows = {each.row.source: each.row for each in on_ray(work, tasks, lambda task: alone(work, task, died))}
        assert len(rows) == 6 and "worker process died" in rows["3.png"].reason
    finally:
        ray.shutdown()


def test_crops_are_where_the_table_says(tmp_path: Path) -> None:
    """Each pixel has its own color, so that a crop tells where it is from."""
    across, down = np.meshgrid(np.arange(64), np.arange(40))
    pixels = np.stack([across * 4, down * 4, across * 0], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    recipe = replace(RECIPE, cutting=Cutting("random", 20, count=4))
    row = process(Task(tmp_path / "a.png", "a.png"), recipe, tmp_path).row
    assert len({output.crop for output in row.outputs}) == 4
    for output in row.outputs:
        left, top, right, bottom = output.crop
        found = np.asarray(Image.open(tmp_path / output.file), float)
        for channel, (first, last) in enumerate(((left, right), (top, bottom))):
            assert abs(found[..., channel].mean() - 4 * (first + last - 1) / 2) < 4


# --- networks --------------------------------------------------------------------------------------------------------


class Stub:
    """A network that takes down what it is asked."""

    def __init__(self, answer: Callable[[Image.Image], object]) -> None:
        self.answer, self.loaded = answer, 0
        self.batches: list[int] = []

    def load(self) -> Callable[[Sequence[Image.Image]], list[object]]:
        self.loaded += 1
        return self.ask

    def ask(self, pictures: Sequence[Image.Image]) -> list[object]:
        self.batches.append(len(pictures))
        return [self.answer(picture) for picture in pictures]


def brightness(picture: Image.Image) -> str:
    return f"of brightness {np.asarray(picture).mean():.2f}"


def test_a_captioner_is_asked_in_batches_and_once(photos: Path, tmp_path: Path) -> None:
    (photos / "1.txt").write_text("a caption of its own")
    stub = Stub(brightness)
    captioner = Network("stub", stub.load, {"model": "a"}, batch_size=3)
    first = replace(plan(photos, tmp_path / "out"), wording=Wording(("sidecar", "captioner")), captioner=captioner)
    events: list[Event] = []
    prepare(first, events.append)
    assert (stub.loaded, stub.batches) == (1, [3, 1])
    rows = read_rows(tmp_path / "out/table.jsonl")
    assert rows["1.png"].outputs[0].caption == "a caption of its own"
    for name, row in rows.items():
        if row.status == "kept" and name != "1.png":
            (output,) = row.outputs
            assert output.caption == brightness(Image.open(tmp_path / "out" / output.file))
            assert output.caption_origin == "captioner stub"
    assert [event.done for event in events if isinstance(event, Progress) and event.stage == "captions"] == [1, 2, 3, 4]
    prepare(replace(first, wording=Wording(("sidecar", "captioner"), rules=Rules(trigger="sks"))), quiet)
    assert stub.loaded == 1, "other rules are no other question"
    assert read_rows(tmp_path / "out/table.jsonl")["0.png"].outputs[0].caption.startswith("sks, of brightness")
    save_photo(photos / "0.png", (40, 24), 9)
    prepare(first, quiet)
    assert stub.batches == [3, 1, 1], "only what is new is asked about"
    prepare(replace(first, captioner=replace(captioner, told={"model": "b"})), quiet)
    assert stub.batches[3:] == [3, 1], "another model is asked about all"


def test_a_masker_sees_what_was_cut_out(photos: Path, tmp_path: Path) -> None:
    stub = Stub(lambda picture: picture.convert("L").point(lambda value: 255 * (value > 100)))
    masker = Network("stub", stub.load, {}, batch_size=4)
    recipe = replace(RECIPE, masking=Masking("network", invert=True))
    first = replace(plan(photos, tmp_path / "out"), recipe=recipe, masker=masker)
    for batches in ([4, 1], [4, 1]):  # the second run asks about nothing
        prepare(first, quiet)
        assert stub.batches == batches
    for row in read_rows(tmp_path / "out/table.jsonl").values():
        (output,) = row.outputs
        gray = np.asarray(Image.open(tmp_path / "out" / output.file).convert("L"))
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / str(output.mask))), 255 * (gray <= 100))


def test_a_caption_file_that_cant_be_read_is_told_once(photos: Path, tmp_path: Path) -> None:
    (photos / "0.txt").write_bytes(b"\xff\xfe\x00")
    for _ in range(2):
        prepare(plan(photos, tmp_path / "out"), quiet)
        rows: dict[str, Row] = read_rows(tmp_path / "out/table.jsonl")
        assert len(rows["0.png"].verdict) == 1 and rows["0.png"].verdict[0].startswith("caption: ")
        assert rows["0.png"].status == "kept"
