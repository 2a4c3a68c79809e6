"""metrics.jsonl of a run that was interrupted is that of one which was not."""

from pathlib import Path

import pytest

from loractl.train.metrics import MetricsFile


def write(folder: Path, steps: range) -> bytes:
    metrics = MetricsFile(folder)
    for step in steps:
        metrics.add(step, {"loss": 1 / (step + 1), "grad_norm": 3e-17 * step, "lr": 1e-4})
    return metrics.path.read_bytes()


def test_a_line_for_each_step(tmp_path: Path) -> None:
    lines = write(tmp_path, range(1, 3)).splitlines()
    assert lines == [
        b'{"step": 1, "loss": 0.5, "grad_norm": 3e-17, "lr": 0.0001}',
        b'{"step": 2, "loss": 0.3333333333333333, "grad_norm": 6e-17, "lr": 0.0001}',
    ]


@pytest.mark.parametrize(
    "torn", [b"", b'{"step": 9, "lo', b'{"step": 9}', b"\n", b"\xff\xfe\n", b"7\n", b'{"loss": 1}\n']
)
def test_going_on_gives_the_bytes_of_the_uninterrupted_run(tmp_path: Path, torn: bytes) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = write(tmp_path / "whole", range(1, 21))
    write(tmp_path / "killed", range(1, 10))
    metrics = MetricsFile(tmp_path / "killed")
    with metrics.path.open("ab") as file:
        file.write(torn)
    metrics.truncate(7)
    assert whole.startswith(metrics.path.read_bytes())
    assert write(tmp_path / "killed", range(8, 21)) == whole
    assert [path.name for path in metrics.path.parent.iterdir()] == ["metrics.jsonl"]


def test_starting_over_empties_the_file_and_needs_none(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    metrics.truncate(0)
    assert not metrics.path.exists()
    write(tmp_path, range(1, 3))
    metrics.truncate(0)
    assert metrics.path.read_bytes() == b""
