"""Several sets of pictures: what [data] says holds for each that does not say it itself."""

from pathlib import Path
from typing import Any

import pytest

from loractl.errors import JobError
from loractl.job import dump_job, read_job
from loractl.plugins import load_plugins
from tests.job.writing import write

METHODS = load_plugins(["dreambooth", "fleet"]).methods
HEAD = 'method = "dreambooth"\nmodel = "lab"\nsubject.prompt = "a sks dog"\n'
SETS = """
[[data.sources]]
path = "one"
[[data.sources]]
glob = "two/*.png"
captions = "auto"
repeats = 1
template = "{name}"
"""
SAID = 'captions = "template"\ntemplate = "{prompt}, {name}"\nrepeats = 3\nmasks = "masks"\n'


def told(data: Any) -> list[tuple[str, str | None, int, str | None]]:
    return [(each.captions, each.template, each.repeats, each.masks and each.masks.name) for each in data.sets]


def read(folder: Path, text: str) -> Any:
    """The job; what is resolved of it is read again as the same."""
    for name in ("one", "masks"):
        (folder / name).mkdir(exist_ok=True)
    spec = read_job(write(folder / "job.toml", text), METHODS)
    assert read_job(write(folder / "resolved.toml", dump_job(spec)), METHODS) == spec
    return spec


def test_a_set_has_what_it_does_not_say_from_the_section(tmp_path: Path) -> None:
    expected = [("template", "{prompt}, {name}", 3, "masks"), ("auto", "{name}", 1, "masks")]
    assert told(read(tmp_path, f"{HEAD}[data]\n{SAID}{SETS}").data) == expected
    assert told(read(tmp_path, HEAD + SETS).data) == [("auto", None, 1, None), ("auto", "{name}", 1, None)]


def test_so_it_is_with_a_section_that_a_fleet_shares(tmp_path: Path) -> None:
    subject = '[[subjects]]\nname = "rex"\n' + SETS.replace("data.", "subjects.data.")
    job = HEAD.replace("dreambooth", "fleet") + f"[data]\n{SAID}{subject}"
    (rex,) = read(tmp_path, job).subjects
    assert told(rex.data) == [("template", "{prompt}, {name}", 3, "masks"), ("auto", "{name}", 1, "masks")]
    own = job.replace("[[subjects.data.sources]]", '[subjects.data]\ncaptions = "auto"\n[[subjects.data.sources]]', 1)
    (rex,) = read(tmp_path, own).subjects
    assert told(rex.data)[0] == ("auto", "{prompt}, {name}", 3, "masks")


def test_a_template_is_the_sets_own_or_the_sections(tmp_path: Path) -> None:
    one = f'{HEAD}[data]\ntemplate = "{{name}}"\n[[data.sources]]\npath = "one"\ncaptions = "template"\n'
    assert told(read(tmp_path, one).data) == [("template", "{name}", 1, None)]
    with pytest.raises(JobError, match='captions = "template" needs a template'):
        read(tmp_path, one.replace('template = "{name}"', ""))
