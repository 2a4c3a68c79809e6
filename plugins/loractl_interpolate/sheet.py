"""The contact sheet of a series: a row for each prompt and seed, a picture for each place on the way."""

from collections.abc import Sequence
from pathlib import Path

from loractl.device import pick_device, pick_dtype, require_determinism
from loractl.events import Emit, Progress
from loractl.families.pipeline import load_model
from loractl.sample.adapted import apply, remove_all, requests
from loractl.sample.denoise import render
from loractl.sample.picture import save_png, sheet
from loractl.sample.sizes import pixels
from loractl.specs import ModelSection, PromptedSampleSection
from loractl_interpolate.spec import InterpolateSpec


def contact_sheet(
    spec: InterpolateSpec, source: ModelSection, sample: PromptedSampleSection, files: Sequence[Path], emit: Emit
) -> Path:
    """Renders the same prompts and seeds with every adapter of the series in turn."""
    require_determinism()
    device = pick_device(spec.memory.device)
    model = load_model(source.source, device, pick_dtype(spec.memory.precision, device), **source.loading)
    size = pixels(model, sample.size)
    wanted = requests(model, sample.prompts, sample.seeds, sample.steps, sample.guidance, size, sample.negative)
    columns = []
    for done, file in enumerate(files, start=1):
        apply(model, file, "series")
        columns.append(list(render(model.paint, wanted)))
        remove_all(model)
        emit(Progress("contact sheet", done, len(files)))
    places = ", ".join(f"{t:g}" for t in spec.places)
    rows = zip(*columns, strict=True)
    labeled = [
        (f"{request.prompt} (seed {request.seed}; at {places})", pictures)
        for request, pictures in zip(wanted, rows, strict=True)
    ]
    return save_png(spec.destination() / "sheet.png", sheet(labeled))
