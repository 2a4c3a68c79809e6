"""Every command of the ten-minute tour is run, in order, as it is written; only the training is cut short."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHORTER = {
    "steps = 300": "steps = 3",
    "[prior]": "[prior]\nnum_images = 2",
    "[sample]": "[eval]\nsamples = 2\n\n[sample]",
}


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "index.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_tour(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    job = (tmp_path / "jobs" / "subject.toml").read_text()
    for long, short in SHORTER.items():
        assert long in job
        job = job.replace(long, short)
    (tmp_path / "jobs" / "subject.toml").write_text(job)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    assert len(commands()) > 8
    for command in commands():
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    expected = {"my-job.toml", "out/subject/before-after.png", "out/subject/job.toml", "out/pictures/sheet.png"}
    assert expected | {"out/night/job.toml", "out/subject/subject.safetensors"} <= made
