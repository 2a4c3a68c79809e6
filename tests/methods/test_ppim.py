"""A folder becomes a training set: every file is accounted for, as in the job that comes with loractl."""

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from loractl.data.examples import read_examples, survey_examples
from tests.methods.lab_job import JOBS, run_job
from tests.methods.ppim_runs import Run, contents, run_example

TRAINING = """
method = "dreambooth"
model = "lab"
subject.prompt = "a picture of a sks critter"
train.steps = 2
sample = {steps = 1, seeds = [0], at_start = false}
eval.encoders = []
"""


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
