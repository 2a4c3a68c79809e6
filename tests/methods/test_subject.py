"""The main job keeps its promise: the subject is learnt, prompts are followed, less is forgotten than the naive way."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.methods.lab_job import JOBS, run_job


@pytest.mark.slow
def test_the_subject_is_learnt_and_the_class_kept(tmp_path: Path) -> None:
    started = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "loractl",
        "--json",
        "run",
        str(JOBS / "subject.toml"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - started
    scores = json.loads(done.stdout.splitlines()[-1])["numbers"]
    print(f"subject: {scores} in {seconds:.0f} s")
    assert scores["subject_fidelity"] >= 0.8
    assert scores["prompt_fidelity"] >= 0.9
    naive = naive_at(scores["subject_fidelity"], tmp_path)
    assert scores["class_drift"] < naive["class_drift"]


def naive_at(fidelity: float, folder: Path) -> dict[str, float]:
    """The naive full fine-tune, trained as long as it takes to reach the same fidelity."""
    for steps in (25, 50, 75, 100, 150, 200, 300):
        outcome, _ = run_job(JOBS / "naive.toml", folder / f"naive-{steps}", f"train.steps={steps}")
        print(f"naive, {steps} steps: {dict(outcome.numbers)}")
        if outcome.numbers["subject_fidelity"] >= fidelity - 0.02:
            return dict(outcome.numbers)
    pytest.fail(f"the naive run never reached a subject fidelity of {fidelity}")
