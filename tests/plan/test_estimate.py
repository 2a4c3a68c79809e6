"""A plan's numbers are those of the run it is made for, and of the models people know."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from loractl.bases import configurations
from loractl.cli.plan import lines, planned, read_for, settings
from loractl.errors import InputError, JobError, MismatchError
from loractl.events import Facts
from loractl.job import override, read_job
from loractl.plan.estimate import CONTEXT, estimate
from loractl.plan.gpus import Gpu, find
from loractl.plan.job import Estimate, Training
from loractl.plan.shapes import count, model_folder, networks, shapes_only
from loractl.plugins import load_plugins
from loractl.sections.presets import PRESETS
from tests.methods.lab_job import JOBS, run_subject
from tests.tiny import tiny_sd, tiny_sdxl

CARD = Gpu("card", 8, 400, 40)
Plan = Callable[..., Estimate]


def subject(*changes: str) -> Any:
    return read_job(JOBS / "subject.toml", load_plugins().methods, [override(change) for change in changes])


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The estimate for a tiny model with other settings than the usual; "sdxl" has two text encoders, "sd" one."""
    folder = tmp_path_factory.mktemp("models")
    tiny_sd().save_pretrained(folder / "sd")
    tiny_sdxl().save_pretrained(folder / "sdxl")
    load_plugins()  # families are plugins' to offer

    @cache
    def make(model: str = "sd", **changes: Any) -> Estimate:
        return estimate(Training(str(folder / model), **{"rank": 4, **changes}), CARD)

    return make


def test_the_plan_of_a_run_says_what_the_run_says(tmp_path: Path) -> None:
    """Trained parameters, modules and the adapter's size, with an adapter on the text encoder too."""
    changes = ("train.steps=1", "adapter.text_encoder=true", "adapter.text_encoder_rank=2", "sample.at_start=false")
    outcome, events = run_subject(tmp_path / "out", *changes, "prior.weight=0")
    facts = next(event.values for event in events if isinstance(event, Facts) and event.title == "what learns")
    told = planned(subject(*changes), None)
    assert told["trainable_parameters"] == facts["trainable parameters"] == outcome.numbers["trainable_parameters"]
    assert facts["adapter file"] == f"{told['file_bytes'] / 1e6:.2f} MB (fp16)"
    assert facts["modules"] == ", ".join(f"{count} in {name}" for name, count in told["modules"].items())
    with safe_open(outcome.files["diffusers"], "pt") as file:
        assert told["file_bytes"] == sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118


def test_a_plan_is_plain_values_and_lines() -> None:
    told = planned(subject(), "4090")
    assert json.loads(json.dumps(told)) == told
    assert told["peak_bytes"] == max(told["phases"].values()) < told["gpu"]["memory"]
    assert told["phases"]["training"] == sum(told["training"].values()) + CONTEXT["cuda"]
    assert "which fits a RTX 4090 of 24.00 GiB" in lines(told)


def test_only_training_is_planned() -> None:
    spec = read_job(JOBS / "infer.toml", load_plugins().methods)
    with pytest.raises(JobError, match="infer trains nothing"):
        planned(spec, "4090")


def test_what_a_job_says_reaches_the_estimate() -> None:
    job = Training(
        **settings(subject("memory.gradient_checkpointing=true", "train.grad_accum=3", "memory.phases=true"))
    )
    assert (job.batch, job.grad_accum, job.gradient_checkpointing, job.phases) == (
        8,
        3,
        True,
        True,
    )  # 4 and the class's
    assert job.samples == 2 * 4 * 2  # prompts × seeds, before and after
    assert job.targets == ("extended", "ff.net.2", "proj_in", "proj_out")


def test_each_setting_moves_its_own_part(plan: Plan) -> None:
    usual = plan()
    trained = usual.trained
    assert usual.training["adapter"] == usual.training["gradients"] == 4 * trained
    assert usual.training["optimizer"] == 8 * trained
    other = plan(optimizer="lion", averaged=True, rank=8, grad_accum=3, precision="fp32")
    assert other.trained == 2 * trained
    assert other.training["optimizer"] == other.training["averages"] == 4 * other.trained
    assert other.training["weights"] == 2 * usual.training["weights"]
    assert 3 * usual.operations < other.operations < 3.5 * usual.operations
    lean = plan(gradient_checkpointing=True, quantize="nf4")
    assert lean.training["activations"] < usual.training["activations"]
    assert lean.training["weights"] < usual.training["weights"]


def test_phases_leave_the_rest_outside(plan: Plan) -> None:
    usual, phased = plan(samples=4), plan(phases=True, samples=4)
    unet, whole = usual.parameters["unet"], sum(usual.parameters.values())
    others = 2 * (whole - usual.parameters["vae"])
    assert (usual.training["weights"], phased.training["weights"]) == (2 * whole, 2 * unet)
    assert phased.phases["pictures"] == usual.phases["pictures"] - others
    assert phased.phases["samples"] == max(CONTEXT["cuda"] + 2 * unet, usual.phases["samples"] - others)


