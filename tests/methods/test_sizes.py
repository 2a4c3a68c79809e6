"""Pictures that are no squares, wherever a job makes some."""

from pathlib import Path
from typing import Any

import pytest
from diffusers.image_processor import VaeImageProcessor
from loractl_eval.spec import READER
from PIL import Image

from loractl.errors import JobError
from loractl.lab.drawing import SIZE
from tests.methods.lab_job import JOBS, SHORT, run_job

JOB = {
    "subject": (*SHORT, "sample.at_start=false"),
    "grid": ("sample.steps=1",),
    "interpolate": ("steps=2", "model=lab", "sample={prompts=['a critter'], steps=1}"),
}


@pytest.mark.parametrize("method", JOB)
def test_a_job_says_width_and_height(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, postprocess = set[tuple[int, int]](), VaeImageProcessor.postprocess

    def seen(*arguments: Any, **named: Any) -> Any:
        pictures = postprocess(*arguments, **named)
        made.update(picture.size for picture in pictures)
        return pictures

    monkeypatch.setattr(VaeImageProcessor, "postprocess", seen)
    run_job(JOBS / f"{method}.toml", tmp_path, *JOB[method], "sample.size=96x64")
    assert (96, 64) in made and (96, 96) not in made


def test_a_grids_cells_are_as_wide_as_its_pictures(tmp_path: Path) -> None:
    widths = []
    for size in ("160x64", "64x160"):
        job = (JOBS / "grid.toml").read_text().split("[grid]")[0] + '[grid]\nx.seed = "1"\n[sample]\nprompt = "a cat"\n'
        (tmp_path / f"{size}.toml").write_text(job)
        outcome, _ = run_job(tmp_path / f"{size}.toml", tmp_path / size, "sample.steps=1", f"sample.size={size}")
        widths.append(Image.open(outcome.files["table-z1"]).width)
    assert widths[0] == widths[1] > 160


def test_the_labs_reader_refuses_what_it_can_not_read(tmp_path: Path) -> None:
    with pytest.raises(
        JobError, match=r'sample.size=96x64: the encoder "lab" reads pictures of 64 pixels: leave it out'
    ):
        run_job(JOBS / "eval.toml", tmp_path, "sample.size=96x64")
    assert READER == SIZE
