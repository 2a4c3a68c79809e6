"""Carries out an inference job: load, apply the adapters, render, write pictures and a contact sheet."""

from loractl.device import pick_device, pick_dtype, require_determinism
from loractl.events import Emit, Progress, Wrote
from loractl.families.pipeline import load_model
from loractl.method import Outcome
from loractl.sample.adapted import apply, requests
from loractl.sample.denoise import render
from loractl.sample.picture import file_name, save_png, settings_texts, sheet
from loractl_infer.spec import InferSpec


def run(spec: InferSpec, emit: Emit) -> Outcome:
    require_determinism()
    device = pick_device(spec.memory.device)
    model = load_model(spec.model.source, device, pick_dtype(spec.memory.precision, device), spec.model.revision)
    weights = {}
    for number, use in enumerate(spec.adapters):
        adapter = apply(model, use.path, f"adapter{number}", use.weight, allow_pickle=spec.allow_pickle)
        if adapter.modules:
            weights[use.path.stem] = use.weight
    sample = spec.sample
    wanted = requests(model, sample.prompts, sample.seeds, sample.steps, sample.guidance, sample.size, sample.negative)
    folder, scheduler = spec.destination(), type(model.scheduler).__name__
    files, pictures = {}, []
    for index, picture in enumerate(
        render(model.pipeline, wanted, 4, lambda done, total: emit(Progress("sample", done, total)))
    ):
        texts = settings_texts(wanted[index], spec.model.source, weights, scheduler)
        path = save_png(folder / file_name(index, wanted[index]), picture, texts)
        files[path.stem] = path
        pictures.append(picture)
        emit(Wrote(path, "picture"))
    per_row = len(spec.sample.seeds)
    rows = [(prompt, pictures[i * per_row : (i + 1) * per_row]) for i, prompt in enumerate(spec.sample.prompts)]
    files["sheet"] = save_png(folder / "sheet.png", sheet(rows))
    emit(Wrote(files["sheet"], "sheet"))
    return Outcome(files, {"pictures": len(pictures)})
