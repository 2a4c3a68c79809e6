"""The family of docs/examples, installed as a stranger's plugin is."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel

from loractl.errors import MismatchError
from loractl.inject.inject import adapter_parameters, inject
from loractl.inject.targets import resolve
from loractl.plugins import load_plugins
from tests.families.conftest import descend, load, paint
from tests.families.texts import t5, t5_tokenizer
from tests.families.tiny import flux
from tests.tiny import WIDTH

EXAMPLE = Path(__file__).parents[2] / "docs/examples/loractl-family"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet", "--no-deps")


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer, parts = t5_tokenizer(), flux().components
        transformer = ChromaTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        )
        pipeline = ChromaPipeline(parts["scheduler"], parts["vae"], t5(tokenizer), tokenizer, transformer)
    pipeline.save_pretrained(folder := tmp_path_factory.mktemp("chroma"))
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    subprocess.run([*PIP, "--no-build-isolation", "--no-index", "--target", tmp_path, EXAMPLE], check=True)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        load_plugins()
        yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "loractl_family"]:
        del sys.modules[name]
    load_plugins()


def test_without_the_plugin_the_family_is_not_known(chroma: Path) -> None:
    with pytest.raises(MismatchError, match="is a ChromaPipeline, which no family of base models knows"):
        load(chroma)


@pytest.mark.usefixtures("installed")
def test_with_it_the_family_learns_and_paints(chroma: Path) -> None:
    model = load(chroma)
    assert model.title == "Chroma"
    before = paint(model)
    inject(model.denoiser, resolve(model.denoiser, model.patterns("attention"), 4))
    losses = descend(model, list(adapter_parameters(model.denoiser).values()), encode_once=True)
    assert losses[-1] < 0.95 * losses[0]
    assert not torch.allclose(paint(model), before, atol=1e-2)
