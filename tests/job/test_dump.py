"""A job written out and read again is the same job, and so is a template with its blanks filled."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loractl.fields import fields, words
from loractl.job import dump_job, read_job, spec_from_options
from loractl.problems import dotted
from loractl.specs import Spec
from loractl.template import template, toml_value
from tests.job.writing import VALUES, write
from tests.toy import METHODS, FileSpec, ToySpec

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
