"""A folder becomes a training set: every file is accounted for, and another run does only what has changed."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from loractl_ppim import register_methods, start
from loractl_ppim.command import ppim
from loractl_ppim.run import plan_of
from loractl_ppim.spec import PpimSpec
from PIL import Image

from loractl.cli import execute
from loractl.data.examples import read_examples, survey_examples
from loractl.errors import InputError, JobError
from loractl.events import Event, Facts, Note, Progress
from loractl.job import dump_job, override, read_job
from loractl.plugins import Plugins, load_plugins
from loractl.prepare.captioning import Wording
from loractl.prepare.layouts import Layout
from loractl.prepare.process import Recipe
from loractl.prepare.table import Row, read_rows
from tests.datasets.photos import save_photo
from tests.methods.lab_job import JOBS, run_job
from tests.prepare.models import save_clipseg

METHODS = {method.name: method for method in register_methods()}
HERE = "run.workers=0"
TRAINING = """
method = "dreambooth"
model = "lab"
subject.prompt = "a picture of a sks critter"
train.steps = 2
sample = {steps = 1, seeds = [0], at_start = false}
eval.encoders = []
"""


@dataclass
class Run:
    """What a run left: its rows, numbers and events."""

    out: Path
    numbers: dict[str, float] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def rows(self) -> dict[str, Row]:
        return read_rows(self.out / "table.jsonl")

    def metadata(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "metadata.jsonl").read_text().splitlines()]

    def warnings(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note) and event.level == "warning"]


def run_example(out: Path, *settings: str) -> Run:
    """jobs/ppim.toml, in this process."""
    spec = read_job(JOBS / "ppim.toml", METHODS, [override(each) for each in (HERE, f"output.path={out}", *settings)])
    return carried_out(spec, out)


def carried_out(spec: Any, out: Path) -> Run:
    run = Run(out)
    run.numbers = dict(start(spec, run.events.append).numbers)
    return run


def run_folder(photos: Path, out: Path, *settings: str, **options: Any) -> Run:
    """`loractl ppim photos out`, with pictures small enough for a test."""
    spec: Any = ppim(photos, out, **{"workers": 0, "size": 16, **options})
    job = out.with_suffix(".toml")
    job.write_text(dump_job(spec))
    loose = ("check.min_side=0", "check.min_blur=0", "check.min_contrast=0", "check.min_variety=0")
    return carried_out(read_job(job, METHODS, [override(each) for each in (*loose, *settings)]), out)


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """The hash and the time of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


