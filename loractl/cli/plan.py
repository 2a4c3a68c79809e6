"""`loractl plan`: what a training job would take, told before anything of it is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loractl.errors import JobError
from loractl.job import Layer, option, read_job
from loractl.method import Method
from loractl.sections import AdapterSection, EmbeddingSection, TrainingSpec
from loractl.sections.presets import fitting
from loractl.specs import Spec

Planned = dict[str, Any]
_UNITS = ((3600, "h"), (60, "min"), (1, "s"))


def read_for(gpu: str | None, file: Path, methods: Mapping[str, Method[Any]], layers: Sequence[Layer]) -> Spec:
    """The job as it is on this GPU of the table, if one is named: a preset "auto" goes by its memory."""
    spec = read_job(file, methods, layers)
    if gpu is None or not isinstance(spec, TrainingSpec) or spec.memory.preset != "auto" or spec.memory.device == "cpu":
        return spec
    from loractl.plan import gpus

    preset = fitting(gpus.find(gpu).memory)
    return read_job(file, methods, [*layers, option("--gpu", "memory.preset", preset)])


def planned(spec: Spec, gpu: str | None) -> Planned:
    """The estimate for a job, as plain values; `gpu` names a row of the table, by default the GPU that is present.

    JobError for a job that trains nothing.
    """
    from loractl.plan import gpus  # torch, as in `show`
    from loractl.plan.estimate import estimate
    from loractl.plan.job import Training

    if not isinstance(spec, TrainingSpec):
        raise JobError(f"plan: {spec.method} trains nothing, so there is nothing to estimate")
    chosen = gpus.find(gpu) if gpu else gpus.present() if spec.memory.device != "cpu" else None
    found = estimate(Training(**settings(spec)), chosen)
    return {
        "gpu": None if found.gpu is None else {"name": found.gpu.name, "memory": int(found.gpu.memory * 2**30)},
        "precision": found.precision,
        "parameters": dict(found.parameters),
        "modules": dict(found.modules),
        "trainable_parameters": found.trained,
        "file_bytes": found.file,
        "training": dict(found.training),
        "phases": dict(found.phases),
        "peak_bytes": found.peak,
        "fits": found.fits,
        "operations_per_step": found.operations,
        "seconds_per_step": found.step,
        "seconds": found.total,
    }


def settings(spec: TrainingSpec) -> dict[str, Any]:
    """What memory and time follow from, by the names of the estimate's `Training`."""
    adapter: AdapterSection | None = getattr(spec, "adapter", None)
    embedding: EmbeddingSection | None = getattr(spec, "embedding", None)
    whole = adapter is not None and adapter.kind == "full"
    texts = (spec.sample.prompts or ("",)) if spec.sample.seeds else ()
    return {
        "source": spec.model.source,
        "revision": spec.model.revision,
        "config": getattr(spec.model, "config", None),
        "targets": None if adapter is None or whole else _targets(adapter),
        "rank": adapter.rank if adapter else 1,
        "alpha": adapter.alpha if adapter else None,
        "whole": whole,
        "text_encoder": adapter is not None and adapter.text_encoder,
        "text_encoder_rank": adapter.text_encoder_rank if adapter else None,
        "vectors": embedding.vectors * len(embedding.tokens) if embedding else 0,
        "resolution": spec.data.resolution,
        "batch": spec.train.batch_size * (2 if getattr(spec, "prior_is_on", False) else 1),
        "grad_accum": spec.train.grad_accum,
        "steps": spec.train.steps,
        "optimizer": spec.optimizer.name,
        "averaged": spec.train.ema is not None,
        "precision": spec.memory.precision,
        "gradient_checkpointing": spec.memory.gradient_checkpointing,
        "phases": spec.memory.phases,
        "texts_on_cpu": spec.memory.text_encoders == "cpu",
        "reads_at_each_step": spec.data.shuffle_tags or spec.data.tag_dropout > 0,
        "quantize": spec.memory.quantize,
        "offload": spec.memory.offload,
        "saved": spec.output.dtype,
        "samples": len(texts) * len(spec.sample.seeds) * (2 if spec.sample.at_start else 1),
        "sample_steps": spec.sample.steps,
    }


def _targets(adapter: AdapterSection) -> Any:
    if not isinstance(adapter.targets, dict):
        return adapter.targets
    return {pattern: (each.rank, each.alpha) for pattern, each in adapter.targets.items()}


def lines(told: Planned) -> str:
    """The estimate for a person."""
    rows = {
        "networks": _counts(told["parameters"]),
        "adapted modules": ", ".join(f"{count} in {name}" for name, count in told["modules"].items()) or "none",
        "trainable parameters": f"{told['trainable_parameters']:,}",
        "adapter file": f"{told['file_bytes'] / 1e6:.2f} MB",
        "training": ", ".join(f"{name} {_size(size)}" for name, size in told["training"].items() if size),
        "peak of each phase": ", ".join(f"{name} {_size(size)}" for name, size in told["phases"].items()),
        "peak memory": f"{_size(told['peak_bytes'])}{_fit(told)}",
        "a step": f"{told['operations_per_step'] / 1e12:.3g} TFLOP{_duration(told['seconds_per_step'])}",
        "steps and samples": _duration(told["seconds"]).lstrip(", ") or "no rate is known for a CPU",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def _counts(parameters: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in parameters.items())


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _fit(told: Planned) -> str:
    if told["gpu"] is None:
        return " on a CPU"
    verdict = "fits" if told["fits"] else "does not fit"
    return f", which {verdict} a {told['gpu']['name']} of {_size(told['gpu']['memory'])}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    unit, name = next((each for each in _UNITS if seconds >= 2 * each[0]), _UNITS[-1])
    return f", {seconds / unit:.3g} {name}"
