"""The base model of a job that makes pictures, kept as the job's `[memory]` says."""

from loractl.device import pick_device, pick_dtype
from loractl.families.family import Family
from loractl.families.pipeline import load_model
from loractl.families.precision import Keeping
from loractl.sections.memory import PictureMemorySection
from loractl.specs import ModelSection


def load_for_pictures(model: ModelSection, memory: PictureMemorySection) -> Family:
    device = pick_device(memory.device)
    return load_model(
        model.source,
        device,
        pick_dtype(memory.precision, device),
        texts_on_cpu=memory.text_encoders == "cpu",
        keeping=Keeping(**memory.keeping),
        **model.loading,
    )
