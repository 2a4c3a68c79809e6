"""All randomness of a run, derived from the seed and a purpose: no state is carried from one step to the next."""

import hashlib

import torch


def stream(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose: `stream(42, "noise", step)`. Different purposes give independent streams."""
    name = repr((seed, *purpose)).encode()
    digest = hashlib.blake2b(name, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
