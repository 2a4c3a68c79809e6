"""DreamBooth on the lab model, a few steps at a time."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loractl.cli import execute
from loractl.errors import InputError, JobError
from loractl.events import Facts, Note
from loractl.formats import load_adapter
from loractl.job import override, read_job
from loractl.plugins import load_plugins
from tests.methods.lab_job import JOBS, SHORT, run_job, run_subject, stages

PHOTOS = Path(__file__).parents[1] / "data" / "dreambooth"


def test_the_same_job_gives_the_same_bytes(tmp_path: Path) -> None:
    outcomes = [run_subject(tmp_path / name)[0] for name in ("one", "two")]
    for kind in ("diffusers", "kohya"):
        one, two = (outcome.files[kind].read_bytes() for outcome in outcomes)
        assert one == two
    other, _ = run_subject(tmp_path / "three", "seed=1")
    assert other.files["kohya"].read_bytes() != outcomes[0].files["kohya"].read_bytes()


def test_what_a_run_says_and_leaves(tmp_path: Path) -> None:
    outcome, events = run_subject(tmp_path / "out", 'eval.encoders=["lab"]', "eval.samples=2")
    facts = next(event.values for event in events if isinstance(event, Facts))
    assert facts["trainable parameters"] == outcome.numbers["trainable_parameters"]
    assert {"fewer than the whole model", "fewer than the adapted matrices", "adapter file"} <= facts.keys()
    assert {"subject pictures encoded", "class pictures", "train"} <= {*stages(events)}
    assert outcome.numbers.keys() == {
        *("loss", "trainable_parameters", "subject_fidelity", "prompt_fidelity", "class_drift", "memorization"),
    }
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {
        *(
            "pytorch_lora_weights.safetensors",
            "subject.safetensors",
            "before-after.png",
            "metrics.jsonl",
            ".lock",
            ".run",
            "scores.json",
        ),
        *("class/class-10000.png", "class/class-10001.png", "class/origin.json"),
    }
    adapter = load_adapter(outcome.files["diffusers"])
    assert adapter.parameters == outcome.numbers["trainable_parameters"]
    assert any(low.up.abs().max() > 0 for low in adapter.modules.values())


def test_class_pictures_are_reused(tmp_path: Path) -> None:
    class_folder = f"prior.images={tmp_path / 'class'}"
    first, events = run_subject(tmp_path / "one", class_folder)
    assert "class pictures" in stages(events)
    second, events = run_subject(tmp_path / "two", class_folder)
    assert "class pictures" not in stages(events)
    assert first.files["kohya"].read_bytes() == second.files["kohya"].read_bytes()


def test_accumulated_batches_train_like_the_big_batch(tmp_path: Path) -> None:
    exact = (
        "output.dtype=fp32",
        "train.lr=1e-4",
    )  # Adam makes large steps of the smallest gradients, rounding included
    whole, _ = run_subject(tmp_path / "whole", *exact, "train.batch_size=4")
    parts, _ = run_subject(tmp_path / "parts", *exact, "train.batch_size=2", "train.grad_accum=2")
    one, two = (load_file(outcome.files["diffusers"]) for outcome in (whole, parts))
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-5, rtol=0)


def test_without_a_class_prompt_there_is_no_prior(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    lines = ('method = "dreambooth"', 'model = "lab"', f'data.path = "{PHOTOS / "dog3"}"', 'subject.prompt = "sks dog"')
    job.write_text("\n".join(lines))
    short = [setting for setting in SHORT if not setting.startswith("prior")]
    outcome, events = run_job(job, tmp_path / "out", *short, "data.flip=true", "data.crop=random")
    assert "class pictures" not in stages(events) and "class_drift" not in outcome.numbers


def test_photographs_with_a_prior_and_sidecar_captions(tmp_path: Path) -> None:
    for photo in sorted((PHOTOS / "duck_toy").glob("*.jpg")):
        (tmp_path / photo.name).write_bytes(photo.read_bytes())
        (tmp_path / photo.name).with_suffix(".txt").write_text("a photo of sks toy")
    outcome, _ = run_subject(tmp_path / "out", f"data.path={tmp_path}", "data.captions=sidecar", "data.flip=true")
    assert outcome.numbers["loss"] > 0


def test_the_text_encoder_learns_when_asked(tmp_path: Path) -> None:
    outcome, _ = run_subject(tmp_path / "out", "adapter.text_encoder=true", "adapter.text_encoder_rank=2")
    adapter = load_adapter(outcome.files["diffusers"])
    text = adapter.component("text_encoder")
    assert len(text) == 12 and {low.rank for low in text.values()} == {2}
    assert any(low.up.abs().max() > 0 for low in text.values())


def test_targets_as_a_table_of_patterns(tmp_path: Path) -> None:
    outcome, _ = run_subject(tmp_path / "out", 'adapter.targets={"attn2.to_k"={rank=2, alpha=1.0}, "*.conv1"={}}')
    modules = load_adapter(outcome.files["kohya"]).component("unet")
    assert {low.rank for path, low in modules.items() if path.endswith("to_k")} == {2}
    assert {low.rank for path, low in modules.items() if path.endswith("conv1")} == {16}


def test_the_whole_unet_can_be_trained(tmp_path: Path) -> None:
    short = [setting for setting in SHORT if not setting.startswith("prior")]
    outcome, _ = run_job(JOBS / "naive.toml", tmp_path / "out", *short)
    assert outcome.numbers["trainable_parameters"] > 4e6
    trained = load_file(outcome.files["unet"] / "diffusion_pytorch_model.safetensors")
    from loractl.families.pipeline import LAB

    base = load_file(LAB / "unet" / "diffusion_pytorch_model.safetensors")
    assert trained.keys() == base.keys() and any(not torch.equal(trained[key], base[key]) for key in base)


def test_all_bad_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match=r"(?s)2 of 2 pictures.*empty\.png.*page\.jpg"):
        run_subject(tmp_path / "out", f"data.path={tmp_path}")
    photo = PHOTOS / "dog3" / "00.jpg"
    (tmp_path / "photo.jpg").write_bytes(photo.read_bytes())
    _, events = run_subject(tmp_path / "out", f"data.path={tmp_path}", "data.on_bad_image=skip")
    assert sum("skipped" in event.text for event in events if isinstance(event, Note)) == 2


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("adapter.kind=full", "remove adapter.rank"),
        ("model=nowhere/else/at-all", "there is no folder"),
        ("data.path=nowhere", "there is no file or folder"),
    ],
)
def test_impossible_jobs_are_refused(tmp_path: Path, setting: str, problem: str) -> None:
    with pytest.raises(JobError, match=problem):
        run_subject(tmp_path / "out", "adapter.rank=4", setting)


def test_the_resolved_job_gives_the_same_bytes_again(tmp_path: Path) -> None:
    plugins = load_plugins()
    settings = [override(setting) for setting in (*SHORT, f"output.path={tmp_path / 'out'}")]
    first = execute(read_job(JOBS / "subject.toml", plugins.methods, settings), plugins)
    written = {kind: path.read_bytes() for kind, path in first.files.items()}
    again = read_job(tmp_path / "out" / "job.toml", plugins.methods, [override("output.overwrite=true")])
    second = execute(again, plugins)
    assert {kind: path.read_bytes() for kind, path in second.files.items()} == written
