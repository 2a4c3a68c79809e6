"""GPUs by name: memory, its bandwidth, and how fast they multiply 16-bit matrices.

The rates are those of dense tensor cores with sums in fp32, which is how training multiplies; vendors also print
the double, for sparse matrices or for sums in fp16. Sources: NVIDIA's white papers of the Turing, Ampere (GA102),
Ada and Blackwell architectures (appendices), and the data sheets of T4, V100, A10, A10G, A40, A100, L4, L40, L40S,
H100, H200, B200, RTX A6000 and RTX 6000 Ada. Of the RTX 5060 and 5060 Ti NVIDIA prints the rate for sparse matrices in
FP4 alone, which is sixteen times the dense one in 16 bits, as of the other GeForces of their generation.
"""

import difflib
from dataclasses import dataclass, replace

import torch

from loractl.device import pick_device
from loractl.errors import InputError


@dataclass(frozen=True)
class Gpu:
    """`memory` in GiB, `bandwidth` in GB/s, `tflops` in 10¹² operations a second; without `bf16` it computes in fp32
    unless told otherwise.
    """

    name: str
    memory: float
    bandwidth: float
    tflops: float
    bf16: bool = True


_TABLE = (
    Gpu("T4", 16, 320, 65, bf16=False),
    Gpu("V100", 16, 900, 125, bf16=False),
    Gpu("V100 32GB", 32, 900, 125, bf16=False),
    Gpu("RTX 2080 Ti", 11, 616, 53.8, bf16=False),
    Gpu("RTX 3060", 12, 360, 25.5),
    Gpu("RTX 3070", 8, 448, 40.6),
    Gpu("RTX 3080", 10, 760, 59.5),
    Gpu("RTX 3090", 24, 936, 71),
    Gpu("RTX A6000", 48, 768, 154.8),
    Gpu("RTX 4060", 8, 272, 30.2),
    Gpu("RTX 4060 Ti", 16, 288, 44.1),
    Gpu("RTX 4070", 12, 504, 58.3),
    Gpu("RTX 4070 Ti", 12, 504, 80.2),
    Gpu("RTX 4080", 16, 717, 97.5),
    Gpu("RTX 4090", 24, 1008, 165.2),
    Gpu("RTX 6000 Ada", 48, 960, 364.2),
    Gpu("RTX 5060", 8, 448, 38.4),
    Gpu("RTX 5060 Ti", 16, 448, 47.4),
    Gpu("RTX 5070", 12, 672, 61.7),
    Gpu("RTX 5070 Ti", 16, 896, 87.9),
    Gpu("RTX 5080", 16, 960, 112.6),
    Gpu("RTX 5090", 32, 1792, 209.5),
    Gpu("A10", 24, 600, 125),
    Gpu("A10G", 24, 600, 70),
    Gpu("A40", 48, 696, 149.7),
    Gpu("L4", 24, 300, 121),
    Gpu("L40", 48, 864, 181),
    Gpu("L40S", 48, 864, 362),
    Gpu("A100", 80, 2039, 312),
    Gpu("A100 40GB", 40, 1555, 312),
    Gpu("H100 PCIe", 80, 2000, 756),
    Gpu("H100", 80, 3350, 989),
    Gpu("H200", 141, 4800, 989),
    Gpu("B200", 180, 8000, 2250),
)
GPUS = {gpu.name.lower(): gpu for gpu in _TABLE}


def find(name: str) -> Gpu:
    """The GPU called so, "RTX" and "NVIDIA" left out or not. InputError when the table has none."""
    words = name.lower().replace("nvidia", "").replace("geforce", "").split()
    for spelling in (" ".join(words), f"rtx {' '.join(words)}"):
        if spelling in GPUS:
            return GPUS[spelling]
    near = difflib.get_close_matches(" ".join(words), GPUS, n=3)
    known = ", ".join(GPUS[each].name for each in near or GPUS)
    raise InputError(f'there is no GPU "{name}" in the table: {"did you mean" if near else "it has"} {known}')


def recognize(name: str) -> Gpu | None:
    """The row of the table for the name that a driver gives: of those whose words are all in it, the longest."""
    words = set(name.lower().replace("-", " ").split())
    found = [gpu for key, gpu in GPUS.items() if words.issuperset(key.split())]
    return max(found, key=lambda gpu: len(gpu.name), default=None)


def present() -> Gpu | None:
    """The machine's GPU, its memory as it is; None without one, InputError for one that is not in the table."""
    device = pick_device("auto")
    if device.type == "cpu":
        return None
    properties = torch.get_device_module(device).get_device_properties(device)
    gpu = recognize(properties.name)
    if gpu is None:
        raise InputError(f"the GPU {properties.name} is not in the table: name one that is like it with --gpu")
    return replace(gpu, memory=properties.total_memory / 2**30)
