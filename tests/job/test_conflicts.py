"""What a training job alone decides is found by `check`, with the line it is told of, as the back would refuse it."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import loractl_dreambooth
import loractl_eval
import loractl_fleet
import loractl_infer
import loractl_pti
import loractl_ti
import pytest
import torch

from loractl.bases import BASES, configurations
from loractl.data import buckets, captions
from loractl.errors import InputError, JobError
from loractl.job import dump_job, read_job
from loractl.lab.scenes import PLACES
from loractl.sections.conflicts import LEAST_RATE, STEADY
from loractl.sections.data import BUCKET_STEP, SourceSection
from loractl.sections.scoring import LAB_PLACES
from loractl.sections.training import ScheduleSection
from loractl.train.loop import Group, Plan, rate_table
from loractl.train.schedule import schedule_factor
from tests.cli.calling import call

PLUGINS = (loractl_dreambooth, loractl_eval, loractl_fleet, loractl_infer, loractl_pti, loractl_ti)
METHODS = {method.name: method for plugin in PLUGINS for method in plugin.register_methods()}

START = {
    "dreambooth": 'subject.prompt = "a sks critter"\ndata.path = "."',
    "ti": 'data.path = "."\n',
    "pti": 'subject.prompt = "a <subject> critter"\ndata.path = "."',
    "infer": 'sample.prompts = ["a sks critter"]',
    "eval": 'prompts = ["a sks critter"]\n',
}
ONE_RATE = "train.lr = 1.0\n"


def problems(folder: Path, method: str, text: str, model: str = "lab") -> list[str]:
    """The sentences about a job whose line 5 is the first of `text`."""
    job = folder / "job.toml"
    job.write_text(f'method = "{method}"\nmodel = "{model}"\n{START[method]}\n{text}', encoding="utf-8")
    try:
        read_job(job, METHODS)
    except JobError as error:
        return [problem.replace(f"{folder}/", "") for problem in error.problems]
    return []


CONFLICTS = [
    (
        "pti",
        'train.lr = 1.0\nembedding.lr = 0.5\noptimizer.name = "prodigy"',
        "job.toml:7: optimizer.name: prodigy finds one rate for all that learns: set train.lr = 1, embedding.lr = 0.5 "
        "alike, usually to 1",
    ),
    ("dreambooth", 'adapter.text_encoder = true\noptimizer.name = "prodigy"', "train.text_encoder_lr = 5e-06 alike"),
    ("dreambooth", 'train.up_lr_ratio = 16.0\noptimizer.name = "prodigy"', "16 × train.lr = 0.0016 alike"),
    ("dreambooth", 'optimizer.name = "prodigy"\n[adapter.targets]\n"*.a" = {lr = 1.0}\n"*.b" = {}', '"*.a".lr = 1 al'),
    (
        "dreambooth",
        f'{ONE_RATE}train.text_encoder_lr = 1.0\ntrain.text_encoder_steps = 9\nadapter.text_encoder = true\n'
        'schedule.name = "cosine"\noptimizer.name = "prodigy"',
        "job.toml:10: optimizer.name: prodigy has one rate for all, but with train.text_encoder_steps the rates of a "
        'cosine schedule part: set schedule.name = "constant"',
    ),
    (
        "pti",
        f'{ONE_RATE}embedding.lr = 1.0\nphases.mode = "joint"\nschedule.name = "linear"\noptimizer.name = "prodigy"',
        "job.toml:9: optimizer.name: prodigy has one rate for all, but with phases.mode the rates of a linear",
    ),
    ("ti", 'embedding.lr = 1e-7\nschedule.name = "polynomial"', "job.toml:6: schedule.name: polynomial ends at a rate"),
    ("ti", "optimizer.betas = [0.9, 1.0]", "job.toml:5: optimizer.betas[1]: should be less than 1, found 1.0"),
    ("ti", 'memory.quantize = "nf4"\nmemory.device = "cpu"', "job.toml:5: memory.quantize: nf4 needs a GPU"),
    ("ti", 'embedding.token = ["<a>", "<a>_4"]', 'job.toml:5: embedding: "<a>_4" would be read as a vector of "<a>"'),
    ("ti", "data.resolution = 32\ndata.buckets = true", "job.toml:6: data.buckets: buckets are multiples of 64 pixels"),
    ("ti", 'data.template = "a {thing}"', "job.toml:5: data.template: the template needs {name} or {prompt}"),
    (
        "ti",
        '[eval]\nevery = 1\nkeep_best = "diversity"\nsamples = 10',
        "job.toml:7: eval.keep_best: diversity needs two pictures of a prompt: eval.samples above 10",
    ),
    (
        "dreambooth",
        '[eval]\nencoders = ["some/clip"]\n[eval.fail_below]\ndiversity = 0.1\nsubject_fidelity = 0.5',
        "job.toml:9: eval.fail_below.subject_fidelity: subject_fidelity needs eval.held_out: pictures of the subject",
    ),
    (
        "eval",
        'encoders = [{source = "a.b", weights = "job.toml"}]\nfail_below.prompt_fidelity = 0.2\nsamples = 1',
        "job.toml:6: fail_below.prompt_fidelity: prompt_fidelity needs an encoder that reads texts",
    ),
    ("ti", "train.lr = 1e-3", "job.toml:5: train.lr: tokens alone learn in this job, at the rate embedding.lr: leave"),
    ("ti", "train.text_encoder_lr = 1e-3", "job.toml:5: train.text_encoder_lr: tokens alone learn"),
    ("ti", "train.up_lr_ratio = 4.0", "job.toml:5: train.up_lr_ratio: tokens alone learn"),
    ("ti", "train.text_encoder_steps = 4", "job.toml:5: train.text_encoder_steps: tokens alone learn"),
    (
        "dreambooth",
        "train.text_encoder_lr = 1e-5",
        "job.toml:5: train.text_encoder_lr: the text encoder does not learn: set adapter.text_encoder = true, or leave "
        "train.text_encoder_lr out",
    ),
    ("dreambooth", "train.text_encoder_steps = 5", "job.toml:5: train.text_encoder_steps: the text encoder does not"),
    ("pti", "train.text_encoder_steps = 5", "job.toml:5: train.text_encoder_steps: the text encoder does not learn"),
    ("pti", "adapter.text_encoder_rank = 5", "job.toml:5: adapter.text_encoder_rank: the text encoder does not learn"),
    (
        "dreambooth",
        'adapter.kind = "full"\ntrain.up_lr_ratio = 2.0',
        'job.toml:6: train.up_lr_ratio: LoRA+ is for low-rank factors: leave it out where adapter.kind = "full"',
    ),
    (
        "ti",
        "[schedule]\nwarmup_steps = 10",
        'job.toml:6: schedule.warmup_steps: a constant rate does not rise: set schedule.name = "constant_with_warmup"',
    ),
    ("ti", "checkpoint.adapters = true", "job.toml:5: checkpoint.adapters: this job makes no adapter that could"),
    ("eval", "fail_below.memorization = 0.2", "job.toml:5: fail_below.memorization: memorization needs training: the"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "text", "problem"), CONFLICTS)
def test_it_is_told_with_its_line(tmp_path: Path, method: str, text: str, problem: str) -> None:
    (found,) = problems(tmp_path, method, text)
    assert problem in found


def test_check_ends_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems(tmp_path, "pti", 'optimizer.name = "prodigy"')
    code, out, err = call(capsys, "check", str(tmp_path / "job.toml"))
    assert (code, out) == (2, "") and "job.toml:5: optimizer.name: prodigy finds one rate" in err


def test_a_checkpoint_in_one_file_is_not_quantized_as_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (found,) = problems(tmp_path, "ti", 'memory.quantize = "int8"', "model.safetensors")
    assert "job.toml:5: memory.quantize: a checkpoint in one file can't be loaded in int8" in found
    assert problems(tmp_path, "ti", 'memory.quantize = "fp8"', "model.safetensors") == []


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("ti", 'embedding.lr = 1.0\nschedule.name = "cosine"\noptimizer.name = "prodigy"'),
        ("pti", f'{ONE_RATE}embedding.lr = 1.0\nschedule.name = "cosine"\noptimizer.name = "prodigy"'),
        ("pti", f'{ONE_RATE}embedding.lr = 1.0\nphases.mode = "joint"\noptimizer.name = "prodigy"'),
        ("dreambooth", '[optimizer]\nname = "prodigy"\n[adapter.targets]\n"*.a" = {lr = 1.0}\n"*.b" = {lr = 1.0}'),
        ("ti", 'train.max_grad_norm = 2.0\nschedule = {name = "constant_with_warmup", warmup_steps = 10}'),
        ("pti", "adapter.text_encoder = true\ntrain.text_encoder_steps = 5\ntrain.text_encoder_lr = 1e-5"),
        ("dreambooth", 'adapter.kind = "full"\nadapter.text_encoder = true\ntrain.text_encoder_steps = 5'),
        ("dreambooth", 'eval.fail_below.subject_fidelity = 0.5\neval.fail_below.diversity = 0.1'),
        ("dreambooth", 'eval.encoders = ["some/clip"]\neval.held_out = "."\neval.fail_below.subject_fidelity = 0.5'),
    ],
)  # fmt: skip
def test_what_can_be_had_is_not_refused(tmp_path: Path, method: str, text: str) -> None:
    assert problems(tmp_path, method, text) == []


def test_the_rate_that_a_family_has_is_not_taken_for_one_that_was_set(tmp_path: Path) -> None:
    """A resolved job says it, though it means nothing to tokens."""
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}', encoding="utf-8")
    assert problems(tmp_path, "ti", "", str(tmp_path)) == []
    resolved = dump_job(read_job(tmp_path / "job.toml", METHODS))
    (tmp_path / "again.toml").write_text(resolved, encoding="utf-8")
    assert "lr = 0.0004" in resolved and read_job(tmp_path / "again.toml", METHODS)
    assert len(problems(tmp_path, "ti", "train.lr = 1e-4", str(tmp_path))) == 1


@pytest.mark.parametrize("base", ["sd3", "sd_v1"])
def test_class_pictures_of_a_flow_model_are_made_by_its_own_scheduler(base: str, tmp_path: Path) -> None:
    """As the back says it; what makes no pictures and what can't be told is left alone."""
    said = 'subject.class_prompt = "a critter"\nprior.scheduler = "dpm++2m"'
    wrong = ["job.toml:6: prior.scheduler: DPM++ 2M is not for a flow model: leave the scheduler out"]
    for method in ("dreambooth", "pti"):
        for model in (str(configurations(base)), BASES[base].repo):
            assert problems(tmp_path, method, said, model) == (wrong if base == "sd3" else [])
    assert problems(tmp_path, "dreambooth", f"{said}\nprior.weight = 0.0", str(configurations(base))) == []
    assert problems(tmp_path, "dreambooth", said, "some/name") == []


