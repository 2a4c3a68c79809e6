"""Random draws that follow from a picture's content, and not from its neighbors."""

import hashlib
import random


def seed_for(seed: int, sha256: str, purpose: str) -> int:
    """64 bits from the job's seed, a file's content and what is drawn ("crop", "rotation", …)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{sha256}/{purpose}".encode()).digest()[:8], "big")


def between(seed: int, count: int, least: float, most: float) -> list[float]:
    """So many numbers drawn evenly from an interval; more of them begin with the same ones."""
    source = random.Random(seed)
    return [source.uniform(least, most) for _ in range(count)]
