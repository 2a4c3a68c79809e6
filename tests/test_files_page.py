"""Every command of docs/files.md runs as it is written, in order, and says what the page says."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from loractl.cli import main

ROOT = Path(__file__).parents[1]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "files.md").read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    monkeypatch.chdir(tmp_path)
    said = {}
    for program, *words in commands():
        with pytest.raises(SystemExit) as left:
            main(["--json", *words])
        out, err = capsys.readouterr()
        assert (program, left.value.code) == ("loractl", 0), f"{words}\n{out}\n{err}"
        said[" ".join(words)] = json.loads(out.splitlines()[-1])
    proof = said["diff out/distilled.safetensors --merged out/baked --base jobs/data/models/base"]["numbers"]
    assert (proof["largest_error"], proof["changed_elsewhere"]) == (0, 0)
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert {
        "out/merged.safetensors",
        "out/small.safetensors",
        "out/sheet/sheet.png",
        "out/extracted.safetensors",
    } <= made
