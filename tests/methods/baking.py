"""Baking jobs, for tests."""

from pathlib import Path
from typing import Any

import torch
from loractl_bake import start
from loractl_bake.spec import AdapterUse, BakeSpec

from loractl.events import Event
from loractl.formats import save_adapter
from loractl.specs import OutputSection
from loractl.tensors.adapter import Adapter


def save(path: Path, adapter: Adapter) -> Path:
    save_adapter(path, adapter, "diffusers", dtype=torch.float32, name=path.stem)
    return path


def job(model: Path, out: Path, *uses: tuple[Path, float], **settings: Any) -> BakeSpec:
    adapters = tuple(AdapterUse(path=path, weight=weight) for path, weight in uses)
    output = OutputSection(path=out, overwrite=settings.pop("overwrite", False))
    return BakeSpec(model=model, adapters=adapters, output=output, **settings)


def run(spec: BakeSpec) -> list[Event]:
    events: list[Event] = []
    start(spec, events.append)
    return events
