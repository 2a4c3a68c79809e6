"""Every job in jobs/ is valid as it stands, and a resolved job is the same job."""

from pathlib import Path

import pytest

from loractl.job import dump_job, override, read_job
from loractl.plugins import load_plugins

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.toml"))
WITHOUT_CLASS = """
method = "dreambooth"
model = "lab"
data.path = "."
subject.prompt = "a photo of sks dog"
"""


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_a_resolved_job_is_the_same_job(job: Path, tmp_path: Path) -> None:
    methods = load_plugins().methods
    spec = read_job(job, methods)
    (tmp_path / "job.toml").write_text(dump_job(spec))
    assert read_job(tmp_path / "job.toml", methods) == spec


@pytest.mark.parametrize("settings", [[], ["adapter.kind=full"], ["adapter.kind=full", "adapter.text_encoder=true"]])
def test_so_is_one_with_nothing_but_what_it_must_say(settings: list[str], tmp_path: Path) -> None:
    methods = load_plugins().methods
    (tmp_path / "short.toml").write_text(WITHOUT_CLASS)
    spec = read_job(tmp_path / "short.toml", methods, [override(setting) for setting in settings])
    (tmp_path / "job.toml").write_text(dump_job(spec))
    assert read_job(tmp_path / "job.toml", methods) == spec
