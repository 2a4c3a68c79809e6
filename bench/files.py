"""Merge and re-rank on adapter files of Stable Diffusion 1.5's size, beside the algorithm that sd-scripts publishes.

    nice python bench/files.py

Makes two random adapters of the 264 modules that kohya adapts, of ranks 8 and 16, in a temporary folder. Every row is
a process of its own, on one thread, the least of three; where the machine is busy, compare CPU times. The other side is
that algorithm, written here. For the plain merge (merge_lora.py --concat) it is run whole, on the same two files, and
begins with a part of what that script imports, whose share is told; its result is not the sum, and by how much is told
too. For the SVDs it is the dense ΔW and a full SVD of it (svd_merge_lora.py, resize_lora.py), or, as in newer versions,
torch.svd_lowrank; this is run on one module of each shape and multiplied, and it pays no imports and no files.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

RANKS = {"one": 8, "two": 16}
NEW_RANK = 8
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
SUFFIXES = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
TEXT_SUFFIXES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


class Cost(NamedTuple):
    cpu: float
    wall: float
    megabytes: float

    def __str__(self) -> str:
        return f"{self.cpu:8.2f} s CPU {self.wall:8.2f} s wall {self.megabytes:6.0f} MB"


def once(*command: str) -> Cost:
    """What a command takes, as its own process: user and system time, peak memory."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss / 1000)


def measure(*command: str) -> Cost:
    """The least of three."""
    return min(once(*command) for _ in range(3))


