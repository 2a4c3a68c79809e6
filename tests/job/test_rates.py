"""The learning rate of a job that names none is its model's family's; the resolved job and the page say which."""

import json
from pathlib import Path
from typing import Any

import pytest

from loractl.job import override, read_job
from loractl.plugins import load_plugins
from loractl.sections.rates import RATE, RATES
from tests.job.writing import write
from tests.methods.lab_job import JOBS


def rate(folder: Path, model: str, *settings: str, method: str = "dreambooth") -> float:
    """Of a job with this model; what the resolved job says is read again as the same."""
    job = write(folder / "job.toml", f'method = "{method}"\nsubject.prompt = "a <subject> dog"\n')
    over = [override(each) for each in (f"model={model}", f"data.path={JOBS / 'data/subject'}", *settings)]
    spec: Any = read_job(job, load_plugins().methods, over)
    assert type(spec).model_validate_json(spec.model_dump_json()).train == spec.train
    return float(spec.train.lr)


@pytest.mark.parametrize("pipeline", [*RATES, "StableDiffusionPipeline", "SomebodysPipeline"])
def test_the_family_has_a_rate(pipeline: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), encoding="utf-8")
    assert rate(tmp_path, str(tmp_path)) == rate(tmp_path, str(tmp_path), "train.steps=5") == RATES.get(pipeline, RATE)
    assert rate(tmp_path, str(tmp_path), "train.lr=3e-5") == 3e-5


@pytest.mark.parametrize("method", ["ti", "pti"])
def test_so_it_has_in_methods_with_steps_of_their_own(method: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}', encoding="utf-8")
    assert rate(tmp_path, str(tmp_path), method=method) == rate(tmp_path, str(tmp_path), "train.steps=5", method=method)


def test_what_can_not_be_told_has_the_rate_of_most(tmp_path: Path) -> None:
    assert rate(tmp_path, "lab") == rate(tmp_path, "some/name") == RATE


def test_the_page_says_the_same() -> None:
    page = (Path(__file__).parents[2] / "docs/families.md").read_text(encoding="utf-8")
    for pipeline, value in RATES.items():
        assert f"| {pipeline} | {value:g} |" in page
    assert f"| all others | {RATE:g} |" in page