def hashes(folder: Path) -> dict[str, str]:
    return {name: sha for name, (sha, _) in contents(folder).items()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures that differ."""
    for seed, name in enumerate(("a", "b", "in/c")):
        save_photo(tmp_path / f"photos/{name}.png", (40, 24), seed)
    return tmp_path / "photos"


# --- the job that comes with loractl ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Run:
    before = contents(JOBS / "data/photos")
    run = run_example(tmp_path_factory.mktemp("example") / "out")
    assert contents(JOBS / "data/photos") == before, "the originals are as they were, to the time of their last change"
    return run


def test_every_file_is_accounted_for(example: Run) -> None:
    rows = example.rows()
    files = {path.name for path in (JOBS / "data/photos").iterdir()}
    assert {name: row.status for name, row in rows.items()} == {
        "IMG_0001.JPG": "kept",
        "cut off.jpg": "unreadable",
        "desert.webp": "kept",
        "from the web.jpg": "unreadable",
        "in_the-grass (copy).jpg": "skipped",
        "in_the-grass.jpg": "kept",
        "make.py": "ignored",
        "night.jpg": "skipped",
        "snow.png": "kept",
        "snow.txt": "ignored",
    }
    assert rows.keys() == files
    assert all(row.reason for row in rows.values() if row.status != "kept")
    assert [row.failing for row in rows.values() if row.status == "skipped"] == [
        ("near-duplicate: of in_the-grass.jpg",),
        (rows["night.jpg"].verdict[0],),
    ]
    assert rows["night.jpg"].verdict[0].startswith("blurred: ")
    assert len(example.warnings()) == 4, "what can't be read or fails is told at once"
    told = example.numbers
    assert told["files"] == 10 == told["kept"] + told["skipped"] + told["unreadable"] + told["ignored"]


def test_the_set_is_what_the_metadata_say(example: Run) -> None:
    found = {entry["source"]: entry for entry in example.metadata()}
    assert [entry["file_name"] for entry in found.values()] == [
        *("images/desert.png", "images/IMG_0001.png", "images/in_the-grass.png", "images/snow.png")
    ]
    assert {entry["text"] for entry in found.values()} == {"a picture of a sks critter", "a sks in the snow"}
    assert found["snow.png"]["caption_origin"] == "sidecar"
    top, bottom = found["desert.webp"]["crop"][1], found["desert.webp"]["crop"][3]
    assert top >= 24 and bottom <= 288 - 23, "the bars are cut away"
    for entry in found.values():
        original = JOBS / "data/photos" / entry["source"]
        assert entry["sha256"] == hashlib.sha256(original.read_bytes()).hexdigest()
        with Image.open(example.out / entry["file_name"]) as picture, Image.open(example.out / entry["mask"]) as mask:
            assert list(picture.size) == list(mask.size) == entry["size"] == [128, 128]
            assert picture.mode == "RGB" and mask.mode == "L" and mask.getextrema() == (0, 255)


def test_a_second_run_does_nothing(example: Run) -> None:
    before = contents(example.out)
    again = run_example(example.out)
    assert (again.numbers["prepared"], again.numbers["unchanged"]) == (0, 8)
    assert contents(example.out) == before


def test_a_training_job_reads_the_set(example: Run, tmp_path: Path) -> None:
    examples = read_examples(example.out, "auto", "")
    good, bad = survey_examples(examples)
    assert len(good) == 4 and not bad
    assert all(each.mask for each in good)
    job = tmp_path / "job.toml"
    job.write_text(f'{TRAINING}data.path = "{example.out}"\n')
    outcome, _ = run_job(job, tmp_path / "out")
    assert outcome.files["kohya"].is_file()


def test_hugging_face_loads_the_set(example: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(example.out), cache_dir=str(tmp_path))["train"]
    wanted = example.metadata()
    assert [row["text"] for row in loaded] == [entry["text"] for entry in wanted]
    assert [row["image"].size for row in loaded] == [(128, 128)] * 4
    assert [row["crop"] for row in loaded] == [entry["crop"] for entry in wanted]


# --- only what has changed -------------------------------------------------------------------------------------------


def test_one_more_picture_changes_nothing_of_the_others(photos: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", ("crop.how=random", "crop.count=2", "augment.copies=1", "augment.jitter=0.2")
    run_folder(photos, out, *settings)
    before = contents(out)
    save_photo(photos / "aa.png", (40, 24), 9)
    more = run_folder(photos, out, *settings)
    assert (more.numbers["prepared"], more.numbers["unchanged"]) == (1, 3)
    pictures = {name: told for name, told in before.items() if name.startswith("images/")}
    assert len(pictures) == 12 and pictures.items() <= contents(out).items()
    fresh = run_folder(photos, tmp_path / "fresh", *settings)
    assert hashes(fresh.out) == hashes(out), "the way to it doesn't matter"


def test_what_has_gone_goes_and_what_is_anothers_stays(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_folder(photos, out)
    (out / "images/mine.png").write_bytes(b"mine")
    (photos / "a.png").unlink()
    save_photo(photos / "b.png", (40, 24), 7)
    again = run_folder(photos, out)
    assert (again.numbers["prepared"], again.numbers["unchanged"]) == (1, 1)
    found = {path.relative_to(out).as_posix() for path in (out / "images").rglob("*") if path.is_file()}
    assert found == {"images/b.png", "images/in/c.png", "images/mine.png"}
    assert [entry["source"] for entry in again.metadata()] == ["b.png", "in/c.png"]


def test_other_settings_make_other_pictures(photos: Path, tmp_path: Path) -> None:
    run_folder(photos, tmp_path / "out")
    again = run_folder(photos, tmp_path / "out", size=24)
    assert again.numbers["prepared"] == 3
    assert {tuple(entry["size"]) for entry in again.metadata()} == {(24, 24)}
    again = run_folder(photos, tmp_path / "out", size=24, trigger="sks")
    assert again.numbers["prepared"] == 0 and again.metadata()[0]["text"].startswith("sks"), "captions are no pictures"


def test_a_picture_that_was_damaged_is_made_again(photos: Path, tmp_path: Path) -> None:
    run_folder(photos, tmp_path / "out")
    before = hashes(tmp_path / "out")
    (tmp_path / "out/images/a.png").unlink()
    assert run_folder(photos, tmp_path / "out").numbers["prepared"] == 1
    assert hashes(tmp_path / "out") == before


def test_a_run_that_was_stopped_goes_on(photos: Path, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.done == 2:
            raise KeyboardInterrupt

    spec = ppim(photos, tmp_path / "out", workers=0, size=16)
    with pytest.raises(KeyboardInterrupt):
        start(spec, stop)
    assert not (tmp_path / "out/metadata.jsonl").exists()
    assert start(spec, lambda _: None).numbers["prepared"] == 1
    assert not list((tmp_path / "out/.ppim").glob("*.png")), "nothing is left behind"


def test_when_a_picture_goes_its_near_duplicate_takes_its_place(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "a.png", photos / "z.png")
    first = run_folder(photos, tmp_path / "out", on_fail="skip")
    assert first.rows()["z.png"].failing == ("near-duplicate: of a.png",)
    assert [entry["source"] for entry in first.metadata()] == ["a.png", "b.png", "in/c.png"]
    (photos / "a.png").unlink()
    then = run_folder(photos, tmp_path / "out", on_fail="skip")
    assert then.numbers["prepared"] == 0
    assert [entry["source"] for entry in then.metadata()] == ["b.png", "in/c.png", "z.png"]


# --- what a person asks for ------------------------------------------------------------------------------------------


def test_a_dry_run_tells_the_plan_and_writes_nothing(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"")
    spec = ppim(photos, tmp_path / "out", workers=0, size=16, dry_run=True)
    events: list[Event] = []
    start(spec, events.append)
    told = next(event.values for event in events if isinstance(event, Facts) and event.title == "plan")
    assert [*told] == ["a.png", "b.png", "broken.jpg", "in/c.png"]
    assert told["in/c.png"].startswith("images/in/c.png (16 × 16)")
    assert told["broken.jpg"] == "unreadable: it is empty (0 bytes)"
    assert not (tmp_path / "out").exists()
    assert spec.writes_nothing, "so that no job is kept beside it"


def test_the_command_line_keeps_the_job_and_runs_it_again(photos: Path, tmp_path: Path) -> None:
    plugins = load_plugins([])
    mine = Plugins(plugins.manager, METHODS, {"ppim": "here"})
    spec = ppim(photos, tmp_path / "out", workers=0, size=16)
    for made in (3, 0):
        assert execute(spec, mine).numbers["prepared"] == made
    kept: Any = read_job(tmp_path / "out/job.toml", METHODS)
    assert isinstance(kept, PpimSpec) and kept == spec.resolved()


@pytest.mark.parametrize(
    ("on_fail", "kept"), [("report", ["a.png", "b.png", "in/c.png"]), ("skip", ["b.png", "in/c.png"])]
)
def test_what_fails_is_told_or_left_out(photos: Path, tmp_path: Path, on_fail: str, kept: Sequence[str]) -> None:
    save_photo(photos / "a.png", (12, 12))
    run = run_folder(photos, tmp_path / "out", "check.min_side=20", on_fail=on_fail)
    assert run.rows()["a.png"].failing == ("too small: 12 × 12, asked for 20",)
    assert [entry["source"] for entry in run.metadata()] == kept


def test_or_stops_the_job_until_it_is_mended(photos: Path, tmp_path: Path) -> None:
    save_photo(photos / "a.png", (12, 12))
    with pytest.raises(InputError, match=r"1 pictures fail a check: .*\na\.png: too small: 12 × 12, asked for 20"):
        run_folder(photos, tmp_path / "out", "check.min_side=20", on_fail="error")
    assert not (tmp_path / "out/metadata.jsonl").exists()
    save_photo(photos / "a.png", (40, 24))
    assert run_folder(photos, tmp_path / "out", "check.min_side=20", on_fail="error").numbers["prepared"] == 1


def test_backgrounds_that_are_alike_are_warned_of(tmp_path: Path) -> None:
    for number in range(4):
        picture = Image.new("RGB", (64, 64), "green")
        picture.paste(Image.effect_noise((24, 24), 90 + number), (8 + 8 * number, 16))
        (tmp_path / "photos").mkdir(exist_ok=True)
        picture.save(tmp_path / f"photos/{number}.png")
    run = run_folder(tmp_path / "photos", tmp_path / "out", "check.min_variety=0.3", "check.duplicates=false")
    assert len(run.warnings()) == 1 and "the backgrounds of these pictures are much alike" in run.warnings()[0]


def test_copies_are_recorded_and_differ(photos: Path, tmp_path: Path) -> None:
    settings = ("augment.copies=3", "augment.rotate=5", "augment.jitter=0.2", "mask.source=saliency")
    entries = run_folder(photos, tmp_path / "out", *settings).metadata()
    assert len(entries) == 12
    for source in ("a.png", "b.png", "in/c.png"):
        changes = [tuple(entry["changes"]) for entry in entries if entry["source"] == source]
        assert changes[0] == () and len(set(changes)) == 4
        assert all("rotated" in " ".join(each) and "brightness" in " ".join(each) for each in changes[1:])
    assert {"flipped"} == {flip for entry in entries for flip in entry["flips"]}
    assert len({(tmp_path / "out" / entry["file_name"]).read_bytes() for entry in entries}) == 12


def test_masks_come_from_a_folder_or_the_alpha_channel(photos: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        mask = Image.new("L", (40, 24))
        mask.paste(255, (0, 0, 20, 24))
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask.save(tmp_path / f"masks/{name}.png")
    Image.new("L", (3, 3)).save(tmp_path / "masks/c.png")
    run = run_folder(photos, tmp_path / "out", masks=tmp_path / "masks")
    found = {entry["source"]: entry["mask"] for entry in run.metadata()}
    assert found["in/c.png"] is None and "3 × 3" in run.rows()["in/c.png"].verdict[0]
    with Image.open(tmp_path / "out" / found["a.png"]) as made:
        assert made.getpixel((1, 8)) == 255 and made.getpixel((14, 8)) == 0
    with Image.open(photos / "b.png") as picture, Image.open(tmp_path / "masks/b.png") as mask:
        picture.putalpha(mask)
        picture.save(photos / "b.png")
    run = run_folder(photos, tmp_path / "alpha", mask="alpha")
    assert [entry["source"] for entry in run.metadata() if entry["mask"]] == ["b.png"]


def test_a_segmentation_model_makes_masks(tmp_path: Path) -> None:
    save_clipseg(tmp_path / "clipseg")
    model = (f"mask.model={tmp_path / 'clipseg'}", "mask.prompt=a red critter", "crop.size=32")
    run = run_example(tmp_path / "out", "mask.source=transformers", *model)
    for entry in run.metadata():
        with Image.open(tmp_path / "out" / entry["mask"]) as mask:
            assert mask.size == (32, 32) and mask.mode == "L"
    assert {event.stage for event in run.events if isinstance(event, Progress)} == {"files", "masks"}


def test_the_labs_reader_says_what_its_drawings_show(tmp_path: Path) -> None:
    settings = ('caption.sources=["captioner"]', "caption.captioner=lab", "caption.where=front", "crop.size=64")
    run = run_example(tmp_path / "out", *settings, "crop.how=center", "crop.trim=false", "mask.source=given")
    said = {entry["source"]: entry["text"] for entry in run.metadata()}
    for name, place in (("IMG_0001.JPG", "beach"), ("in_the-grass.jpg", "grass"), ("snow.png", "snow")):
        assert said[name].startswith("sks, ") and "critter" in said[name] and place in said[name]
    assert {entry["caption_origin"] for entry in run.metadata()} == {"captioner lab"}


def test_buckets_keep_the_shape_in_steps_of_64(tmp_path: Path) -> None:
    for name, size in (("wide", (400, 200)), ("tall", (130, 260)), ("tiny", (60, 60))):
        save_photo(tmp_path / f"photos/{name}.png", size)
    run = run_folder(tmp_path / "photos", tmp_path / "out", size=128, buckets=True)
    sizes = {entry["source"]: entry["size"] for entry in run.metadata()}
    assert sizes == {"tall.png": [64, 192], "wide.png": [192, 64]}
    assert run.rows()["tiny.png"].status == "skipped" and run.rows()["tiny.png"].verdict[0].startswith("no crop: ")


def test_nothing_is_enlarged_unasked(photos: Path, tmp_path: Path) -> None:
    assert run_folder(photos, tmp_path / "out", size=64).metadata()[0]["size"] == [24, 24]
    assert run_folder(photos, tmp_path / "out", size=64, upscale=True).metadata()[0]["size"] == [64, 64]


def test_the_original_layout_goes_round(photos: Path, tmp_path: Path) -> None:
    first = run_folder(photos, tmp_path / "first", "mask.source=saliency", layout="original", trigger="sks")
    assert sorted(path.name for path in first.out.iterdir() if path.suffix in (".jpg", ".txt")) == [
        *("0.src.jpg", "1.src.jpg", "2.src.jpg", "caption.txt")
    ]
    again = run_folder(first.out, tmp_path / "again")
    wanted = first.metadata()
    found = {entry["source"]: entry for entry in again.metadata()}
    assert {name: entry["text"] for name, entry in found.items()} == {
        entry["file_name"]: entry["text"] for entry in wanted
    }
    masks = [(tmp_path / "first" / entry["mask"], found[entry["file_name"]]["mask"]) for entry in wanted]
    for mask, made in masks:
        with Image.open(mask) as one, Image.open(again.out / made) as other:
            assert one.tobytes() == other.tobytes()


def test_the_output_must_lie_apart(photos: Path) -> None:
    with pytest.raises(JobError, match="lie in one another"):
        ppim(photos, photos / "out")


def test_the_defaults_of_a_job_are_those_of_the_back(photos: Path) -> None:
    plan = plan_of(ppim(photos, workers=0))
    assert plan.recipe == Recipe() and plan.wording == Wording() and plan.layout == Layout(folder="pictures")


def test_what_a_job_gets_wrong_is_told_before_anything_is_read(photos: Path) -> None:
    for options, why in (
        ({"mask": "transformers"}, 'source = "transformers" needs a model'),
        ({"layout": "original", "format": "png"}, "leave format out"),
        ({"crop": "centre"}, 'did you mean "center"'),
    ):
        with pytest.raises(JobError, match=why):
            ppim(photos, **options)  # type: ignore[arg-type]
