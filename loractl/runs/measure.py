"""The scores of a run: what is measured, against the untouched model, and what the job demands of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from loractl.data.examples import Example
from loractl.data.images import find_pictures
from loractl.errors import InputError, ScoreError
from loractl.evaluate.encoders import EncoderSource
from loractl.evaluate.judges import Exam
from loractl.evaluate.report import table, write_scores
from loractl.evaluate.scores import Score, Scorer, make_scorer
from loractl.events import Facts
from loractl.runs.recipe import Recipe
from loractl.runs.studio import Studio
from loractl.sections import TrainingSpec
from loractl.sections.scoring import below


class Measure:
    """Takes the class's samples of the untouched model when it is made."""

    def __init__(self, spec: TrainingSpec, recipe: Recipe, studio: Studio, pictures: Sequence[Example]) -> None:
        self.spec, self.studio = spec, studio
        encoders = [EncoderSource(each.source, each.revision, each.weights, each.allow_pickle) for each in spec.judges]
        self.scorer = None
        if encoders:
            exam = _exam(spec, recipe, [example.path for example in pictures])
            self.scorer = make_scorer(encoders, exam, studio.model.device)
            _require_reader(spec, self.scorer)
            self.scorer.before(studio.score_samples)

    def after(self) -> dict[str, Score]:
        return self.scorer.after(self.studio.score_samples) if self.scorer else {}

    def write(self, scores: Mapping[str, Score]) -> dict[str, Path]:
        """scores.json, and the table for those who watch."""
        if not scores:
            return {}
        self.studio.emit(Facts("scores", table(scores)))
        encoders = [encoder.source for encoder in self.spec.judges]
        facts = {"model": self.spec.model.source, "encoders": encoders, "samples": self.spec.eval.samples}
        return {"scores": write_scores(self.spec.destination() / "scores.json", scores, facts)}

    def check(self, scores: Mapping[str, Score]) -> None:
        """ScoreError when a score is below what the job asks for."""
        values = {name: score.value for name, score in scores.items()}
        if problems := below(values, self.spec.eval.fail_below):
            raise ScoreError("; ".join(problems))


def _require_reader(spec: TrainingSpec, scorer: Scorer) -> None:
    """InputError, before anything is trained, where the job wants prompts to be followed and no encoder reads texts."""
    wanted: dict[str, list[str | None]] = {
        "eval.keep_best": [spec.eval.keep_best],
        "eval.fail_below": [*spec.eval.fail_below],
    }
    keys = [key for key, names in wanted.items() if "prompt_fidelity" in names]
    if keys and not scorer.reads_texts:
        names = ", ".join(encoder.source for encoder in spec.judges)
        raise InputError(
            f"{keys[0]} names prompt_fidelity, and {names} can't read texts: add an encoder that can "
            "to eval.encoders, such as openai/clip-vit-base-patch32, or choose another score"
        )


def _exam(spec: TrainingSpec, recipe: Recipe, training: Sequence[Path]) -> Exam:
    """The lab's reader compares attributes, for which the training pictures do; encoders want pictures held out."""
    held_out = find_pictures(spec.eval.held_out) if spec.eval.held_out else []
    if not held_out and [encoder.source for encoder in spec.judges] == ["lab"]:
        held_out = list(training)
    class_prompts = [recipe.class_prompt] if recipe.class_prompt else []
    return Exam([recipe.prompt], class_prompts, spec.eval.samples, held_out, training)
