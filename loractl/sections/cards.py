"""How much memory the GPU has, as the driver's own tool says: a job is read before torch is imported."""

import os
import subprocess
from functools import cache

COMMAND = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")


@cache
def gigabytes() -> float | None:
    """GiB, of the smallest GPU among those that CUDA_VISIBLE_DEVICES leaves; None where none is found."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        chosen = () if visible is None else ("-i", visible)
        said = subprocess.run((*COMMAND, *chosen), capture_output=True, text=True, timeout=20, check=True).stdout
        return min(float(line) for line in said.split()) / 1024
    except (OSError, subprocess.SubprocessError, ValueError):  # no such tool, no such GPU, no number
        return None