@pytest.mark.parametrize("base", ["flux_dev", "sdxl"])
def test_so_are_the_pictures_of_an_inference_job(base: str, tmp_path: Path) -> None:
    told = problems(tmp_path, "infer", 'sample.scheduler = "k_euler"', str(configurations(base)))
    wrong = "job.toml:4: sample.scheduler: Euler is not for a flow model: leave the scheduler out"
    assert told == ([wrong] if base == "flux_dev" else [])


def test_a_fleet_is_judged_by_its_subjects(tmp_path: Path) -> None:
    """What all have in common may be impossible as long as each subject's own is not."""
    shared = 'method = "fleet"\nmodel = "lab"\nsubject.prompt = "a sks"\nadapter.text_encoder = true\n'
    own = '[[subjects]]\nname = "a"\ndata.path = "."\ntrain.lr = 1.0\ntrain.text_encoder_lr = {}\n'
    job = tmp_path / "fleet.toml"
    for rate in (1.0, 0.5):
        job.write_text(shared + 'optimizer.name = "prodigy"\n' + own.format(rate), encoding="utf-8")
        if rate == 1:
            assert read_job(job, METHODS).method == "fleet"
        else:
            with pytest.raises(JobError, match="the subject a: prodigy finds one rate"):
                read_job(job, METHODS)


