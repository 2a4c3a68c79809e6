"""What texts say is told anew where it changes, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loractl.families.sd import StableDiffusion
from loractl.runs.objective import Objective
from loractl.runs.recipe import Recipe
from tests.runs.test_going_on import run


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str]]]:
    """What was encoded in training, each with its step; after training, with the last."""
    steps, found = [-1], list[tuple[int, list[str]]]()
    encode, loss = StableDiffusion.encode_text, Objective.__call__

    def watched(self: StableDiffusion, captions: Any) -> Any:
        found.append((steps[0], list(captions)))
        return encode(self, captions)

    def counted(self: Objective, step: int, part: int) -> Any:
        steps[0] = step
        return loss(self, step, part)

    monkeypatch.setattr(StableDiffusion, "encode_text", watched)
    monkeypatch.setattr(Objective, "__call__", counted)
    return found


def test_the_adapters_phase_reads_each_caption_once_and_learns_the_same(
    told: list[tuple[int, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("sequential", tmp_path / "once", "output.dtype=fp32")
    captions = [caption for step, each in told if step >= 4 for caption in each]
    assert captions and len(captions) == len(set(captions))
    monkeypatch.setattr(Recipe, "words", frozenset({"tokens", "text_encoder"}))
    told.clear()
    run("sequential", tmp_path / "anew", "output.dtype=fp32")
    assert {step for step, _ in told} == {*range(8)}
    once, anew = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("once", "anew"))
    assert any(bool(tensor.any()) for key, tensor in once.items() if "lora_B" in key)
    for key, tensor in once.items():
        torch.testing.assert_close(tensor, anew[key], atol=1e-6, rtol=0)
