"""Scores for people and programs: a table, a JSON file, rows of pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from loractl.data.images import read_picture, square
from loractl.evaluate.scores import Score

COLUMNS = 8  # pictures in a row


def table(scores: Mapping[str, Score]) -> dict[str, str]:
    """Name → "0.512 (0.450 to 0.574; 0.120 by chance)"."""
    return {name: _words(score) for name, score in scores.items()}


def write_scores(path: Path, scores: Mapping[str, Score], facts: Mapping[str, object]) -> Path:
    """Writes the facts, and the scores with their intervals, as JSON; under a temporary name first."""
    text = json.dumps({**facts, "scores": {name: asdict(score) for name, score in scores.items()}}, indent=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def photograph_row(label: str, paths: Sequence[Path], side: int) -> tuple[str, list[Image.Image]]:
    """Pictures from files as a row for a sheet."""
    return label, [square(read_picture(path), side) for path in paths[:COLUMNS]]


def prompt_rows(prompts: Sequence[str], pictures: Sequence[Image.Image]) -> list[tuple[str, list[Image.Image]]]:
    """A row for each prompt, with the first of its pictures."""
    rows: dict[str, list[Image.Image]] = {prompt: [] for prompt in prompts}
    for prompt, picture in zip(prompts, pictures, strict=True):
        rows[prompt].append(picture)
    return [(prompt, row[:COLUMNS]) for prompt, row in rows.items()]


def _words(score: Score) -> str:
    chance = "" if score.floor is None else f"; {score.floor:.3f} by chance"
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f}{chance})"
