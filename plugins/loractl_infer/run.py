"""Carries out an inference job: load, apply the adapters, render, write pictures and a contact sheet."""

from collections.abc import Sequence

from loractl.device import pick_device, pick_dtype, require_determinism
from loractl.errors import MismatchError
from loractl.events import Emit, Progress, Wrote
from loractl.families.pipeline import load_model
from loractl.families.sd import StableDiffusion
from loractl.formats import load_adapter
from loractl.inject.inject import load_into
from loractl.method import Outcome
from loractl.sample.denoise import Request, render
from loractl.sample.picture import file_name, save_png, settings_texts, sheet
from loractl_infer.spec import AdapterUse, InferSpec


def run(spec: InferSpec, emit: Emit) -> Outcome:
    require_determinism()
    device = pick_device(spec.memory.device)
    model = load_model(spec.model.source, device, pick_dtype(spec.memory.precision, device), spec.model.revision)
    for number, use in enumerate(spec.adapters):
        apply(model, use, f"adapter{number}")
    requests = make_requests(spec, model)
    folder, scheduler = spec.destination(), type(model.scheduler).__name__
    weights = {use.path.stem: use.weight for use in spec.adapters}
    files, pictures = {}, []
    for index, picture in enumerate(
        render(model.pipeline, requests, 4, lambda done, total: emit(Progress("sample", done, total)))
    ):
        texts = settings_texts(requests[index], spec.model.source, weights, scheduler)
        path = save_png(folder / file_name(index, requests[index]), picture, texts)
        files[path.stem] = path
        pictures.append(picture)
        emit(Wrote(path, "picture"))
    per_row = len(spec.sample.seeds)
    rows = [(prompt, pictures[i * per_row : (i + 1) * per_row]) for i, prompt in enumerate(spec.sample.prompts)]
    files["sheet"] = save_png(folder / "sheet.png", sheet(rows))
    emit(Wrote(files["sheet"], "sheet"))
    return Outcome(files, {"pictures": len(pictures)})


def apply(model: StableDiffusion, use: AdapterUse, name: str) -> None:
    """Loads an adapter into the model's networks. MismatchError when a part of it belongs to none of them."""
    adapter = load_adapter(use.path, model.module_paths())
    strangers = sorted(set(adapter.components()) - set(model.components))
    if strangers:
        raise MismatchError(f"{use.path} adapts {', '.join(strangers)}, which this model does not have")
    for component in adapter.components():
        load_into(model.components[component], adapter.component(component), name, use.weight)


def make_requests(spec: InferSpec, model: StableDiffusion) -> Sequence[Request]:
    sample = spec.sample
    guidance = model.guidance if sample.guidance is None else sample.guidance
    size = sample.size or model.resolution
    return [
        Request(p, seed, sample.steps, guidance, size, sample.negative) for p in sample.prompts for seed in sample.seeds
    ]