def test_new_captions_at_every_step_keep_text_encoders_beside_the_denoiser(plan: Plan) -> None:
    read = {"phases": True, "reads_at_each_step": True}
    reading, elsewhere = plan("sdxl", **read), plan("sdxl", **read, texts_on_cpu=True)
    counts = {name: 2 * count for name, count in reading.parameters.items()}
    assert elsewhere.training["weights"] == counts["unet"]
    assert reading.training["weights"] == counts["unet"] + counts["text_encoder"] + counts["text_encoder_2"]
    for change in ("data.shuffle_tags=true", "data.tag_dropout=0.1"):
        assert settings(subject(change))["reads_at_each_step"] and not settings(subject())["reads_at_each_step"]


@pytest.mark.parametrize(("gpu", "preset"), [("3070", "8gb"), ("4090", "24gb"), ("H100", None)])
def test_a_preset_goes_by_the_gpu_that_is_named(gpu: str, preset: str | None, tmp_path: Path) -> None:
    """And not by that of this machine."""
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    changes = ["memory.preset=auto", f"model={tmp_path}", "eval.encoders=[]", "prior.weight=0"]
    layers = [override(change) for change in changes]
    spec: Any = read_for(gpu, JOBS / "subject.toml", load_plugins().methods, layers)
    settings = PRESETS[preset]["12B"] if preset else {"quantize": "none", "phases": False}
    assert {key: getattr(spec.memory, key) for key in settings} == settings


def test_words_that_learn_keep_their_encoders(plan: Plan) -> None:
    adapted, tokens = plan("sdxl", text_encoder=True, phases=True), plan(vectors=3, targets=None)
    assert set(adapted.modules) == {"unet", "text_encoder", "text_encoder_2"}
    assert adapted.training["weights"] == 2 * sum(adapted.parameters[name] for name in adapted.modules)
    assert (tokens.trained, tokens.modules) == (3 * 32, {})
    assert 0 < tokens.training["activations"] < adapted.training["activations"]


def test_the_whole_denoiser_learns_in_fp32(plan: Plan) -> None:
    whole = plan(whole=True, targets=None)
    unet = whole.parameters["unet"]
    assert (whole.trained, whole.training["adapter"]) == (unet, 0)
    assert whole.training["weights"] == 4 * unet + 2 * (sum(whole.parameters.values()) - unet)


def test_time_is_operations_over_what_the_card_does(plan: Plan) -> None:
    found, sampled = plan(), plan(phases=True, samples=4)
    moved = 2 * (found.training["activations"] + 2 * found.parameters["unet"])
    assert found.step == pytest.approx(max(found.operations / (40e12 * 0.35), moved / 400e9))
    assert found.total == pytest.approx(800 * (found.step or 0))
    assert (sampled.total or 0) > (found.total or 0)
    assert found.fits
    assert not replace(found, gpu=replace(CARD, memory=0.1)).fits


def test_a_target_that_matches_nothing_is_told_as_in_the_run(plan: Plan) -> None:
    with pytest.raises(MismatchError, match='no layer matches "attn3"'):
        plan(targets=("attn3",))


def test_a_folder_without_configurations_is_refused(tmp_path: Path) -> None:
    load_plugins()
    with pytest.raises(InputError, match=r"model_index\.json"):
        estimate(Training(str(tmp_path)), CARD)


# Parameters of the public models: their model cards and papers, in millions.
KNOWN = {
    "sd_v1": {"unet": 859.5, "vae": 83.7, "text_encoder": 123.1},
    "sd_v2_v": {"unet": 865.9, "vae": 83.7, "text_encoder": 340.4},
    "sdxl": {"unet": 2567.5, "vae": 83.7, "text_encoder": 123.1, "text_encoder_2": 694.7},
    "sd3": {
        "transformer": 2028.3,
        "vae": 83.8,
        "text_encoder": 123.7,
        "text_encoder_2": 694.7,
        "text_encoder_3": 4762.3,
    },
    "sd35_medium": {"transformer": 2243.2},
    "sd35_large": {"transformer": 8056.6},
    "flux_dev": {"transformer": 11901.4, "vae": 83.8, "text_encoder": 123.1, "text_encoder_2": 4762.3},
    "flux_schnell": {"transformer": 11891.2},
}


@pytest.mark.parametrize(
    "base", [pytest.param(base, marks=pytest.mark.slow) if base != "sd_v1" else base for base in KNOWN]
)
def test_the_configurations_are_of_the_models_people_know(base: str) -> None:
    load_plugins()
    with shapes_only():
        parts = networks(configurations(base), torch.bfloat16)
        assert {name: round(count(parts[name]) / 1e6, 1) for name in KNOWN[base]} == KNOWN[base]


@pytest.mark.slow
@pytest.mark.parametrize("base", ["sd_v1", "sdxl", "sd3", "flux_dev"])
def test_a_model_of_full_size_is_planned_without_its_weights(base: str) -> None:
    """The order of magnitude of what people see: Stable Diffusion 1 trains in 4 to 8 GB, Flux in bf16 not in 24."""
    load_plugins()
    found = estimate(Training(str(configurations(base)), gradient_checkpointing=True), find("4090"))
    assert found.fits is (base != "flux_dev")
    assert found.peak > 2 * sum(found.parameters.values())


def test_a_single_file_is_planned_by_its_header_alone(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    key = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    header = json.dumps({key: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert model_folder(str(file)) == configurations("sd_v1")
    assert model_folder(str(file), config=str(tmp_path)) == tmp_path
