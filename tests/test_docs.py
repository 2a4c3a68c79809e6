"""The pages that are made are as the program is, and the page people write plugins from tells of every hook."""

import subprocess
import sys
from pathlib import Path

from loractl import hookspecs
from loractl.fields import fields
from loractl.hookspecs import hookspec
from loractl.plugins import load_plugins
from loractl.problems import ALIASES

ROOT = Path(__file__).parents[1]
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspec.project_name}_spec")]


def test_the_generated_pages_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_hook_is_documented() -> None:
    page = (ROOT / "docs/writing-a-method.md").read_text(encoding="utf-8")
    assert HOOKS == ["register_methods", "register_captioners", "register_families", "on_event"]
    assert [hook for hook in HOOKS if f"`{hook}(" not in page] == []


def test_every_alias_means_a_key_of_some_method() -> None:
    keys = {key for method in load_plugins().methods.values() for key, _ in fields(method.spec)}
    assert set(ALIASES.values()) <= keys


def test_every_field_of_every_method_says_what_it_is() -> None:
    for method in load_plugins().methods.values():
        assert [key for key, field in fields(method.spec) if not field.description] == []
