"""`memory.phases`: of the networks only those that the moment needs are on the device."""

from pathlib import Path

import pytest

from loractl.families.sd import StableDiffusion
from loractl.runs import objective
from tests.runs.test_going_on import results, run


@pytest.mark.parametrize(("name", "there"), [("dreambooth", {"unet"}), ("ti", {"unet", "text_encoder"})])
def test_training_has_only_what_it_needs(
    name: str, there: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests: list[frozenset[str]] = []
    settled: list[int] = []
    errors, settle = objective.denoising_errors, objective.Objective.settle

    def watched(model: StableDiffusion, *arguments: object) -> object:
        guests.append(model.guests)
        return errors(model, *arguments)  # type: ignore[arg-type]

    def counted(self: objective.Objective) -> None:
        settled.append(len(guests))
        settle(self)

    monkeypatch.setattr(objective, "denoising_errors", watched)
    monkeypatch.setattr(objective.Objective, "settle", counted)
    run(name, tmp_path / "phases", "memory.phases=true", "sample.every=3", "train.steps=4")
    assert guests and set(guests) == {frozenset(there)}
    assert settled == [0, len(guests) * 3 // 4], "settles at the start and after the pictures of step 3"


def test_phases_change_nothing(tmp_path: Path) -> None:
    run("dreambooth", tmp_path / "phases", "memory.phases=true", "sample.every=3", "prior.source=prediction")
    run("dreambooth", tmp_path / "plain", "sample.every=3", "prior.source=prediction")
    assert results(tmp_path / "phases")["metrics.jsonl"] == results(tmp_path / "plain")["metrics.jsonl"]


def test_the_autoencoder_is_alone_while_it_encodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guests: list[frozenset[str]] = []
    encode = StableDiffusion.encode_pictures

    def watched(self: StableDiffusion, pictures: object) -> object:
        guests.append(self.guests)
        return encode(self, pictures)  # type: ignore[arg-type]

    monkeypatch.setattr(StableDiffusion, "encode_pictures", watched)
    run("ti", tmp_path, "train.steps=1", "memory.phases=true")
    assert set(guests) == {frozenset({"vae"})}
