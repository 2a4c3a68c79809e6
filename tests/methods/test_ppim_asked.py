"""What a person asks of ppim, and what fails a check."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from loractl_ppim import start
from loractl_ppim.command import ppim
from loractl_ppim.run import plan_of
from loractl_ppim.spec import PpimSpec
from PIL import Image

from loractl.cli import execute
from loractl.errors import InputError, JobError
from loractl.events import Event, Facts
from loractl.job import read_job
from loractl.plugins import Plugins, load_plugins
from loractl.prepare.captioning import Wording
from loractl.prepare.layouts import Layout
from loractl.prepare.process import Recipe
from tests.cli.calling import call
from tests.datasets.photos import save_photo
from tests.methods.ppim_runs import METHODS, run_folder


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


def test_the_output_must_lie_apart(photos: Path) -> None:
    with pytest.raises(JobError, match="lie in one another"):
        ppim(photos, photos / "out")


def test_the_output_is_the_second_argument_or_an_option(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    jobs = [call(capsys, "--print-job", "ppim", str(photos), *words) for words in ((str(out),), ("--out", str(out)))]
    assert jobs[0] == jobs[1] and f'path = "{out}"' in jobs[0][1]
    code, _, err = call(capsys, "ppim", str(photos), str(out), "--out", "other")
    assert (code, err) == (2, "error: OUT and --out are both given: leave one of them out\n")


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
