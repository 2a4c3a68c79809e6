"""Every problem of a job has its place and its sentence."""

import re
from pathlib import Path

import pytest

from loractl.errors import InputError, JobError
from loractl.fields import fields
from loractl.job import read_job, spec_from_options
from loractl.problems import ALIASES
from tests.job.writing import MINIMUM, problems, write
from tests.toy import METHODS, FileSpec, ToySpec

KNOWN = {name for name, _ in fields(ToySpec)}


def test_all_problems_at_once_each_with_its_line(tmp_path: Path) -> None:
    file = write(
        tmp_path / "bad.toml",
        """\
method = "toy"
model = "lab"
lr = 3
[data]
path = "nowhere"
captions = "sidecars"
[train]
steps = "4"
lrr = 1e-3
batch_size = 0
deterministic = 1
[adapter]
rank = 0.5
[adapter.targets."attn.*"]
rnak = 3
[optimizer]
betas = [0.9]
""",
    )
    assert problems(file) == [
        'bad.toml: subject.prompt: missing: names the subject with a rare token: "a photo of sks dog"',
        "bad.toml:3: lr: unknown key; did you mean train.lr?",
        f"bad.toml:5: data.path: there is no file or folder {tmp_path / 'nowhere'}".replace(f"{tmp_path}/", ""),
        'bad.toml:6: data.captions: expected one of "auto", "prompt", "sidecar", "filename", "template", "jsonl", '
        'found the text "sidecars"; did you mean "sidecar"?',
        'bad.toml:8: train.steps: expected a whole number, found the text "4"',
        "bad.toml:9: train.lrr: unknown key; did you mean train.lr?",
        "bad.toml:10: train.batch_size: should be greater than or equal to 1, found 0",
        "bad.toml:11: train.deterministic: expected true or false, found 1",
        "bad.toml:13: adapter.rank: expected a whole number, found 0.5",
        'bad.toml:15: adapter.targets."attn.*".rnak: unknown key; did you mean adapter.targets."attn.*".rank?',
        "bad.toml:17: optimizer.betas[1]: missing: a number",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("adapter.targets = 5", "adapter.targets: expected a list of texts or a table, found 5"),
        ("adapter.targets = ['a', 3]", "adapter.targets[1]: expected text, found 3"),
        ("adapter.targets.x.rank = 0", "adapter.targets.x.rank: should be greater than or equal to 1, found 0"),
        ("train = 3", "train: expected a table, found 3"),
        ("train.lr = nan", "train.lr: should be a finite number, found NaN"),
        ("name = 'a/b'", "name: should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', found the text \"a/b\""),
        ("data.path = ''", "data.path: the path is empty"),
        ("data.flip = true", "data: name the pictures once: path, glob or sources"),
        ("[[parts]]\nweight = 2.0", "parts[0].path: missing: a file"),
        ("optimiser.eps = 1", "optimiser: unknown key; did you mean optimizer?"),
        ("guidance = 3", "guidance: unknown key; did you mean sample.guidance?"),
        ("steps = 3", "steps: unknown key; did you mean train.steps or sample.steps?"),
        ("sample.xyzzy = 3", "sample.xyzzy: unknown key; known here: prompts, negative"),
        ("output.dir = 'x'", "output.dir: unknown key; did you mean output.path?"),
        ("network_dim = 8", "network_dim: unknown key; did you mean adapter.rank?"),
        ("train.network_alpha = 8", "train.network_alpha: unknown key; did you mean adapter.alpha?"),
    ],
)
def test_a_problem_is_told_in_one_sentence(tmp_path: Path, line: str, problem: str) -> None:
    (told,) = problems(write(tmp_path / "job.toml", MINIMUM + line))
    assert re.sub(r"^job\.toml:\d+: ", "", told).startswith(problem)


@pytest.mark.parametrize("alias", sorted(alias for alias in ALIASES if ALIASES[alias] in KNOWN))
def test_an_alias_is_offered_where_the_spec_has_the_field(alias: str) -> None:
    with pytest.raises(JobError, match=re.escape(f"--x: unknown key; did you mean {ALIASES[alias]}?")) as caught:
        values = {"model": "lab", "subject.prompt": "p", alias: 1}
        spec_from_options(ToySpec, values, {alias: "--x"})
    assert len(caught.value.problems) == 1


def test_an_alias_is_not_offered_elsewhere() -> None:
    with pytest.raises(JobError, match="known here: method, name, seed, output"):
        spec_from_options(FileSpec, {"network_dim": 3})


def test_a_rule_over_several_keys_names_the_file(tmp_path: Path) -> None:
    assert problems(write(tmp_path / "job.toml", "seed = 13\n" + MINIMUM)) == [
        "job.toml: seed 13 brings bad luck: take another"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed = 1\nseed = 2\n", "job.toml:2: this key is already there"),
        ("[train]\n\n[train]\n", "job.toml:3: "),
        ("a = \n", "job.toml:1: invalid value"),
        ('a = "', "job.toml:1: "),
        ("", "job.toml: method: missing: which method runs the job; known: file, toy"),
        ('\nmethod = "ty"', 'job.toml:2: method: there is no method "ty"; did you mean toy?'),
        ("method = 3", "job.toml:1: method: there is no method 3; known: file, toy"),
        ("method = ['toy']", "job.toml:1: method: there is no method "),
        ("extends = 3", "job.toml:1: extends: expected the path of a job file"),
        ('\nextends = "no.toml"', "job.toml:2: extends: there is no file no.toml"),
        ('extends = "job.toml"', "job.toml:1: extends: job.toml extends this file in its turn"),
    ],
)
def test_a_file_that_is_no_job(tmp_path: Path, text: str, problem: str) -> None:
    (told,) = problems(write(tmp_path / "job.toml", text))
    assert told.startswith(problem)


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no job file"):
        read_job(tmp_path / "no.toml", METHODS)
    (tmp_path / "picture.toml").write_bytes(b"\x89PNG\xff")
    with pytest.raises(InputError, match="can't be read as a text file"):
        read_job(tmp_path / "picture.toml", METHODS)
