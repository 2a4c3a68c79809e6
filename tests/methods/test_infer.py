"""Pictures with adapters are those that diffusers makes with the same file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loractl_infer.command import infer, scheduled_use
from loractl_infer.prompts import Prompt, parse_prompt
from PIL import Image

from loractl.errors import FormatError, JobError, MismatchError
from loractl.families.pipeline import load_model
from loractl.formats import FormatName, save_adapter
from loractl.inject.inject import load_into
from loractl.inject.targets import resolve
from loractl.inject.tokens import initial_vectors
from loractl.job import dump_job, option, read_job
from loractl.plugins import load_plugins
from loractl.sample.adapted import apply, remove_all
from loractl.sample.denoise import Request, render
from loractl.sections.schedules import ScheduleSection
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank
from tests.methods.lab_job import JOBS, run_job

CPU = torch.device("cpu")
PROMPT = "a picture of a sks critter in the snow"


def strong_adapter(seed: int = 0) -> Adapter:
    """Random factors on attention, convolutions and the text encoder, of two ranks, alpha unlike the rank."""
    rng = torch.Generator().manual_seed(seed)
    model = load_model("lab", CPU, torch.float32)
    modules = {}
    for component, targets in (("unet", ["extended"]), ("text_encoder", ["text-encoder"])):
        for i, path in enumerate(resolve(model.components[component], targets, 4)):
            weight: Any = model.components[component].get_submodule(path).weight
            rank = 2 + 2 * (i % 2)
            down = torch.randn(rank, *weight.shape[1:], generator=rng) / 20
            up = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2), generator=rng) / 20
            modules[f"{component}.{path}"] = LowRank(down, up, alpha=3.0)
    return Adapter(modules)


def floats(pipeline: Any, prompt: str = PROMPT) -> np.ndarray:
    result = pipeline(
        prompt, num_inference_steps=4, height=64, width=64, output_type="np", generator=torch.Generator().manual_seed(7)
    )
    return np.asarray(result.images[0], np.float32)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_the_picture_equals_diffusers_own(tmp_path: Path, form: Any) -> None:
    file, adapter = tmp_path / "adapter.safetensors", strong_adapter()
    save_adapter(file, adapter, form, dtype=torch.float32, name="strong")
    ours, theirs, plain = (load_model("lab", CPU, torch.float32) for _ in range(3))
    for component in adapter.components():
        load_into(ours.components[component], adapter.component(component))
    theirs.pipeline.load_lora_weights(str(file))
    picture = floats(ours.pipeline)
    assert np.abs(picture - floats(plain.pipeline)).max() > 0.1
    np.testing.assert_allclose(picture, floats(theirs.pipeline), atol=1e-5)


def test_a_job_writes_pictures_that_say_how_they_were_made(tmp_path: Path) -> None:
    save_adapter(tmp_path / "strong.safetensors", strong_adapter(), "kohya", name="strong")
    settings = (f'adapters=[{{path="{tmp_path / "strong.safetensors"}", weight=0.5}}]', "sample.steps=2")
    outcome, _ = run_job(JOBS / "infer.toml", tmp_path / "out", *settings)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 11 and {"sheet.png", "trace.json", "trace.png"} <= {*names}
    assert names[0].startswith("0000-a-picture-of-a-red-critter-with-horns-in-the-") and names[0].endswith("-s1.png")
    first = Image.open(next(path for path in outcome.files.values() if path.name.startswith("0000")))
    said = json.loads(first.info["loractl"])
    assert said["seed"] == 1 and said["adapters"] == {"strong": 0.5} and said["steps"] == 2
    assert first.info["parameters"].startswith("a picture of a red critter with horns in the snow <lora:strong:0.5>")
    assert "Seed: 1, Size: 64x64" in first.info["parameters"]


def test_a_picture_does_not_depend_on_its_batch() -> None:
    model = load_model("lab", CPU, torch.float32)
    requests = [Request(PROMPT, seed, 2, 4.0, 64) for seed in range(3)]
    together = [np.asarray(picture, int) for picture in render(model.pipeline, requests, batch_size=3)]
    alone = [np.asarray(picture, int) for picture in render(model.pipeline, requests, batch_size=1)]
    assert all(np.abs(one - two).max() <= 1 for one, two in zip(together, alone, strict=True))


def test_weight_zero_is_the_plain_model(tmp_path: Path) -> None:
    save_adapter(tmp_path / "strong.safetensors", strong_adapter(), "diffusers", name="strong")
    plain, _ = run_job(JOBS / "infer.toml", tmp_path / "plain", "sample.steps=2", "sample.seeds=[1]")
    off = f'adapters=[{{path="{tmp_path / "strong.safetensors"}", weight=0.0}}]'
    zero, _ = run_job(JOBS / "infer.toml", tmp_path / "zero", "sample.steps=2", "sample.seeds=[1]", off)
    one, two = (np.asarray(Image.open(outcome.files["sheet"]), int) for outcome in (plain, zero))
    assert np.abs(one - two).max() <= 1


# --- learned tokens --------------------------------------------------------------------------------------------------

WIDTH = 96  # of the lab's text encoder
TOKENS = {"text_encoder.<rex>": 0.1 * torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(5))}
SAID = PROMPT.replace("sks", "<rex>")
REAL = Path(__file__).parents[1] / "data/adapters"


def lab() -> Any:
    return load_model("lab", CPU, torch.float32)


def test_a_token_makes_the_picture_that_diffusers_makes_of_the_same_file(tmp_path: Path) -> None:
    save_adapter(
        tmp_path / "learned_embeds.safetensors",
        Adapter({}, {}, TOKENS),
        "learned_embeds",
        dtype=torch.float32,
        name="rex",
    )
    ours, theirs = lab(), lab()
    plain = floats(ours.pipeline, SAID)
    apply(ours, tmp_path / "learned_embeds.safetensors", "rex")
    theirs.pipeline.load_textual_inversion(str(tmp_path))
    assert torch.equal(ours.encode_text([SAID]), theirs.encode_text([SAID]))
    picture = floats(ours.pipeline, SAID)
    np.testing.assert_allclose(picture, floats(theirs.pipeline, SAID), atol=1e-5)
    assert np.abs(picture - plain).max() > 0.1
    remove_all(ours)
    assert np.array_equal(floats(ours.pipeline, SAID), plain)


@pytest.mark.parametrize("file", ["Rex-v1.2.safetensors", "Rex-v1.2.pt"])
def test_the_name_of_an_a1111_file_is_its_word(tmp_path: Path, file: str) -> None:
    """Capitals, dots and several vectors included, which diffusers' own loader takes one of."""
    (rows,) = TOKENS.values()
    save_adapter(tmp_path / file, Adapter({}, {}, {"text_encoder.t": rows}), "a1111", dtype=torch.float32, name="t")
    words, brackets = lab(), lab()
    apply(words, tmp_path / file, "a", allow_pickle=True)
    save_adapter(tmp_path / "d", Adapter({}, {}, TOKENS), "learned_embeds", dtype=torch.float32, name="d")
    apply(brackets, tmp_path / "d", "d")
    assert torch.equal(words.encode_text([SAID.replace("<rex>", "Rex-v1.2")]), brackets.encode_text([SAID]))


