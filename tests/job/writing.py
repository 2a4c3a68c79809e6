"""Writes job files for the tests and reads what is wrong with them."""

from pathlib import Path

import pytest
from hypothesis import strategies as st

from loractl.errors import JobError
from loractl.job import override, read_job
from tests.toy import METHODS

MINIMUM = 'method = "toy"\nmodel = "lab"\nsubject.prompt = "a sks"\n'
KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6)
SCALARS = st.one_of(st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False), st.text(max_size=8), st.dates())
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def problems(file: Path, *sets: str) -> list[str]:
    """The sentences about a job, with the folder cut off."""
    with pytest.raises(JobError) as caught:
        read_job(file, METHODS, [override(each) for each in sets])
    return [problem.replace(f"{file.parent}/", "") for problem in caught.value.problems]
