"""Textual inversion on the lab model, a few steps at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loractl.errors import JobError
from loractl.families.family import Family
from loractl.families.pipeline import load_model
from loractl.inject.inject import hash_of
from loractl.inject.tokens import remove_tokens
from loractl.job import override, read_job
from loractl.plugins import load_plugins
from loractl.runs import training
from tests.methods.lab_job import JOBS, run_job

SHORT = ("train.steps=3", "train.batch_size=2", "sample.steps=1", "sample.seeds=[0]", "eval.encoders=[]")


def run_ti(out: Path, *settings: str) -> dict[str, Path]:
    return dict(run_job(JOBS / "ti.toml", out, *SHORT, *settings)[0].files)


def test_only_the_tokens_rows_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = []

    def load(*arguments: Any, **settings: Any) -> Family:
        models.append(load_model(*arguments, **settings))
        return models[-1]

    monkeypatch.setattr(training, "load_model", load)
    files = run_ti(tmp_path, "optimizer.weight_decay=0.5", "embedding.init=zero")
    trained, untouched = models[0], load_model("lab", torch.device("cpu"), torch.float32)
    assert load_file(files["<rex> (a1111)"])["emb_params"].abs().max() > 0
    remove_tokens(trained.tokenizer, trained.components["text_encoder"])
    for name, network in untouched.networks.items():
        assert hash_of(trained.networks[name]) == hash_of(network), name
    table = trained.components["text_encoder"].get_input_embeddings().weight
    assert torch.equal(table, untouched.components["text_encoder"].get_input_embeddings().weight)


def test_several_tokens_each_with_its_start(tmp_path: Path) -> None:
    files = run_ti(
        tmp_path,
        'embedding.token=["<one>", "<two>"]',
        'embedding.init=["red critter", "zero"]',
        "embedding.vectors=2",
        "subject.prompt=a picture of a <one> <two> critter",
        "sample.prompts=[]",
    )
    assert {name for name in files if name.startswith("<")} == {
        *("<one> (learned_embeds)", "<one> (a1111)", "<two> (learned_embeds)", "<two> (a1111)"),
    }
    assert load_file(files["<one> (learned_embeds)"])["<one>"].shape == (2, 96)


def test_sentences_for_a_style(tmp_path: Path) -> None:
    assert "<rex> (a1111)" in run_ti(tmp_path, "subject.kind=style")


def test_norms_are_controlled(tmp_path: Path) -> None:
    common = ("embedding.lr=0.2", "train.steps=8", "embedding.norm_weight=100.0", "embedding.norm_target=0.5")
    norms = {}
    for norm in ("free", "pull", "preserve"):
        files = run_ti(tmp_path / norm, *common, f"embedding.norm={norm}", "output.dtype=fp32")
        norms[norm] = load_file(files["<rex> (a1111)"])["emb_params"].norm(dim=1)
    torch.testing.assert_close(norms["preserve"], _norm_of_critter().expand(4), rtol=1e-4, atol=0)
    assert (norms["pull"] - 0.5).abs().max() < 0.7 * (norms["free"] - 0.5).abs().min()


def _norm_of_critter() -> torch.Tensor:
    model = load_model("lab", torch.device("cpu"), torch.float32)
    ids = model.tokenizer("critter", add_special_tokens=False).input_ids
    table: torch.Tensor = model.components["text_encoder"].get_input_embeddings().weight
    return table[ids].mean(0).norm().detach()


def test_the_token_is_for_prompts_of_infer(tmp_path: Path) -> None:
    files = run_ti(tmp_path / "ti", "embedding.lr=0.5")
    pictures = {}
    for name, adapters in (("with", [files["<rex> (a1111)"]]), ("diffusers", [files["<rex> (learned_embeds)"]])):
        job = tmp_path / f"{name}.toml"
        word = "rex" if name == "with" else "<rex>"
        lines = [
            'method = "infer"',
            'model = "lab"',
            f'sample.prompts = ["a picture of a {word} critter"]',
            "sample.steps = 2",
        ]
        job.write_text("\n".join([*lines, *(f'[[adapters]]\npath = "{path}"' for path in adapters)]))
        outcome, _ = run_job(job, tmp_path / name)
        pictures[name] = next(path for key, path in outcome.files.items() if key != "sheet").read_bytes()[-2000:]
    assert pictures["with"] == pictures["diffusers"]


def test_a_prompt_without_the_token_is_refused() -> None:
    with pytest.raises(JobError, match=r"<rex> is missing"):
        read_job(JOBS / "ti.toml", load_plugins().methods, [override("subject.prompt=a critter")])