def shapes() -> dict[str, tuple[int, ...]]:
    """Path → shape of the weight, from the networks on the meta device."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(cross_attention_dim=768)
        text: Any = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    found = {f"unet.{path}": layer for path, layer in unet.named_modules() if path.endswith(SUFFIXES)}
    found |= {f"text_encoder.{path}": layer for path, layer in text.named_modules() if path.endswith(TEXT_SUFFIXES)}
    return {path.replace(".text_model.", "."): tuple(layer.weight.shape) for path, layer in found.items()}


def make(folder: Path) -> None:
    import torch

    from loractl.formats import save_adapter
    from loractl.tensors.adapter import Adapter
    from loractl.tensors.lowrank import LowRank

    weights, generator = shapes(), torch.Generator().manual_seed(0)
    assert len(weights) == 264
    for name, rank in RANKS.items():
        modules = {}
        for path, shape in weights.items():
            down = torch.randn(rank, *shape[1:], generator=generator) / 50
            up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) / 50
            modules[path] = LowRank(down, up, rank / 2)
        save_adapter(folder / f"{name}.safetensors", Adapter(modules), "kohya", name=name)


def peer(folder: Path) -> None:
    """Writes the CPU seconds of the dense products with full SVDs, and with torch.svd_lowrank, for all modules."""
    import torch

    from loractl.formats import load_adapter

    modules = load_adapter(folder / "two.safetensors").modules
    counts = Counter(low.shape for low in modules.values())
    full = quick = 0.0
    for low in {low.shape: low.to(torch.float32) for low in modules.values()}.values():
        began = time.process_time()
        torch.linalg.svd(low.delta().flatten(1))
        middle = time.process_time()
        torch.svd_lowrank(low.delta().flatten(1), q=2 * NEW_RANK)
        full += counts[low.shape] * (middle - began)
        quick += counts[low.shape] * (time.process_time() - middle)
    (folder / "peer.txt").write_text(f"{full} {quick}", encoding="utf-8")


def peer_merge(folder: Path) -> None:
    """0.6 and 0.4 of the two files: `down` times w, `up` times |w|, both with the root of the alphas' ratio, side by
    side; under the alpha of the first. The hash is of the tensors in fp32, as that script takes it.
    """
    import hashlib
    import math

    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline  # noqa: F401  # as its library/train_util.py does
    from safetensors.torch import load_file, save, save_file
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401  # likewise

    (folder / "imports.txt").write_text(f"{time.process_time():.2f}", encoding="utf-8")
    merged: dict[str, torch.Tensor] = {}
    alphas: dict[str, float] = {}
    for name, weight in (("one", 0.6), ("two", 0.4)):
        tensors = {key: tensor.float() for key, tensor in load_file(folder / f"{name}.safetensors").items()}
        own = {key.removesuffix(".alpha"): float(tensors[key]) for key in tensors if key.endswith(".alpha")}
        alphas = own | alphas
        for key in (key for key in tensors if not key.endswith(".alpha")):
            module, _, part = key.partition(".")
            scale = math.sqrt(own[module] / alphas[module]) * (abs(weight) if part.startswith("lora_up") else weight)
            parts = ([merged[key]] if key in merged else []) + [tensors[key] * scale]
            merged[key] = torch.cat(parts, dim=int(part.startswith("lora_up")))
    merged |= {f"{module}.alpha": torch.tensor(alpha) for module, alpha in alphas.items()}
    metadata = {"sshs_model_hash": hashlib.sha256(save(merged)).hexdigest()}
    save_file({key: tensor.half() for key, tensor in merged.items()}, folder / "peer.safetensors", metadata)


def error(folder: Path) -> None:
    """Writes how far both merges are from the sum of the dense ΔW, relative to it."""
    import torch

    from loractl.formats import load_adapter

    one, two, ours, theirs = (load_adapter(folder / f"{name}.safetensors").modules for name in ERROR_OF)
    lost, size = torch.zeros(2, dtype=torch.float64), 0.0
    for path in one:
        exact = 0.6 * one[path].to(torch.float32).delta() + 0.4 * two[path].to(torch.float32).delta()
        for index, found in enumerate((ours, theirs)):
            lost[index] += (found[path].to(torch.float32).delta() - exact).square().sum()
        size += float(exact.square().sum())
    (folder / "error.txt").write_text(" ".join(f"{float(each / size) ** 0.5:.2g}" for each in lost), encoding="utf-8")


ERROR_OF = ("one", "two", "out", "peer")
PARTS: dict[str, Callable[[Path], None]] = {each.__name__: each for each in (make, peer, peer_merge, error)}


def compare(folder: Path) -> None:
    part, tool = (sys.executable, __file__, "--part"), (sys.executable, "-m", "loractl", "--quiet")
    one, two, out = (str(folder / f"{name}.safetensors") for name in ("one", "two", "out"))
    once(*part, "make", str(folder))
    print(f"files of {Path(one).stat().st_size / 1e6:.1f} and {Path(two).stat().st_size / 1e6:.1f} MB, ", end="")
    print(f"load average {os.getloadavg()[0]:.1f}", flush=True)
    start = measure(sys.executable, "-c", "import torch")
    merge = measure(*tool, "merge", one, two, "--alpha", "0.6", "--out", out, "--overwrite")
    theirs = measure(*part, "peer_merge", str(folder))
    once(*part, "error", str(folder))
    exact, wrong = (folder / "error.txt").read_text(encoding="utf-8").split()
    resize = measure(*tool, "resize", two, "--rank", str(NEW_RANK), "--out", out, "--overwrite")
    once(*part, "peer", str(folder))
    full, quick = map(float, (folder / "peer.txt").read_text(encoding="utf-8").split())
    print(f"import torch                    {start}")
    print(f"merge, exact                    {merge}, {exact} from the sum")
    imports = (folder / "imports.txt").read_text(encoding="utf-8")
    print(f"merge_lora.py's way, --concat   {theirs}, {wrong} from the sum; its imports take {imports} s CPU")
    print(f"re-rank {RANKS['two']} to {NEW_RANK}                 {resize}")
    print(f"product + full SVD, no imports  {full:8.2f} s CPU")
    print(f"product + svd_lowrank, same     {quick:8.2f} s CPU, and not exact")
    print(f"merge: {theirs.cpu / merge.cpu:.1f} times less CPU time than merge_lora.py's way, ", end="")
    print(f"{full / merge.cpu:.1f} than by full SVD, ", end="")
    print(f"{merge.cpu / start.cpu:.2f} times as much as import torch")
    print(f"re-rank: {full / resize.cpu:.1f} times less CPU time than by full SVD, ", end="")
    print(f"{quick / resize.cpu:.1f} than by svd_lowrank; {resize.cpu / start.cpu:.2f} times as much as import torch")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        PARTS[sys.argv[2]](Path(sys.argv[3]))
    else:
        with TemporaryDirectory() as scratch:
            compare(Path(scratch))