# That the front knows what the back does


@pytest.mark.parametrize("name", get_args(ScheduleSection.model_fields["name"].annotation))
def test_rates_of_parts_that_end_apart_agree_on_steady_schedules_alone(name: str) -> None:
    groups = [Group(each, [torch.nn.Parameter(torch.zeros(1))], 1.0) for each in ("short", "long")]
    active = {step: frozenset({"long", "short"} if step < 5 else {"long"}) for step in range(10)}
    table = rate_table(groups, Plan(10, schedule=name, warmup_steps=2, active=active.__getitem__))
    agree = all(len({rate for rate in row if rate is not None}) == 1 for row in table)
    assert agree == (name in STEADY)


def test_the_polynomial_schedule_begins_above_its_end() -> None:
    assert schedule_factor("polynomial", 0, 5, 1.1 * LEAST_RATE)(0) == 1
    with pytest.raises(JobError, match="polynomial"):
        schedule_factor("polynomial", 0, 5, LEAST_RATE)


@pytest.mark.parametrize(
    "template", ["{name}", "{prompt}, {name}", "a", "{}", "{name", "{nam}", "{name!r}", "{name:>5}"]
)
def test_a_template_is_refused_where_it_would_not_be_filled(template: str) -> None:
    def refused(read: Callable[[], object]) -> bool:
        try:
            read()
        except (ValueError, InputError):
            return True
        return False

    late = refused(lambda: captions.fill(template, "name", "prompt"))
    assert refused(lambda: SourceSection(path=Path(), template=template)) == late


def test_its_numbers_are_those_of_the_back() -> None:
    assert (buckets.STEP, len(PLACES)) == (BUCKET_STEP, LAB_PLACES)
