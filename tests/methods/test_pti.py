"""Pivotal tuning on the lab model, a few steps at a time. What moved when, and going on: tests/runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loractl_pti.phases import ADAPTER, TOKENS, phases
from loractl_pti.run import cook
from loractl_pti.spec import PhasesSection
from safetensors.torch import load_file

from loractl.errors import JobError
from loractl.formats import load_adapter
from loractl.job import override, read_job
from loractl.plugins import load_plugins
from tests.methods.lab_job import JOBS, SHORT, run_job


def test_tokens_come_before_the_adapter_in_sequence() -> None:
    active = phases(PhasesSection(mode="sequential", token_share=0.3), 10)
    assert [active(step) for step in range(10)] == [TOKENS] * 3 + [ADAPTER] * 7


def test_both_learn_until_the_tokens_are_frozen() -> None:
    active = phases(PhasesSection(mode="joint", token_share=0.5), 4)
    assert [active(step) for step in range(4)] == [TOKENS | ADAPTER] * 2 + [ADAPTER] * 2


@pytest.mark.parametrize(("share", "turns"), [(0.5, "tatata"), (0.25, "taaata"), (1.0, "tttttt")])
def test_turns_alternate_by_share(share: float, turns: str) -> None:
    active = phases(PhasesSection(mode="alternating", token_share=share, turn=5), 30)
    assert [active(step) for step in range(0, 30, 5)] == [TOKENS if turn == "t" else ADAPTER for turn in turns]
    assert all(active(step) == active(step // 5 * 5) for step in range(30))


@pytest.mark.parametrize(
    ("mode", "expected"), [("sequential", [4, 5, 6]), ("alternating", [2, 3, 6]), ("joint", [0, 1, 2])]
)
def test_the_text_encoder_stops_after_steps_of_its_own(mode: str, expected: list[int]) -> None:
    """Those in which the tokens alone learn don't count."""
    settings = (f"phases.mode={mode}", "phases.turn=2", "phases.token_share=0.5", "train.steps=8")
    learning = ("adapter.text_encoder=true", "train.text_encoder_steps=3")
    layers = [override(each) for each in (*settings, *learning)]
    spec: Any = read_job(JOBS / "pti.toml", load_plugins(["pti"]).methods, layers)
    recipe, untouched = cook(spec), phases(spec.phases, 8)
    assert [step for step in range(8) if "text_encoder" in recipe.active(step)] == expected
    assert all(recipe.active(step) | {"text_encoder"} == untouched(step) | {"text_encoder"} for step in range(8))


def test_a_bundle_and_files_of_their_own(tmp_path: Path) -> None:
    outcome, _ = run_job(JOBS / "pti.toml", tmp_path, *SHORT, "phases.mode=joint", "output.dtype=fp32")
    bundle, alone = load_adapter(outcome.files["kohya"]), load_adapter(outcome.files["diffusers"])
    assert bundle.modules.keys() == alone.modules.keys() and not alone.tokens
    rows = load_file(outcome.files["<rex> (learned_embeds)"])["<rex>"]
    assert torch.equal(bundle.tokens["text_encoder.<rex>"], rows)
    assert outcome.numbers["trainable_parameters"] == alone.parameters + rows.numel()


def test_the_weight_of_the_tokens_objective_scales_their_steps(tmp_path: Path) -> None:
    """Seen with SGD, which takes steps as long as the gradient; Adam would hide it."""
    start = (
        "optimizer.name=torch.optim.SGD",
        "train.steps=1",
        "train.max_grad_norm=1e9",
        "phases.mode=joint",
        "embedding.init=zero",
    )
    moved = {}
    for weight in (1.0, 3.0):
        settings = (*SHORT, *start, "output.dtype=fp32", f"phases.token_weight={weight}")
        outcome, _ = run_job(JOBS / "pti.toml", tmp_path / str(weight), *settings)
        moved[weight] = load_file(outcome.files["<rex> (learned_embeds)"])["<rex>"]
    torch.testing.assert_close(moved[3.0], 3 * moved[1.0], rtol=1e-4, atol=1e-9)


def test_the_prompt_must_have_the_token() -> None:
    with pytest.raises(JobError, match=r"<rex> is missing"):
        read_job(JOBS / "pti.toml", load_plugins().methods, [override("subject.prompt=a critter")])
