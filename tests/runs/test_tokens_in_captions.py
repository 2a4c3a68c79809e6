"""A token learns from the captions that it is in: without one the run is refused, before any step."""

import shutil
from pathlib import Path

import pytest

from loractl.errors import InputError
from loractl.events import Event, Note
from loractl.runs.recipe import Recipe
from loractl.runs.sources import require_tokens
from loractl.sections import EmbeddingSection
from tests.methods.lab_job import JOBS, SHORT, run_job

TWO = EmbeddingSection(token=("<rex>", "<hat>"))


def notes(recipe: Recipe, *captions: str) -> list[str]:
    events: list[Event] = []
    require_tokens(recipe, captions, events.append)
    return [event.text for event in events if isinstance(event, Note)]


def recipe(embedding: EmbeddingSection | None, *templates: str) -> Recipe:
    return Recipe("a <rex> <hat>", lambda _: frozenset({"tokens"}), embedding=embedding, templates=templates)


def test_each_token_is_in_a_caption_or_refused() -> None:
    assert notes(recipe(TWO), "a <rex> <hat>", "a <hat> on a <rex>") == []
    with pytest.raises(InputError, match=r'no caption has <hat>, .* set data.captions = "prompt"'):
        notes(recipe(TWO), "a <rex>", "a <rex>'s hat")
    with pytest.raises(InputError, match=r"no caption has <rex> or <hat>"):
        notes(recipe(TWO), "a dog", "a <Rex>")


def test_captions_that_lack_a_token_are_counted() -> None:
    said = notes(recipe(TWO), "a <rex> <hat>", "a <rex>", "a dog")
    assert [text.split(",")[0] for text in said] == ["1 of 3 captions lack <rex>", "2 of 3 captions lack <hat>"]


def test_sentences_of_a_method_and_jobs_without_tokens_need_none() -> None:
    assert notes(recipe(TWO, "a photo of a {}"), "a dog") == notes(recipe(None), "a dog") == []


def test_a_run_says_it_of_captions_beside_the_pictures(tmp_path: Path) -> None:
    for picture in (JOBS / "data" / "subject").glob("*.png"):
        shutil.copy(picture, tmp_path)
        (tmp_path / picture.name).with_suffix(".txt").write_text("a critter on the grass")
    with pytest.raises(InputError, match="no caption has <rex>"):
        run_job(JOBS / "pti.toml", tmp_path / "out", *SHORT, f"data.path={tmp_path}")
