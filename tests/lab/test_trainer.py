"""The recipe of the lab's weights: resumed runs are uninterrupted ones, and every stage of it runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from loractl.lab import train
from loractl.lab.reader import load_reader
from loractl.lab.scenes import ATTRIBUTES
from loractl.lab.trainer import Stage, Trainer

STAGE = Stage("toy", steps=10, batch=4, lr=0.01, weight_decay=0.1)


def run(work: Path, fail_after: int | None = None) -> Tensor:
    """The averaged weights of the whole stage, or KeyboardInterrupt after some of its steps."""
    torch.manual_seed(0)
    network, calls = nn.Linear(3, 3), 0

    def loss(rng: torch.Generator) -> Tensor:
        nonlocal calls
        if calls == fail_after:
            raise KeyboardInterrupt
        calls += 1
        return (network(torch.randn(4, 3, generator=rng)) - 1).square().mean()

    work.mkdir(exist_ok=True)
    Trainer(STAGE, [network], work).run(loss, save=2)
    return network.weight.detach()


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "two", fail_after=5)
    resumed = run(tmp_path / "two")
    assert torch.equal(resumed, run(tmp_path / "one"))
    assert not torch.equal(resumed, nn.Linear(3, 3).weight)


@pytest.mark.slow
def test_every_stage_of_the_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTOENCODER", "READER", "DENOISER"):
        monkeypatch.setattr(train, name, replace(getattr(train, name), steps=2))
    train.train(tmp_path, 1010, torch.device("cpu"), processes=1)
    assert {"model_index.json", "unet", "vae", "text_encoder", "tokenizer"} <= {
        path.name for path in tmp_path.iterdir()
    }
    pictures = torch.zeros(1, 3, 64, 64)
    logits = load_reader(tmp_path / "reader.safetensors")(pictures)
    assert {name: value.shape[1] for name, value in logits.items()} == {n: len(v) for n, v in ATTRIBUTES.items()}