def test_both_parts_of_a_bundle_apply(tmp_path: Path) -> None:
    """The picture is the one that diffusers makes with the two parts as files of their own."""
    adapter = strong_adapter()
    parts: list[tuple[FormatName, Adapter]] = [
        ("kohya", Adapter(adapter.modules, {}, TOKENS)),
        ("diffusers", adapter),
        ("learned_embeds", Adapter({}, {}, TOKENS)),
    ]
    for form, part in parts:
        save_adapter(tmp_path / f"{form}.safetensors", part, form, dtype=torch.float32, name=form)
    ours, theirs = lab(), lab()
    apply(ours, tmp_path / "kohya.safetensors", "bundle")
    theirs.pipeline.load_lora_weights(str(tmp_path / "diffusers.safetensors"))
    theirs.pipeline.load_textual_inversion(str(tmp_path))
    np.testing.assert_allclose(floats(ours.pipeline, SAID), floats(theirs.pipeline, SAID), atol=1e-5)


def test_tokens_that_do_not_fit_are_refused_with_the_name_of_their_file(tmp_path: Path) -> None:
    model = lab()
    with pytest.raises(FormatError, match=r"bad-artist\.pt is a pickle"):
        apply(model, REAL / "bad-artist.pt", "a")
    with pytest.raises(
        MismatchError, match=r"EasyNegative\.safetensors: .*\(8, 768\) and the text encoder's are 96 wide"
    ):
        apply(model, REAL / "EasyNegative.safetensors", "a")
    both = {f"text_encoder{suffix}.xl": torch.ones(1, WIDTH) for suffix in ("", "_2")}
    save_adapter(tmp_path / "xl", Adapter({}, {}, both), "a1111", name="xl")
    with pytest.raises(MismatchError, match="xl adapts text_encoder_2, which this model does not have"):
        apply(model, tmp_path / "xl", "a")
    save_adapter(tmp_path / "critter", Adapter({}, {}, {"text_encoder.c": torch.ones(1, WIDTH)}), "a1111", name="c")
    with pytest.raises(JobError, match='critter: "critter" is a word of the model\'s vocabulary already'):
        apply(model, tmp_path / "critter", "a")
    assert torch.equal(model.encode_text([SAID]), lab().encode_text([SAID]))


