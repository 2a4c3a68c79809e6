"""A model is scored, the result is written, and then, not before, a score that is too low is an error."""

import json
from pathlib import Path
from typing import Any

import loractl_eval.run
import numpy as np
import pytest
import torch
from loractl_eval import register_methods, start
from loractl_eval.command import evaluate
from loractl_eval.spec import EvalSpec
from PIL import Image
from safetensors.torch import save_file
from typer import BadParameter

from loractl.errors import JobError, ScoreError
from loractl.evaluate.scores import Make, Score
from loractl.events import Event, Facts
from loractl.formats import save_adapter
from loractl.job import dump_job, override, read_job
from loractl.method import Outcome
from loractl.tensors.adapter import Adapter
from tests.evaluate.encoders import save_clip, save_dinov2
from tests.methods.lab_job import JOBS, run_job, stages
from tests.tensors.updates import random_update

METHODS = {method.name: method for method in register_methods()}
SHORT = ("samples=12", "sample.steps=1")
PROMPT = ["a picture of a sks critter"]


def job(out: Path, *settings: str) -> Any:
    return read_job(JOBS / "eval.toml", METHODS, [override(each) for each in (*SHORT, f"output.path={out}", *settings)])


def run(spec: EvalSpec) -> tuple[Outcome, list[Event]]:
    events: list[Event] = []
    return start(spec, events.append), events


def test_the_job_that_comes_with_loractl(tmp_path: Path) -> None:
    outcome, events = run(job(tmp_path))
    written = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    names = {"subject_fidelity", "prompt_fidelity", "class_drift", "diversity", "memorization"}
    assert written["scores"].keys() == outcome.numbers.keys() == names
    assert {name: score["value"] for name, score in written["scores"].items()} == outcome.numbers
    assert all(score["low"] <= score["high"] and score["count"] == 12 for score in written["scores"].values())
    assert next(event.values for event in events if isinstance(event, Facts)).keys() == names
    assert stages(events) == ["class samples before", "subject samples", "class samples after"]
    assert Image.open(outcome.files["grid"]).height > 30 * 128, "a row for each place and stage, and the held-out one"


def test_the_adapters_are_what_is_judged(tmp_path: Path) -> None:
    plain, _ = run(job(tmp_path / "plain", "adapters=[]"))
    assert plain.numbers["class_drift"] == 0
    adapter = JOBS / "data/adapters/one.safetensors"
    wild, _ = run(job(tmp_path / "wild", f'adapters=[{{path="{adapter}", weight=40.0}}]'))
    assert wild.numbers["class_drift"] > 0.1
    assert wild.numbers["subject_fidelity"] != plain.numbers["subject_fidelity"]


