"""Carries out a training job of any method: pictures, model, what learns, the loop with its checkpoints, the result.

    lock → pictures → model → class pictures → scores and samples before → inject → (go on) → fit → save → after

A run that was interrupted goes through the same stages, and takes up the loop where its last checkpoint stands. Several
processes go through them side by side up to the last step; the first alone writes, samples and tells.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from loractl.data.examples import Example
from loractl.device import pick_device, pick_dtype, require_determinism
from loractl.errors import NumericsError
from loractl.events import Emit, Facts, Note, Numbers, Pictures, Wrote
from loractl.families.family import Family
from loractl.families.pipeline import load_model
from loractl.families.precision import Keeping, compile_network, merging_note
from loractl.launch import launched
from loractl.method import Outcome
from loractl.runs.album import Album
from loractl.runs.best import Best
from loractl.runs.changes import dumped, last_checkpoint
from loractl.runs.learner import ADAPTERS, Learner, claim, may_overwrite
from loractl.runs.measure import Measure
from loractl.runs.objective import Objective, make_room
from loractl.runs.processes import helpers
from loractl.runs.recipe import Cook
from loractl.runs.sources import data_hash, make_sources
from loractl.runs.studio import Studio
from loractl.runs.trace import Trace
from loractl.sections import TrainingSpec
from loractl.train.checkpoint import save_checkpoint
from loractl.train.conditioning import Conditioner
from loractl.train.lock import lock
from loractl.train.loop import fit
from loractl.train.metrics import NAME as METRICS
from loractl.train.metrics import MetricsFile
from loractl.train.stopping import Heard, Stop
from loractl.train.team import Elsewhere, Team, gathered


def train(spec: TrainingSpec, emit: Emit, cook: Cook) -> Outcome:
    """Runs the job that `cook` makes a recipe of, in as many processes as it says or a launcher has started."""
    launch = launched()
    if launch and launch.index:
        return follow(spec, cook)
    with lock(spec.destination()):
        if spec.output.overwrite:
            forget(spec)
        limit = spec.train.max_minutes
        run = Run(spec, emit, cook, Stop(limit * 60 if limit else None))
        run.begin()
        with helpers(spec.memory.processes - 1, follow, spec, cook):
            run.learn()
            return run.finish(run.overwrites)


def follow(spec: TrainingSpec, cook: Cook) -> Outcome:
    """The run of any process but the first: it says and leaves nothing; what went wrong in it, the first says."""
    try:
        run = Run(spec, lambda _: None, cook, Stop())
        run.begin()
        run.learn()
    except (Exception, KeyboardInterrupt) as error:
        raise SystemExit(getattr(error, "exit_code", 1)) from error
    return Outcome()


def forget(spec: TrainingSpec) -> None:
    """Removes what an earlier run into this folder left for its own going on."""
    folder = spec.destination()
    for name in ("checkpoints", "samples", ADAPTERS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (METRICS, "trace.json", "stopped.txt"):
        (folder / name).unlink(missing_ok=True)


@dataclass
class Run:
    """One run of one job, from its pictures to its outcome."""

    spec: TrainingSpec
    emit: Emit
    cook: Cook
    stop: Stop
    team: Team = field(default=Team(), init=False)
    agreed: Heard = field(default=Heard(), init=False)  # what the team heard before its last step

    def learn(self) -> None:
        """Everything up to the last step, together with the others if there are any."""
        if self.spec.train.deterministic:
            require_determinism()
        with gathered(self.spec.memory.device) as self.team:
            self.prepare(self.load())
            self.equip(make_room(self.model, self.recipe, self.sources))
            self.tell()
            if self.spec.memory.compile:
                compile_network(self.model.denoiser)
            self.take_up()
            self.fit()

    def begin(self) -> None:
        """What can be refused before a model is loaded."""
        self.folder, self.recipe = self.spec.destination(), self.cook(self.spec)
        self.overwrites, self.best = may_overwrite(self.spec, self.recipe), Best(self.spec)
        launch, memory = launched(), self.spec.memory
        pick_device(memory.device, launch.local if launch else memory.processes - 1)  # of the last that starts here

    def load(self) -> Family:
        spec = self.spec
        device = pick_device(spec.memory.device, self.team.local)
        model = load_model(
            spec.model.source,
            device,
            pick_dtype(spec.memory.precision, device),
            phases=spec.memory.phases,
            texts_on_cpu=spec.memory.text_encoders == "cpu" and not self.recipe.learns_words,
            keeping=Keeping(**spec.memory.keeping),
            trains=True,
            **spec.model.loading,
        )
        if spec.noise.zero_terminal_snr:
            model.end_in_pure_noise()
        return model

    def prepare(self, model: Family) -> None:
        """The pictures, and what the untouched model makes of the prompts."""
        self.model, self.studio = model, Studio(model, self.emit)
        self.studio.requests(self.spec.sample, self.recipe.prompt)  # a size that can't be drawn is told now
        with self.team.leader_first():  # the others find its class pictures and cached latents
            self.sources, pictures = make_sources(self.spec, self.recipe, self.studio, self.emit)
        self.data = data_hash(pictures)
        self.resumed = last_checkpoint(self.spec, self.data, self.cook, self.emit)
        if self.team.leads:
            self.look(pictures)

    def look(self, pictures: Sequence[Example]) -> None:
        """Scores and samples before training."""
        self.measure = Measure(self.spec, self.recipe, self.studio, pictures)
        self.album = Album(self.spec, self.recipe, self.studio)
        self.album.begin()
        if self.album.before and self.resumed is None and self.spec.sample.every:
            self.emit(Pictures(0, self.album.write(0, self.album.before), "samples"))

    def equip(self, conditioner: Conditioner) -> None:
        """What learns, and how."""
        self.learner = Learner(self.model, self.spec, self.recipe)
        self.objective = Objective(
            self.spec, self.recipe, self.model, self.learner, self.sources, conditioner, self.team
        )
        self.training = self.learner.training(self.objective.share.parts)
        self.trace = Trace(self.training) if self.recipe.embedding else None

    def tell(self) -> None:
        together = {"processes": self.team.size} if self.team.size > 1 else {}
        self.emit(Facts("what learns", {**self.learner.facts(), **together}))
        if (kept := self.spec.memory.quantize) != "none":
            self.emit(Note(merging_note(kept), "warning"))

    def take_up(self) -> None:
        """Goes on where an interrupted run has stopped."""
        if self.resumed is not None:
            self.go_on_from(self.resumed)
        self.resumed, self.metrics = None, MetricsFile(self.folder)
        if self.team.leads:
            claim(self.folder, self.spec.method)
            self.metrics.truncate(self.training.step)

    # The loop

    def fit(self) -> None:
        hooks: dict[str, Any] = {"where": self.objective.where, "on_numbers": self.on_numbers}
        hooks |= {"project": self.learner.end_step, "average": self.average}
        self.objective.settle()
        self.team.require_same(self.training.step, self.training.parameters)
        try:
            with self.stop:
                fit(self.training, self.objective, self.emit, self.after_step, **hooks)
        except NumericsError as error:
            if self.team.leads:
                (self.folder / "stopped.txt").write_text(f"{error}\n", encoding="utf-8")
            raise
        except Elsewhere:
            if self.team.leads and self.training.step:
                self.save_checkpoint(self.training.step)
            raise

    def average(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The step's own loss and gradients, once it is known that every process is well and has its share of them."""
        if self.team.size > 1:
            self.agreed = self.team.meet(self.stop.heard())
        return self.team.average(loss, parameters)

    def on_numbers(self, step: int, numbers: Any) -> None:
        if self.team.leads:
            self.metrics.add(step, numbers)
        self.emit(Numbers(step, dict(numbers)))

    def after_step(self, done: int) -> None:
        """What happens between two steps; the checkpoint comes before all that is large and may fail."""
        if self.trace:
            self.trace.after(done)
        heard = self.agreed if self.team.size > 1 else self.stop.heard()
        last, every = done == self.spec.train.steps, self.spec.checkpoint.every
        due = done % every == 0 or (last and done > every)
        leaving = heard.leaving and not last
        if self.team.leads and due and not last and self.spec.checkpoint.adapters:  # who goes on is past this step
            with self.training.averaged():
                self.emit(Wrote(self.learner.keep(self.folder, done), "adapter"))
        if self.team.leads and (leaving or due or heard.checkpoint):
            self.save_checkpoint(done)
        if leaving:
            self.leave(done, heard.signal)
        if self.team.leads and self.show(done) and not last:
            self.objective.settle()

    def show(self, done: int) -> bool:
        """The pictures and scores that are due; whether there were any, for which networks may have moved."""
        sample, measure = (each and done % each == 0 for each in (self.spec.sample.every, self.spec.eval.every))
        if sample:
            with self.training.averaged():
                self.emit(Pictures(done, self.album.add(done), "samples"))
        if measure:
            self.score(done)
        return bool(sample or measure)

    def leave(self, done: int, number: int = 0) -> None:
        """Raises KeyboardInterrupt or Terminated, with what to do next in `resume`, when all are ready for it."""
        self.team.meet()
        try:
            self.stop.leave(number)
        except KeyboardInterrupt as error:
            steps = f"{done} of {self.spec.train.steps} steps"
            text = f"interrupted after {steps}: run the same job again to go on from there"
            error.resume = text  # type: ignore[attr-defined]  # the command line looks for it
            raise

    def score(self, done: int) -> None:
        with self.training.averaged():
            scores = {name: score.value for name, score in self.measure.after().items()}
        self.emit(Numbers(done, {f"eval/{name}": value for name, value in scores.items()}))
        self.best.offer(scores, self.training)

    # Checkpoints

    def save_checkpoint(self, done: int) -> None:
        tensors, values = self.training.state()
        values = {**values, "job": dumped(self.spec), "data": self.data}
        if self.trace:
            more, values["trace"] = self.trace.state()
            tensors = {**tensors, **more}
        path = save_checkpoint(self.spec.checkpoints(), tensors, values, step=done, keep=self.spec.checkpoint.keep)
        self.emit(Wrote(path, "checkpoint"))

    def go_on_from(self, checkpoint: tuple[dict[str, Any], dict[str, Any]]) -> None:
        tensors, values = checkpoint
        self.training.restore(tensors, values)
        if self.trace:
            self.trace.restore(tensors, values["trace"])
        step, every = self.training.step, self.spec.eval.every
        self.emit(Note(f"going on from step {step} of {self.spec.train.steps}"))
        if not self.team.leads or not self.best.score:
            return
        self.best.go_on_from(step)
        if every and step % every == 0 and self.best.step < step:  # its score may be what the interruption took
            self.score(step)

    # The end

    def finish(self, overwrite: bool) -> Outcome:
        if self.best.restore(self.training):
            self.emit(Note(f"keeping step {self.training.step}, whose {self.spec.eval.keep_best} is the best"))
        with self.training.averaged():
            files = self.learner.save(self.folder, overwrite)
            if self.trace:
                files["trace"] = self.folder / "trace.json"
                told = json.dumps(self.trace.stretches, indent=1, sort_keys=True)
                files["trace"].write_text(f"{told}\n", encoding="utf-8")
            if self.learner.learnt_nothing():
                text = "trained, but nothing was learnt: what learns is as it was; raise train.lr or steps"
                self.emit(Note(text, "warning"))
            files |= self.album.finish()
            scores = self.measure.after()
        files |= self.measure.write(scores)
        for what, path in files.items():
            self.emit(Wrote(path, what))
        losses, values = self.training.losses[-50:], {name: score.value for name, score in scores.items()}
        numbers = {"loss": sum(losses) / len(losses), "trainable_parameters": self.learner.count(), **values}
        self.measure.check(scores)
        return Outcome(files, numbers)
