"""The pictures, masks and captions that ppim makes, setting by setting."""

from pathlib import Path

from PIL import Image

from loractl.events import Progress
from tests.datasets.photos import save_photo
from tests.methods.ppim_runs import run_example, run_folder
from tests.prepare.models import save_clipseg


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
    settings = (
        'caption.sources=["captioner","template"]',
        "caption.captioner=lab",
        "caption.where=front",
        "crop.size=64",
    )
    run = run_example(tmp_path / "out", *settings, "crop.how=center", "crop.trim=false", "mask.source=given")
    said = {entry["source"]: entry["text"] for entry in run.metadata()}
    for name, place in (("IMG_0001.JPG", "beach"), ("in_the-grass.jpg", "grass"), ("snow.png", "snow")):
        assert said[name].startswith("sks, ") and "critter" in said[name] and place in said[name]
    assert {entry["caption_origin"] for entry in run.metadata()} == {"captioner lab"}


def test_flips_alone_make_one_copy_and_more_are_warned_of(photos: Path, tmp_path: Path) -> None:
    run = run_folder(photos, tmp_path / "out", copies=2)
    assert len(run.metadata()) == 6
    assert run.warnings() == [
        "augment.copies = 2 makes 1 of each picture, since flip alone makes no other: set augment.rotate or "
        "augment.jitter too"
    ]
    assert not run_folder(photos, tmp_path / "one", copies=1).warnings()
    assert not run_folder(photos, tmp_path / "turned", "augment.rotate=5", copies=2).warnings()


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
