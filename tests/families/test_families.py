"""Every family from end to end on tiny models: it learns, and others make of its files what loractl does."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from loractl.errors import MismatchError
from loractl.families.conditioning import Conditioning
from loractl.formats import load_adapter, save_adapter
from loractl.inject.tokens import add_tokens, token_parameters
from loractl.sample.adapted import apply
from loractl.tensors.adapter import Adapter
from tests.families.conftest import PROMPT, SHORT, Train, Trained, descend, load, paint
from tests.families.tiny import PIPELINES
from tests.methods.lab_job import JOBS, run_job

FAMILIES = list(PIPELINES)
KOHYA = ["sdxl", "sd3", "flux"]
each_family = pytest.mark.parametrize("name", FAMILIES)


def theirs(done: Trained, adapter: Path) -> Tensor:
    """The picture of diffusers' own pipeline with a file that it has loaded itself."""
    model = load(done.folder)
    pipeline = DiffusionPipeline.from_pretrained(done.folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name)
    model.pipeline = pipeline
    return paint(model)


@each_family
def test_an_adapter_learns(trained: Train, name: str) -> None:
    losses = trained(name).losses
    assert losses[-1] < 0.95 * losses[0]
    assert not torch.allclose(trained(name).picture, paint(load(trained(name).folder)), atol=1e-2)


@each_family
def test_diffusers_renders_the_same(trained: Train, name: str) -> None:
    done = trained(name)
    torch.testing.assert_close(theirs(done, done.file), done.picture, rtol=0, atol=1e-5)


@each_family
def test_a_token_learns_in_every_text_encoder(trained: Train, name: str) -> None:
    model = load(trained(name).folder)
    rows = {}
    for encoder, tokenizer in model.tokenizers.items():
        width = model.components[encoder].get_input_embeddings().embedding_dim
        start = 0.1 * torch.randn(2, width, generator=torch.Generator().manual_seed(0))
        add_tokens(tokenizer, model.components[encoder], {"<rex>": start})
        rows[encoder] = (token_parameters(model.components[encoder])["<rex>"], start)
    parameters = [parameter for parameter, _ in rows.values()]
    losses = descend(model, parameters, encode_once=False, steps=6, lr=5e-2)
    assert losses[-1] < losses[0]
    assert all((parameter != start).all() for parameter, start in rows.values())


@each_family
@pytest.mark.parametrize("method", ["ti", "pti", "dreambooth"])
def test_the_training_methods(trained: Train, name: str, method: str, tmp_path: Path) -> None:
    job = JOBS / ("subject.toml" if method == "dreambooth" else f"{method}.toml")
    more = () if method == "ti" else ("prior.source=prediction", "adapter.targets=['attention']")
    if method != "dreambooth":
        more += ("embedding.vectors=2", "embedding.init=random")
    outcome, _ = run_job(job, tmp_path, *SHORT, *more, f"model={trained(name).folder}")
    model = load(trained(name).folder)
    before = paint(model, "a <rex> dog")
    for what, path in outcome.files.items():
        if what == "diffusers" or (method != "dreambooth" and "a1111" in what):
            apply(model, path, what.partition(" ")[0].strip("<>"))
    assert torch.isfinite(torch.tensor(outcome.numbers["loss"]))
    assert not torch.equal(paint(model, "a <rex> dog"), before)


@pytest.mark.parametrize("name", ["sd", *KOHYA])
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_text_encoders_adapt(trained: Train, name: str, form: str, tmp_path: Path) -> None:
    """All that diffusers loads adapters for, in one file with the denoiser's."""
    job = (JOBS / "subject.toml", tmp_path, *SHORT, "prior.weight=0", "adapter.targets=['attention']")
    learning = ("adapter.text_encoder=true", "train.lr=0.1", "train.text_encoder_lr=0.1")
    outcome, _ = run_job(*job, *learning, f"model={trained(name).folder}")
    model = load(trained(name).folder)
    before = model.encode_text([PROMPT])
    adapter = apply(model, outcome.files[form], "own")
    assert set(adapter.components()) == {model.denoiser_name, *model.adaptable}
    told = model.encode_text([PROMPT])
    assert not all(torch.equal(*pair) for pair in zip(named(before), named(told), strict=True))  # Flux hears T5 as well
    if form == "diffusers":
        expected = theirs(trained(name), outcome.files[form])
        torch.testing.assert_close(expected, paint(model), rtol=0, atol=1e-5)


def named(told: Conditioning) -> list[Tensor]:
    return [told] if isinstance(told, Tensor) else list(told.values())


@each_family
def test_merging_baking_and_distilling(trained: Train, name: str, tmp_path: Path) -> None:
    done = trained(name)
    halves = f"adapters=[{{path='{done.file}', weight=0.5}}, {{path='{done.file}', weight=0.5}}]"
    run_job(JOBS / "merge.toml", tmp_path / "merged.safetensors", halves)
    assert_same_updates(load_adapter(tmp_path / "merged.safetensors"), done)
    run_job(JOBS / "bake.toml", tmp_path / "baked", f"model={done.folder}", f"adapters=[{{path='{done.file}'}}]")
    torch.testing.assert_close(paint(load(tmp_path / "baked")), done.picture, rtol=0, atol=1e-4)
    pair = (f"tuned={tmp_path / 'baked'}", f"base={done.folder}")
    run_job(JOBS / "distill.toml", tmp_path / "distilled.safetensors", *pair, "output.dtype=fp32", "energy=1.0")
    assert_same_updates(load_adapter(tmp_path / "distilled.safetensors"), done, 1e-3)


def assert_same_updates(adapter: Adapter, done: Trained, tolerance: float = 1e-5) -> None:
    """A module that changes nothing may be missing: no use is made of all that the last block says to the text."""
    expected, found = done.adapter.modules, adapter.modules
    assert found.keys() <= expected.keys()
    for path, low in expected.items():
        change = found[path].delta() if path in found else torch.zeros(low.shape)
        torch.testing.assert_close(change, low.delta(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", KOHYA)
def test_kohyas_names(trained: Train, name: str, tmp_path: Path) -> None:
    """What was saved in kohya's form is read from it. diffusers reads it too, Flux's at its true widths alone."""
    done, file = trained(name), tmp_path / "kohya.safetensors"
    save_adapter(file, done.adapter, "kohya", dtype=torch.float32, name=name)
    assert_same_updates(load_adapter(file, load(done.folder).module_paths()), done)
    if name == "sdxl":
        torch.testing.assert_close(theirs(done, file), done.picture, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted({*FAMILIES} - {*KOHYA, "sd", "sd2"}))
def test_what_kohya_has_no_names_for_is_refused(trained: Train, name: str, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="kohya's"):
        save_adapter(tmp_path / "kohya.safetensors", trained(name).adapter, "kohya", name=name)
