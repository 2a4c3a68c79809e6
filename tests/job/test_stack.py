"""The layers of a job: files that extend others, `--set`, options and the paths in each."""

import re
from pathlib import Path

import pytest

from loractl.errors import JobError
from loractl.job import option, override, read_job, spec_from_options
from loractl.specs import default_job_name
from tests.job.writing import MINIMUM, problems, write
from tests.toy import METHODS, ToySpec


def test_extends_merges_tables_and_keeps_each_place(tmp_path: Path) -> None:
    write(tmp_path / "house/root.toml", 'model = "lab"\n[train]\nsteps = 5\nlr = 1e-3\n')
    write(
        tmp_path / "house/base.toml",
        'method = "toy"\nextends = "root.toml"\n[data]\npath = "pictures"\n[train]\nlrr = 1',
    )
    write(tmp_path / "house/pictures/a.txt", "")
    file = write(
        tmp_path / "jobs/job.toml", 'extends = "../house/base.toml"\n[train]\nsteps = "7"\n[subject]\nprompt = "p"\n'
    )
    shown = [problem.replace(str(tmp_path), "") for problem in problems(file)]
    assert shown == [
        'job.toml:3: train.steps: expected a whole number, found the text "7"',
        "../house/base.toml:6: train.lrr: unknown key; did you mean train.lr?",
    ]
    write(tmp_path / "house/base.toml", 'method = "toy"\nextends = "root.toml"\n[data]\npath = "pictures"\n')
    spec = read_job(file, METHODS, [override("train.steps=7")])
    assert isinstance(spec, ToySpec)
    assert (spec.train.steps, spec.train.lr, spec.name) == (7, 1e-3, "job")
    assert spec.data is not None
    assert spec.data.path.resolve() == tmp_path / "house/pictures"


def test_a_longer_circle_of_files(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", 'extends = "b.toml"')
    write(tmp_path / "b.toml", 'extends = "a.toml"')
    assert problems(tmp_path / "a.toml") == ["b.toml:1: extends: a.toml extends this file in its turn"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.lr=1e-3", 1e-3),
        ("adapter.targets=['a']", ("a",)),
        ("subject.prompt=a sks", "a sks"),
        ("subject.prompt='q'", "q"),
    ],
)
def test_set_reads_toml_else_text(tmp_path: Path, text: str, value: object) -> None:
    spec = read_job(write(tmp_path / "job.toml", MINIMUM), METHODS, [override(text)])
    section, key = text.partition("=")[0].split(".")
    assert getattr(getattr(spec, section), key) == value


def test_set_reaches_into_a_table_of_patterns(tmp_path: Path) -> None:
    file = write(tmp_path / "job.toml", MINIMUM + '[adapter.targets."*.to_q"]\nrank = 2\n')
    spec = read_job(file, METHODS, [override('adapter.targets."*.to_q".alpha=3')])
    assert isinstance(spec, ToySpec)
    assert isinstance(spec.adapter.targets, dict)
    assert (spec.adapter.targets["*.to_q"].rank, spec.adapter.targets["*.to_q"].alpha) == (2, 3.0)


def test_problems_of_set_name_it(tmp_path: Path) -> None:
    file = write(tmp_path / "job.toml", MINIMUM)
    assert problems(file, "train.lrr=3") == ["--set train.lrr=3: unknown key; did you mean train.lr?"]
    assert problems(file, "train.steps=many") == [
        '--set train.steps=many: expected a whole number, found the text "many"'
    ]
    (told,) = problems(write(file, 'method = "toy"\nmodel = "lab"\n'), "subject.class_prompt=p")
    assert told.startswith("--set subject.class_prompt=p: subject.prompt: missing: names the subject")
    (told,) = problems(write(file, 'method = "toy"\nmodel = "lab"\n[subject]\n'), "subject.class_prompt=p")
    assert told.startswith("job.toml:3: subject.prompt: missing: names the subject")
    for wrong, told in [
        ("steps", "should be KEY=VALUE"),
        ("=3", "should be KEY=VALUE"),
        ("a b=3", '"a b" is not a key'),
    ]:
        with pytest.raises(JobError, match=re.escape(f"--set {wrong}: {told}")):
            override(wrong)


def test_paths_start_where_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "jobs/near.txt", "")
    write(tmp_path / "here/far.txt", "")
    write(tmp_path / "here/model/model_index.json", "{}")
    file = write(tmp_path / "jobs/job.toml", MINIMUM + 'output.path = "o"\n[[parts]]\npath = "near.txt"')
    monkeypatch.chdir(tmp_path / "here")
    spec = read_job(file, METHODS, [override("data.path=far.txt"), override("model=model")])
    assert isinstance(spec, ToySpec)
    assert spec.data is not None
    assert spec.data.path == tmp_path / "here/far.txt"
    assert spec.parts[0].path == tmp_path / "jobs/near.txt"
    assert spec.output.path == tmp_path / "jobs/o"
    assert spec.model.source == str(tmp_path / "here/model")
    moved = read_job(file, METHODS, [option("--out", "output.path", Path("p")), override("model.source=model")])
    assert isinstance(moved, ToySpec)
    assert (moved.output.path, moved.model.source) == (tmp_path / "here/p", str(tmp_path / "here/model"))
    assert problems(file, "model=./nothing") == [
        f"--set model=./nothing: there is no folder {tmp_path / 'here/nothing'}"
    ]


def test_options_are_named_in_their_problems() -> None:
    with pytest.raises(JobError) as caught:
        spec_from_options(
            ToySpec, {"subject.prompt": "", "train.batch_size": 0, "seed": None}, {"subject.prompt": "PROMPT"}
        )
    assert caught.value.problems == (
        'the command line: model.source: missing: "lab" (built in), a diffusers folder, a checkpoint in one file, or a '
        "hub id",
        'PROMPT: should have at least 1 character, found the text ""',
        "--batch-size: should be greater than or equal to 1, found 0",
    )


@pytest.mark.parametrize(
    ("file", "name"), [("jobs/rex.toml", "rex"), ("my job (é).toml", "my-job----"), ("_.toml", "adapter")]
)
def test_a_job_without_a_name_has_its_file_s(file: str, name: str) -> None:
    assert default_job_name(Path(file)) == name
    assert len(default_job_name(Path("x" * 200 + ".toml"))) == 100
