"""What a person asks of ppim, and what fails a check."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from loractl_ppim import start
from loractl_ppim.command import ppim
from loractl_ppim.run import plan_of
from loractl_ppim.spec import STEP, PpimSpec
from PIL import Image

from loractl.cli import execute
from loractl.data import buckets
from loractl.errors import InputError, JobError
from loractl.events import Event, Facts
from loractl.job import dump_job, read_job
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
        (
            {"caption": ["sidecar"], "template": "a {class}"},
            '--template: nothing uses it: add to caption.sources "temp',
        ),
        ({"mask_prompt": "a dog"}, '--mask-prompt: nothing uses it: set mask.source to "transformers", or leave it'),
    ):
        with pytest.raises(JobError, match=why):
            ppim(photos, **options)


MASKED = 'crop.how = "subject"\ncrop.subject = "mask"\nmask.source = "rembg"'
REFUSED = {  # what a job says, and the sentence that it is refused with, of the line that it is in
    'caption.sources = ["captioner"]': '4: caption.sources: the captioner "transformers" needs caption.model: set it',
    'caption.sources = ["template"]\ncaption.template = "a {clas}"': (
        "5: caption.template: the caption template 'a {clas}' has another field than {trigger}, {class}, {name}"
    ),
    'caption.sources = ["template"]\ncaption.template = "a {class"': (
        "5: caption.template: the caption template 'a {class' is broken"
    ),
    "crop.buckets = true\ncrop.size = 63": "5: crop.size: buckets go in steps of 64 pixels: set at least 64",
    MASKED: "5: crop.subject: masks by rembg are made after the crop: set mask.folder too, or another crop.subject",
    'mask.source = "alpha"\nmask.folder = "m"': '5: mask.folder: nothing uses it with mask.source = "alpha"',
    'mask.source = "rembg"\nmask.folder = "m"': '5: mask.folder: nothing uses it with mask.source = "rembg"',
    'mask.model = "u2net"': '4: mask.model: nothing uses it: set mask.source to "transformers" or "rembg"',
    'caption.model = "blip"': '4: caption.model: nothing uses it: add to caption.sources "captioner"',
    'caption.captioner = "lab"': '4: caption.captioner: nothing uses it: add to caption.sources "captioner"',
    'caption.prompt = "what"': '4: caption.prompt: nothing uses it: add to caption.sources "captioner"',
    'caption.template = "a {class}"': '4: caption.template: nothing uses it: add to caption.sources "template"',
    "augment.copies = 1\naugment.flip = false": "4: augment.copies: nothing would change them",
    'run.executor = "ray"\nrun.memory_mb = 100': "5: run.memory_mb: Ray's workers are not held to it",
    "run.workers = 0\nrun.memory_mb = 100": "5: run.memory_mb: without workers there is nothing to hold to it",
}


def job_of(folder: Path, text: str) -> Path:
    for name in ("photos", "m"):
        (folder / name).mkdir()
    job = folder / "job.toml"
    job.write_text(f'method = "ppim"\nsource.path = "photos"\noutput.path = "out"\n{text}\n')
    return job


@pytest.mark.parametrize("text", REFUSED)
def test_what_can_have_no_effect_or_be_done_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(JobError) as caught:
        read_job(job_of(tmp_path, text), METHODS)
    assert (
        caught.value.problems[0].startswith(f"{tmp_path / 'job.toml'}:{REFUSED[text]}")
        and len(caught.value.problems) == 1
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        f'{MASKED}\nmask.folder = "m"',
        'mask.source = "transformers"\nmask.model = "clipseg"\nmask.prompt = "a dog"\nmask.threshold = 0.4',
        'caption.sources = ["captioner", "template"]\ncaption.model = "blip"\ncaption.template = "a {class}"',
        'caption.sources = ["captioner"]\ncaption.captioner = "lab"\nrun.memory_mb = 100',
        "augment.copies = 2\naugment.flip = false\naugment.jitter = 0.1\ncrop.buckets = true\ncrop.size = 64",
    ],
)
def test_a_job_with_every_default_filled_in_is_as_good(tmp_path: Path, text: str) -> None:
    spec = read_job(job_of(tmp_path, text), METHODS)
    (tmp_path / "resolved.toml").write_text(dump_job(spec))
    assert read_job(tmp_path / "resolved.toml", METHODS) == spec


def test_every_source_that_is_named_on_the_command_line_is_asked(photos: Path) -> None:
    both = ppim(photos, caption_model="blip", template="a {class}")
    assert both.caption.sources == ("sidecar", "captioner", "template")
    assert ppim(photos, template="a {class}").caption.sources == ("sidecar", "template")
    assert ppim(photos).caption.sources == ("sidecar", "filename")


def test_buckets_go_in_the_steps_that_the_job_says() -> None:
    assert STEP == buckets.STEP
