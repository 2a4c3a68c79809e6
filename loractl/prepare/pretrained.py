"""Models of transformers by hub id or path, for captions and masks. Code that a repository brings is never run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from loractl.errors import InputError


@dataclass(frozen=True)
class Checkpoint:
    """Where a model comes from, and where and how precisely it computes (see `loractl.device`)."""

    source: str
    revision: str | None = None
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Model:
    network: Any
    processor: Any

    def inputs(self, **what: Any) -> dict[str, Any]:
        """What the processor makes of pictures and texts, on the network's device and, if not whole numbers, in its
        precision.
        """
        made = self.processor(return_tensors="pt", **what)
        device, dtype = self.network.device, self.network.dtype
        return {
            name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in made.items()
        }


def load_config(checkpoint: Checkpoint) -> Any:
    """Raises InputError where there is no such model."""
    from transformers import AutoConfig

    with _told(checkpoint):
        return AutoConfig.from_pretrained(checkpoint.source, revision=checkpoint.revision, trust_remote_code=False)


def load_model(checkpoint: Checkpoint, network: Any, processor: Any) -> Model:
    """`network` and `processor` are classes of transformers. Raises InputError where they can't be loaded."""
    from loractl.device import pick_device, pick_dtype

    device = pick_device(checkpoint.device)
    dtype = pick_dtype(checkpoint.precision, device)
    with _told(checkpoint):
        prepare = processor.from_pretrained(checkpoint.source, revision=checkpoint.revision, trust_remote_code=False)
        loaded = network.from_pretrained(checkpoint.source, revision=checkpoint.revision, dtype=dtype)
    return Model(loaded.to(device).eval(), prepare)


@contextmanager
def _told(checkpoint: Checkpoint) -> Iterator[None]:
    """What goes wrong in transformers, in one sentence, without its notices and progress bars."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except ImportError as error:
        reason = str(error).strip().partition("\n")[0]
        advice = "pip install torchvision" if "torchvision" in reason.lower() else reason
        raise InputError(f"the model {checkpoint.source!r} needs a package that is not installed: {advice}") from error
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"the model {checkpoint.source!r} can't be loaded from a folder here or from the hub: {reason}"
        ) from error
