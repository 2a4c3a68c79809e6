"""What a job tells of itself in the files it makes."""

import json
from pathlib import Path

from loractl.job import override, read_job
from loractl.plugins import load_plugins

JOB = Path(__file__).parents[1] / "jobs" / "subject.toml"


def test_provenance_holds_the_job_but_no_folders() -> None:
    spec = read_job(JOB, load_plugins().methods)
    metadata = spec.provenance()
    job = json.loads(metadata["loractl.job"])
    assert job["train"]["steps"] == spec.model_dump()["train"]["steps"] and "output" not in job
    assert job["data"]["path"] == "subject"
    assert str(Path.home()) not in metadata["loractl.job"] and str(JOB.parent) not in metadata["loractl.job"]


def test_a_local_model_is_named_without_its_folders(tmp_path: Path) -> None:
    model = tmp_path / "my-model"
    model.mkdir()
    (model / "model_index.json").write_text("{}")
    job = tmp_path / "job.toml"
    job.write_text('method = "infer"\nmodel = "my-model"\nsample.prompts = ["a dog"]\n')
    spec = read_job(job, load_plugins().methods)
    assert spec.model_dump()["model"]["source"] == str(model)
    assert json.loads(spec.provenance()["loractl.job"])["model"]["source"] == "my-model"


def test_published_files_may_tell_less() -> None:
    methods = load_plugins().methods
    assert read_job(JOB, methods).provenance().keys() == {"loractl.version", "loractl.job"}
    minimal = read_job(JOB, methods, [override("output.metadata=minimal")])
    assert minimal.provenance().keys() == {"loractl.version"}