def test_a_job_uses_the_tokens_of_its_prompts(tmp_path: Path) -> None:
    """A token that starts at the rows of a word makes that word's picture, and is no LoRA to the picture's readers."""
    model = lab()
    rows = initial_vectors(model.tokenizer, model.pipeline.text_encoder, "critter", 1)
    save_adapter(
        tmp_path / "Rexy.pt", Adapter({}, {}, {"text_encoder.r": rows}), "a1111", dtype=torch.float32, name="r"
    )
    few = ("sample.steps=2", "sample.seeds=[1]")
    word, _ = run_job(JOBS / "infer.toml", tmp_path / "word", *few, f'sample.prompts=["{PROMPT}"]')
    settings = (f'sample.prompts=["{PROMPT.replace("critter", "Rexy")}"]', "allow_pickle=true")
    token, _ = run_job(
        JOBS / "infer.toml", tmp_path / "out", *few, *settings, f'adapters=[{{path="{tmp_path / "Rexy.pt"}"}}]'
    )
    one, two = (
        Image.open(next(path for name, path in outcome.files.items() if name != "sheet")) for outcome in (word, token)
    )
    assert np.array_equal(np.asarray(one), np.asarray(two))
    assert "<lora" not in two.info["parameters"]


# --- weights that change ---------------------------------------------------------------------------------------------


def saved(folder: Path, name: str, seed: int = 0) -> Path:
    adapter = strong_adapter(seed)
    low = {path: replace(each, alpha=1.0) for path, each in adapter.modules.items() if path.startswith("unet.")}
    save_adapter(folder / f"{name}.safetensors", Adapter(low), "kohya", name=name)
    return folder / f"{name}.safetensors"


def test_a_job_traces_its_schedules_and_counts_its_compositions(tmp_path: Path) -> None:
    face, style = saved(tmp_path, "face"), saved(tmp_path, "style", 1)
    adapters = (
        f'adapters=[{{path="{face}", schedule="0.0:0.2,0.5:1.0", layers={{mid_block=0.5}}}}, {{path="{style}", '
        'schedule={points=[[0, 1.0], [1, 0.0]], shape="linear", over="step"}}]'
    )
    few = ("sample.steps=4", "sample.prompts=['a red critter']", "sample.seeds=[1]", "composition.engine=composed")
    outcome, _ = run_job(JOBS / "infer.toml", tmp_path / "out", *few, adapters)
    assert outcome.numbers == {"pictures": 1, "made": 1, "weight_vectors": 3, "compositions": 3}
    (told,) = json.loads(outcome.files["trace"].read_text())["runs"]
    weights = [turn["weights"] for turn in told["turns"]]
    assert told["pictures"] == 1 and told["engine"] == "composed"
    assert weights[0] == {"face": 0.2, "face mid_block": 0.1, "style": 1.0}
    assert weights[1:] == [{"face": f, "face mid_block": f / 2, "style": 0.0} for f in (0.2, 1.0, 1.0)]
    assert Image.open(outcome.files["plot"]).width > 400


