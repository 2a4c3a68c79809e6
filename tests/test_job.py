"""Jobs: every key has its line, every problem its sentence, and a job written out and read again is the same job."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loractl.errors import InputError, JobError
from loractl.fields import fields, words
from loractl.job import dump_job, option, override, read_job, spec_from_options
from loractl.lines import key_lines
from loractl.problems import ALIASES, dotted
from loractl.specs import Spec, default_job_name
from loractl.template import template, toml_value
from tests.toy import METHODS, FileSpec, ToySpec

MINIMUM = 'method = "toy"\nmodel = "lab"\nsubject.prompt = "a sks"\n'


KNOWN = {name for name, _ in fields(ToySpec)}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def problems(file: Path, *sets: str) -> list[str]:
    """The sentences about a job, with the folder cut off."""
    with pytest.raises(JobError) as caught:
        read_job(file, METHODS, [override(each) for each in sets])
    return [problem.replace(f"{file.parent}/", "") for problem in caught.value.problems]


# --- lines -----------------------------------------------------------------------------------------------------------

KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6)
SCALARS = st.one_of(st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False), st.text(max_size=8), st.dates())
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths(item, (*path, key))


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.booleans())
def test_every_key_has_its_line(values: dict[str, Any], multiline: bool) -> None:
    text = tomli_w.dumps(values, multiline_strings=multiline)
    lines = key_lines(text)
    assert set(lines) == set(paths(values))
    for path, line in lines.items():
        keys = [key for key in path if isinstance(key, str)]
        if isinstance(path[-1], str):
            assert toml_key(keys[-1]) in text.split("\n")[line - 1]


def toml_key(key: str) -> str:
    return tomli_w.dumps({key: 0}).rpartition(" = ")[0]


GNARLY = '''\
# [not.a.table]
a.b = 1
"dotted.key".c = "x # = ["
[table]   # comment
text = """
[no.table]
x = 1 \\"""
"""
literal = \'\'\'
y = 2\'\'\'
list = [
  1, # one
  [2, "]"],
  { deep = 3, other.deeper = "}" },
]
when = 1979-05-27 07:32:00.5Z
[[rows]]
v = 1
[[rows]]
v = 1.5
[rows.inner]
w = 2
[[rows.more]]
z = 0
[later]
'''


def test_lines_of_a_text_with_everything() -> None:
    lines = key_lines(GNARLY)
    assert set(lines) == set(paths(tomllib.loads(GNARLY)))
    expected = {
        ("a", "b"): 2,
        ("dotted.key", "c"): 3,
        ("table",): 4,
        ("table", "text"): 5,
        ("table", "literal"): 9,
        ("table", "list", 1, 1): 13,
        ("table", "list", 2, "other", "deeper"): 14,
        ("table", "when"): 16,
        ("rows",): 17,
        ("rows", 1): 19,
        ("rows", 1, "v"): 20,
        ("rows", 1, "inner", "w"): 22,
        ("rows", 1, "more", 0, "z"): 24,
        ("later",): 25,
    }
    assert {path: lines[path] for path in expected} == expected


# --- problems --------------------------------------------------------------------------------------------------------


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
        'bad.toml:6: data.captions: expected one of "prompt", "sidecar", "filename", found the text "sidecars"; '
        'did you mean "sidecar"?',
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
        ("data.flip = true", "data.path: missing: the folder of training pictures, or one picture"),
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


# --- layers ----------------------------------------------------------------------------------------------------------


def test_extends_merges_tables_and_keeps_each_place(tmp_path: Path) -> None:
    write(tmp_path / "shared/root.toml", 'model = "lab"\n[train]\nsteps = 5\nlr = 1e-3\n')
    write(
        tmp_path / "shared/base.toml",
        'method = "toy"\nextends = "root.toml"\n[data]\npath = "pictures"\n[train]\nlrr = 1',
    )
    write(tmp_path / "shared/pictures/a.txt", "")
    file = write(
        tmp_path / "jobs/job.toml", 'extends = "../shared/base.toml"\n[train]\nsteps = "7"\n[subject]\nprompt = "p"\n'
    )
    shown = [problem.replace(str(tmp_path), "") for problem in problems(file)]
    assert shown == [
        'job.toml:3: train.steps: expected a whole number, found the text "7"',
        "../shared/base.toml:6: train.lrr: unknown key; did you mean train.lr?",
    ]
    write(tmp_path / "shared/base.toml", 'method = "toy"\nextends = "root.toml"\n[data]\npath = "pictures"\n')
    spec = read_job(file, METHODS, [override("train.steps=7")])
    assert isinstance(spec, ToySpec)
    assert (spec.train.steps, spec.train.lr, spec.name) == (7, 1e-3, "job")
    assert spec.data is not None
    assert spec.data.path.resolve() == tmp_path / "shared/pictures"


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
    (told,) = problems(file, "data.flip=true")
    assert told.startswith("--set data.flip=true: data.path: missing: the folder")
    (told,) = problems(write(file, MINIMUM + "[data]\ncrop = 'center'"), "data.flip=true")
    assert told.startswith("job.toml:4: data.path: missing: the folder")
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
        'the command line: model.source: missing: "lab" (built in), a diffusers folder, or a hub id',
        'PROMPT: should have at least 1 character, found the text ""',
        "--batch-size: should be greater than or equal to 1, found 0",
    )


@pytest.mark.parametrize(
    ("file", "name"), [("jobs/rex.toml", "rex"), ("my job (é).toml", "my-job----"), ("_.toml", "adapter")]
)
def test_a_job_without_a_name_has_its_file_s(file: str, name: str) -> None:
    assert default_job_name(Path(file)) == name
    assert len(default_job_name(Path("x" * 200 + ".toml"))) == 100


# --- writing ---------------------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
POSITIVE = st.floats(1e-30, 1e30)
SETTINGS = st.fixed_dictionaries({}, optional={"rank": st.integers(1, 64), "alpha": POSITIVE})
ADAPTERS = st.fixed_dictionaries(
    {"targets": st.lists(WORDS, max_size=3) | st.dictionaries(WORDS, SETTINGS, max_size=3)},
    optional={"alpha": POSITIVE, "rank": st.integers(1, 256)},
)
JOBS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["lab", {"source": "org/model", "revision": "r1"}]),
        "subject": st.fixed_dictionaries({"prompt": WORDS}),
    },
    optional={
        "seed": st.integers(14, 2**63 - 1),
        "output": st.fixed_dictionaries({"path": st.sampled_from(["/tmp/a b", "rel/ative", "~/x"])}),
        "adapter": ADAPTERS,
        "train": st.fixed_dictionaries({"lr": st.floats(1e-12, 1), "snr_gamma": POSITIVE}),
        "sample": st.fixed_dictionaries({"prompts": st.lists(WORDS, max_size=3), "negative": st.text(max_size=9)}),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JOBS)
def test_a_job_written_out_is_the_same_job(tmp_path: Path, values: dict[str, Any]) -> None:
    spec = spec_from_options(ToySpec, values)
    file = write(tmp_path / "job.toml", dump_job(spec))
    again = read_job(file, METHODS)
    assert again == spec
    assert dump_job(again) == dump_job(spec)


@pytest.mark.parametrize("spec", [ToySpec, FileSpec])
def test_a_template_shows_every_key_and_only_the_required_ones_live(spec: type[Spec], tmp_path: Path) -> None:
    text = template(spec)
    shown = re.findall(r"^#?\[([\w.]+)\]$|^#?(\w+) =", text, re.MULTILINE)
    assert [table or key for table, key in shown if table or key] == sorted_like_template(spec)
    required = {"subject.prompt": "p", "model": "lab"} if spec is ToySpec else {}
    expected = spec_from_options(spec, required)
    filled = text.replace('source = ""', 'source = "lab"').replace('prompt = ""', 'prompt = "p"', 1)
    assert read_job(write(tmp_path / "adapter.toml", filled), METHODS) == expected
    defaults = "\n\n".join(re.sub(r"^#(\w+ = .+)$", r"\1", block, flags=re.M) for block in blocks(filled))
    assert "\noverwrite = false" in defaults
    assert read_job(write(tmp_path / "adapter.toml", defaults), METHODS) == expected


def blocks(text: str) -> list[str]:
    """The sections of a template, less those that are commented out as a whole."""
    return [block for block in text.split("\n\n") if not re.search(r"^#\[", block, re.M)]


def sorted_like_template(spec: type[Any], prefix: str = "") -> list[str]:
    """Keys before tables, as TOML needs them."""
    known = dict(fields(spec))
    own = [name for name in known if "." not in name]
    tables = [name for name in own if any(each.startswith(f"{name}.") for each in known)]
    inner = [f"{prefix}{table}" for table in tables]
    keys = [name for name in own if name not in tables]
    for table, shown in zip(tables, inner, strict=True):
        keys += [shown, *(each.removeprefix(f"{table}.") for each in known if each.startswith(f"{table}."))]
    return keys


@given(VALUES)
def test_a_value_on_one_line_means_the_same(value: Any) -> None:
    plain = tomllib.loads(tomli_w.dumps({"x": value}))["x"]
    if not re.search(r"datetime|inf", repr(plain)):
        assert tomllib.loads(f"x = {toml_value(plain)}")["x"] == plain


def test_types_in_words() -> None:
    assert words(tuple[float, float]) == "a list of 2 numbers"
    assert words(tuple[Path, ...] | None) == "a list of paths"
    assert dotted(("a", "b c", 2, "d")) == 'a."b c"[2].d'
