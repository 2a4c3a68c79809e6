"""The real command in a process of its own, without torch where no torch is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

import loractl

PROBE = """
import sys
from loractl.cli import main
try:
    main(sys.argv[1:])
finally:
    assert 'torch' not in sys.modules
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("check bad.toml", 2),
        ("methods", 0),
        ("new dreambooth", 0),
        ("schema", 0),
        ("infer --help", 0),
        ("run", 2),
    ],
)
def test_torch_is_not_imported(here: Path, words: str, code: int) -> None:
    (here / "bad.toml").write_text('method = "dreambooth"', encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", PROBE, *words.split()], capture_output=True, text=True)
    assert (done.returncode, "AssertionError" in done.stderr) == (code, False)


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "loractl", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"loractl {loractl.__version__}\n")
