"""What in a training job can't be carried out though every key of it is sound: problem by the key that it is told of.

The back refuses the same once the model is there; a person should not have to wait for that.
"""

import json
from collections.abc import Collection, Mapping

from loractl.bases import configuration, is_single_file
from loractl.samplers import unfit
from loractl.sections.learning import AdapterSection, EmbeddingSection, PriorSection

LEAST_RATE = 1e-7  # at which diffusers' polynomial schedule ends
STEADY = ("constant", "constant_with_warmup")  # schedules that do not depend on how many steps there are
OF_ADAPTERS = ("lr", "text_encoder_lr", "up_lr_ratio", "text_encoder_steps")  # keys of [train] that tokens don't hear
AT_LOADING = ("nf4", "int8")  # what is quantized as a diffusers folder is loaded
Problems = dict[str, str]


def rates(
    lr: float,
    text_encoder_lr: float | None,
    up_lr_ratio: float,
    adapter: AdapterSection | None,
    embedding: EmbeddingSection | None,
) -> dict[str, float]:
    """What learns, by the key of its rate → that rate."""
    found: dict[str, float] = {}
    if adapter is not None:
        targets = adapter.targets if isinstance(adapter.targets, dict) else {}
        own = {pattern: settings.lr for pattern, settings in targets.items() if settings.lr is not None}
        if not own or len(own) < len(targets):
            found["train.lr"] = lr
        found |= {f"adapter.targets.{json.dumps(pattern)}.lr": rate for pattern, rate in own.items()}
        if adapter.text_encoder:
            found["train.text_encoder_lr"] = text_encoder_lr or lr / 20
        if adapter.kind == "lora" and up_lr_ratio != 1:
            found |= {f"{up_lr_ratio:g} × {key}": up_lr_ratio * rate for key, rate in found.items()}
    if embedding is not None:
        found["embedding.lr"] = embedding.lr
    return found


def of_rates(optimizer: str, schedule: str, learning: Mapping[str, float], early_end: str | None) -> Problems:
    """`early_end` is the key that lets a part learn for fewer steps than another beside it, if one does."""
    told = ", ".join(f"{key} = {rate:g}" for key, rate in learning.items())
    if schedule == "polynomial" and min(learning.values(), default=1.0) <= LEAST_RATE:
        return {"schedule.name": f"polynomial ends at a rate of {LEAST_RATE:g} and must begin above it, but {told}"}
    if optimizer != "prodigy":
        return {}
    if len(set(learning.values())) > 1:
        return {"optimizer.name": f"prodigy finds one rate for all that learns: set {told} alike, usually to 1"}
    if early_end is not None and schedule not in STEADY:
        problem = f"prodigy has one rate for all, but with {early_end} the rates of a {schedule} schedule part"
        return {"optimizer.name": f'{problem}: set schedule.name = "constant"'}
    return {}


def of_memory(quantize: str, device: str, model: str) -> Problems:
    """`model` is the job's model.source."""
    if quantize in AT_LOADING and is_single_file(model):
        return {"memory.quantize": f'a checkpoint in one file can\'t be loaded in {quantize}: set quantize = "fp8"'}
    if quantize == "nf4" and device == "cpu":
        return {"memory.quantize": 'nf4 needs a GPU: set "int8" or "fp8" to train on a CPU'}
    return {}


def of_scheduler(key: str, scheduler: str | None, model: str) -> Problems:
    """`model` is the job's model.source; where it does not tell its own scheduler, the back will."""
    problem = unfit(scheduler, configuration(model, "scheduler/scheduler_config.json")) if scheduler else None
    return {key: problem} if problem else {}


def of_prior(prior: PriorSection | None, model: str) -> Problems:
    """Of the class pictures that would be made."""
    makes = prior is not None and prior.source == "images" and prior.weight > 0
    return of_scheduler("prior.scheduler", prior.scheduler if prior and makes else None, model)


def of_idle(said: Collection[str], adapter: AdapterSection | None) -> Problems:
    """Keys that nothing listens to; `said` are those of [train] that are not as without a word of them."""
    if adapter is None:
        alone = "tokens alone learn in this job, at the rate embedding.lr: leave it out"
        return {f"train.{key}": alone for key in OF_ADAPTERS if key in said}
    found: list[str] = []
    if not adapter.text_encoder:
        found += [f"train.{key}" for key in ("text_encoder_lr", "text_encoder_steps") if key in said]
        found += ["adapter.text_encoder_rank"] if adapter.text_encoder_rank is not None else []
    silent = "the text encoder does not learn: set adapter.text_encoder = true, or leave {} out"
    problems = {key: silent.format(key) for key in found}
    if adapter.kind == "full" and "up_lr_ratio" in said:
        problems["train.up_lr_ratio"] = 'LoRA+ is for low-rank factors: leave it out where adapter.kind = "full"'
    return problems


def of_warmup(schedule: str, steps: int) -> Problems:
    """What diffusers would pass over."""
    if steps and schedule == "constant":
        return {"schedule.warmup_steps": 'a constant rate does not rise: set schedule.name = "constant_with_warmup"'}
    return {}


def of_adapters(kept: bool, adapter: AdapterSection | None) -> Problems:
    """`kept` is the job's checkpoint.adapters."""
    if kept and (adapter is None or adapter.kind == "full"):
        return {"checkpoint.adapters": "this job makes no adapter that could be kept: leave it out"}
    return {}