def test_prompts_name_weights_as_in_a1111(tmp_path: Path) -> None:
    """The tag is not read by the model, and its weight is that of its prompt alone."""
    face = saved(tmp_path, "face")
    prompts = "sample.prompts=['a red critter <lora:face:0.5>', 'a red critter']"
    few = ("sample.steps=2", "sample.seeds=[1]", prompts)
    tagged, _ = run_job(JOBS / "infer.toml", tmp_path / "tags", *few, f'adapters=[{{path="{face}", weight=0.0}}]')
    prompts = "sample.prompts=['a red critter']"
    plain, _ = run_job(JOBS / "infer.toml", tmp_path / "a", "sample.steps=2", "sample.seeds=[1]", prompts)
    half = f'adapters=[{{path="{face}", weight=0.5}}]'
    told, _ = run_job(JOBS / "infer.toml", tmp_path / "b", "sample.steps=2", "sample.seeds=[1]", prompts, half)
    one, two, without, given = (
        np.asarray(Image.open(outcome.files[f"{number:04d}-a-red-critter-s1"]), int)
        for outcome, number in ((tagged, 0), (tagged, 1), (plain, 0), (told, 0))
    )
    assert np.array_equal(one, given) and np.array_equal(two, without) and np.abs(one - two).max() > 10
    assert (
        Image.open(tagged.files["0000-a-red-critter-s1"]).info["parameters"].startswith("a red critter <lora:face:0.5>")
    )


def test_the_command_line_writes_the_same_job(tmp_path: Path) -> None:
    face = saved(tmp_path, "face")
    spec = infer(["a cat"], adapter=[f"{face}=1.0@0.0:0.2,0.5:1.0", f"{face}=-0.5", str(face)])
    first, second, third = spec.adapters
    assert first.schedule == ScheduleSection(points=((0.0, 0.2), (0.5, 1.0))) and first.weight == 1
    assert (second.weight, second.schedule, third.weight) == (-0.5, None, 1)
    assert spec.names == ("face", "face-2", "face-3")
    layers = {"mid_block": 0.5, "to_k": {"points": [[1, 0.5]], "over": "step"}}
    over = [option("", "adapters", [{"path": face, "layers": layers}, *spec.model_dump(mode="json")["adapters"]])]
    job = read_job(JOBS / "infer.toml", load_plugins().methods, over)
    (tmp_path / "job.toml").write_text(dump_job(job))
    assert read_job(tmp_path / "job.toml", load_plugins().methods) == job
    assert scheduled_use("a=b@c.safetensors") == {"path": "a=b@c.safetensors"}
    with pytest.raises(JobError, match=r'--adapter: "0.0-0.2" is not like 0:0.2,0.5:1 or linear:'):
        infer(["a cat"], adapter=[f"{face}=1.0@0.0-0.2"])


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ("'0.5:1,0.2:1'", "the places should rise, and 0.2 comes after 0.5"),
        ("'1.5:1'", "1.5 is no fraction: they go from 0 to 1"),
        ("{points=[[0.5, 1]], over='step'}", "0.5 is no step: steps are counted 0, 1, 2, …"),
        ("{points=[]}", "points"),
    ],
)
def test_schedules_that_make_no_sense_are_told_before_anything_is_loaded(
    tmp_path: Path, schedule: str, problem: str
) -> None:
    face = saved(tmp_path, "face")
    with pytest.raises(JobError, match=problem):
        run_job(JOBS / "infer.toml", tmp_path / "out", f"adapters=[{{path='{face}', schedule={schedule}}}]")


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("<lora:style:1>", "names the adapter style, which is not among the job's: there are face"),
        ("<lora:face:big>", "<lora:face:big> should be like <lora:name:0.8>, and 'big' is no number"),
        ("<lora:face:1><lora:face:2>", "each name once in a prompt"),
    ],
)
def test_tags_that_cannot_be_meant_are_told(tmp_path: Path, prompt: str, problem: str) -> None:
    with pytest.raises(JobError, match=problem):
        infer([prompt], adapter=[str(saved(tmp_path, "face"))])


def test_a_prompt_without_tags_is_left_as_it_is() -> None:
    assert parse_prompt("a  cat,\n<b>") == Prompt("a  cat,\n<b>")
    weights = (("face", 1.0), ("my:style", -0.5))
    assert parse_prompt("a <lora:face> cat <lora:my:style:-0.5>") == Prompt("a cat", weights)