def test_adapters_of_every_kind_are_judged_as_infer_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DoRA, LoHa, a difference of a bias, and a learned token in a bundle."""
    attention, conv = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.", "unet.down_blocks.0.resnets.0.conv1"
    dora = {f"{attention}to_k": torch.linspace(0.5, 2, 112)[:, None]}
    bundled: dict[str, Any] = {
        "vectors": {"unet.conv_in.bias": torch.linspace(-1, 1, 48)},
        "tokens": {"text_encoder.<rex>": torch.linspace(-1, 1, 192).view(2, 96)},
    }
    adapters = {
        "dora": Adapter({f"{attention}to_k": random_update((112, 96), 2, 2.0, 0)}, magnitudes=dora),
        "bundle": Adapter({conv: random_update((48, 48, 3, 3), 2, 0.1, 1)}, **bundled),
    }
    for name, adapter in adapters.items():
        save_adapter(tmp_path / f"{name}.safetensors", adapter, "kohya", dtype=torch.float32, name=name)
    flat, low = f"lora_{attention}to_v".replace(".", "_"), random_update((112, 96), 2, 2.0, 2)
    loha = {"hada_w1_a": low.up, "hada_w1_b": low.down, "hada_w2_a": -low.up, "hada_w2_b": low.down.flip(0)}
    save_file({f"{flat}.{key}": tensor for key, tensor in loha.items()}, tmp_path / "loha.safetensors")
    uses = ", ".join(f'{{path="{tmp_path / name}.safetensors", weight=0.8}}' for name in ("dora", "loha", "bundle"))
    prompt, seen = "a picture of a <rex> critter", list[Image.Image]()

    class Watcher:
        def before(self, make: Make) -> None:
            seen.extend(make([prompt], "before"))

        def after(self, make: Make) -> dict[str, Score]:
            seen.extend(make([prompt], "after"))
            return {}

    monkeypatch.setattr(loractl_eval.run, "make_scorer", lambda *_: Watcher())
    run(job(tmp_path / "out", f"adapters=[{uses}]", "seed=3", "sample.steps=2"))
    (tmp_path / "infer.toml").write_text(
        f'method="infer"\nmodel="lab"\nadapters=[{uses}]\nsample={{prompts=["{prompt}"], seeds=[3], steps=2}}\n'
    )
    shown, _ = run_job(tmp_path / "infer.toml", tmp_path / "infer")
    plain, judged, right = map(np.asarray, (*seen, Image.open(next(iter(shown.files.values())))))
    assert np.array_equal(judged, right) and not np.array_equal(judged, plain)


def test_a_score_that_is_too_low_is_an_error_once_all_is_written(tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match=r"subject_fidelity is 0\.\d+, below 1\.5") as failure:
        run(job(tmp_path, "fail_below={subject_fidelity=1.5, prompt_fidelity=0}", "class_prompts=[]"))
    assert failure.value.exit_code == 8
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json", "grid.png"}


def test_encoders_judge_any_model(tmp_path: Path) -> None:
    for save, name in ((save_dinov2, "dino"), (save_clip, "clip")):
        save(tmp_path / name)
    folders = f'encoders=["{tmp_path / "dino"}", "{tmp_path / "clip"}"]'
    outcome, _ = run(job(tmp_path / "out", folders, "samples=2", 'class_prompts=["a critter"]'))
    scores = json.loads(outcome.files["scores"].read_text(encoding="utf-8"))
    assert scores["encoders"] == [str(tmp_path / "dino"), str(tmp_path / "clip")]
    assert outcome.numbers.keys() >= {"subject_fidelity", "prompt_fidelity", "class_drift", "diversity", "memorization"}
    assert all(-1 <= value <= 2 for value in outcome.numbers.values())


def test_the_command_says_what_the_job_says(tmp_path: Path) -> None:
    folder = JOBS / "data"
    adapter = folder / "adapters/one.safetensors"
    spec = evaluate(
        PROMPT,
        adapter=[f"{adapter}=0.5"],
        held_out=folder / "held-out",
        training=folder / "subject",
        class_prompt=["a picture of a critter"],
        samples=12,
        steps=1,
        fail_below=["subject_fidelity=0.8"],
        out=tmp_path,
    )
    said = job(tmp_path, "fail_below.subject_fidelity=0.8", f'adapters=[{{path="{adapter}", weight=0.5}}]')
    assert spec == said
    (tmp_path / "again.toml").write_text(dump_job(spec), encoding="utf-8")
    assert read_job(tmp_path / "again.toml", METHODS) == spec


def test_a_limit_is_a_score_and_a_number() -> None:
    with pytest.raises(BadParameter, match="not like subject_fidelity="):
        evaluate(PROMPT, fail_below=["subject_fidelity"])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["fail_below.class_drift=0.5"], "class_drift"),
        (["fail_below.memorization=0.5", "training="], "path is empty"),
        (["model=some/model"], "name at least one of encoders"),
        (["model=some/model", 'encoders=["lab"]'], "judges alone"),
        (['encoders=["lab", "some/clip"]'], "judges alone"),
        (['encoders=["./nowhere"]'], "there is no folder"),
        (["prompts=[]"], "prompts"),
    ],
)
def test_impossible_jobs_are_refused(tmp_path: Path, settings: list[str], problem: str) -> None:
    with pytest.raises(JobError, match=problem):
        job(tmp_path, *settings)


def test_a_limit_needs_what_it_is_measured_with() -> None:
    with pytest.raises(JobError, match=r"--fail-below: memorization needs training"):
        evaluate(PROMPT, fail_below=["memorization=0.1"])
