"""Carries out a scoring job: class samples of the untouched model, adapters, samples, scores, a grid, the verdict."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from loractl.data.images import find_pictures
from loractl.device import require_determinism
from loractl.errors import ScoreError
from loractl.evaluate.encoders import EncoderSource
from loractl.evaluate.judges import Exam
from loractl.evaluate.report import photograph_row, prompt_rows, table, write_scores
from loractl.evaluate.scores import make_scorer
from loractl.events import Emit, Facts, Progress, Wrote
from loractl.method import Outcome
from loractl.runs.loading import load_for_pictures
from loractl.sample.denoise import Request
from loractl.sample.picture import save_png, sheet
from loractl.sample.schedule import Use
from loractl.sample.session import Session
from loractl.sample.sizes import pixels
from loractl.sections.scoring import below
from loractl_eval.spec import EvalSpec

ROWS = 12  # of the grid, for each stage


def run(spec: EvalSpec, emit: Emit) -> Outcome:
    """Raises ScoreError after the result is written when a score is below what the job asks for."""
    require_determinism()
    exam = Exam(spec.prompts, spec.class_prompts, spec.samples, _pictures(spec.held_out), _pictures(spec.training))
    model = load_for_pictures(spec.model, spec.memory)
    encoders = [EncoderSource(each.source, each.revision, each.weights, each.allow_pickle) for each in spec.judges]
    scorer = make_scorer(encoders, exam, model.device)
    with Session(model, spec.memory.engine) as session:
        easel = Easel(spec, session, emit)
        scorer.before(easel.make)
        for number, use in enumerate(spec.adapters):
            session.add(f"adapter{number}", use.path, Use(use.weight))
        scores = scorer.after(easel.make)
    emit(Facts("scores", table(scores)))
    facts = {"model": spec.model.source, "encoders": [each.source for each in spec.judges], "samples": spec.samples}
    files = {"scores": write_scores(spec.destination() / "scores.json", scores, facts)}
    held_out = [photograph_row("held out", exam.held_out, model.resolution)] if exam.held_out else []
    files["grid"] = save_png(spec.destination() / "grid.png", sheet([*held_out, *easel.rows]))
    for what, path in files.items():
        emit(Wrote(path, what))
    values = {name: score.value for name, score in scores.items()}
    if problems := below(values, spec.fail_below):
        raise ScoreError("; ".join(problems))
    return Outcome(files, values)


class Easel:
    """Makes pictures with the adapters as they are now; `rows` gathers some of each stage for the grid."""

    def __init__(self, spec: EvalSpec, session: Session, emit: Emit) -> None:
        self.spec, self.session, self.emit = spec, session, emit
        self.rows: list[tuple[str, list[Image.Image]]] = []

    def make(self, prompts: Sequence[str], stage: str) -> list[Image.Image]:
        batch = 32 if self.session.model.resolution <= 64 else 4
        wanted = [self._request(prompt, self.spec.seed + i) for i, prompt in enumerate(prompts)]
        pictures = list(self.session.render(wanted, batch, lambda done, of: self.emit(Progress(stage, done, of))))
        self.rows += [(f"{stage}: {prompt}", row) for prompt, row in prompt_rows(prompts, pictures)[:ROWS]]
        return pictures

    def _request(self, prompt: str, seed: int) -> Request:
        sample, model = self.spec.sample, self.session.model
        guidance = model.guidance if sample.guidance is None else sample.guidance
        return Request(prompt, seed, sample.steps, guidance, pixels(model, sample.size), sample.negative)


def _pictures(folder: Path | None) -> list[Path]:
    return find_pictures(folder) if folder else []
