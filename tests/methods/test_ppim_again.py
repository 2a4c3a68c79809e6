"""Another run of ppim does only what has changed."""

import shutil
from pathlib import Path

import pytest
from loractl_ppim import start
from loractl_ppim.command import ppim

from loractl.errors import InputError
from loractl.events import Event, Progress
from loractl.train.lock import lock
from tests.datasets.photos import save_photo
from tests.methods.ppim_runs import contents, hashes, run_folder


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


LATIN = "a café".encode("latin-1")


def test_a_broken_caption_file_stops_every_run_until_it_is_mended(photos: Path, tmp_path: Path) -> None:
    caption = photos / "a.txt"
    for text in (LATIN, LATIN, b"a dog", LATIN):
        caption.write_bytes(text)
        if text == LATIN:
            with pytest.raises(InputError, match=r"\na\.png: caption: its caption file a\.txt is not UTF-8"):
                run_folder(photos, tmp_path / "out", on_fail="error")
        else:
            run = run_folder(photos, tmp_path / "out", on_fail="error")
            assert not run.warnings() and run.metadata()[0]["text"] == "a dog"


@pytest.mark.parametrize(
    ("on_fail", "kept"), [("report", ["a.png", "b.png", "in/c.png"]), ("skip", ["b.png", "in/c.png"])]
)
def test_a_broken_caption_file_is_told_like_what_else_fails(
    photos: Path, tmp_path: Path, on_fail: str, kept: list[str]
) -> None:
    for _ in range(2):
        (photos / "a.txt").write_bytes(LATIN)
        run = run_folder(photos, tmp_path / "out", on_fail=on_fail)
        assert len(run.warnings()) == 1 and run.warnings()[0].startswith("a.png: caption: its caption file a.txt")
        assert [entry["source"] for entry in run.metadata()] == kept
    (photos / "a.txt").write_text("a dog")
    again = run_folder(photos, tmp_path / "out", on_fail=on_fail)
    assert not again.warnings() and again.metadata()[0]["text"] == "a dog" and not again.rows()["a.png"].failing


def test_a_near_duplicate_stands_in_for_a_picture_whose_caption_file_is_broken(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "a.png", photos / "z.png")
    (photos / "a.txt").write_bytes(LATIN)
    run = run_folder(photos, tmp_path / "out", on_fail="skip")
    assert [entry["source"] for entry in run.metadata()] == ["b.png", "in/c.png", "z.png"]


def test_two_runs_at_once_are_kept_out_of_one_folder(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with lock(out), pytest.raises(InputError, match="in use by another run"):
        run_folder(photos, out)
    assert [path.name for path in out.iterdir()] == [".lock"]
    assert run_folder(photos, out).numbers["prepared"] == 3
