"""Carries out a training job of any method: pictures, model, what learns, the loop with its checkpoints, the result.

    lock → pictures → model → class pictures → scores and samples before → inject → (go on) → fit → save → after

A run that was interrupted goes through the same stages, and takes up the loop where its last checkpoint stands.
"""

import json
import shutil
from dataclasses import dataclass, field
from typing import Any

from loractl.device import pick_device, pick_dtype, require_determinism
from loractl.errors import InputError, MismatchError, NumericsError
from loractl.events import Emit, Facts, Note, Numbers, Pictures, Wrote
from loractl.families.pipeline import load_model
from loractl.families.precision import Keeping, compile_network, merging_note
from loractl.method import Outcome
from loractl.runs.album import Album
from loractl.runs.changes import judge
from loractl.runs.learner import Learner, result_files
from loractl.runs.measure import Measure
from loractl.runs.objective import Objective, make_room
from loractl.runs.recipe import Cook
from loractl.runs.sources import data_hash, make_sources
from loractl.runs.studio import Studio
from loractl.runs.trace import Trace
from loractl.sections import TrainingSpec
from loractl.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from loractl.train.lock import lock
from loractl.train.loop import Plan, Training, fit
from loractl.train.metrics import NAME as METRICS
from loractl.train.metrics import MetricsFile
from loractl.train.optim import make_optimizer
from loractl.train.stopping import Stop


def train(spec: TrainingSpec, emit: Emit, cook: Cook) -> Outcome:
    """Runs the job that `cook` makes a recipe of."""
    if spec.train.deterministic:
        require_determinism()
    folder = spec.destination()
    limit = spec.train.max_minutes
    stop = Stop(limit * 60 if limit else None)
    with lock(folder):
        if spec.output.overwrite:
            forget(spec)
        return Run(spec, emit, cook, stop).outcome()


def forget(spec: TrainingSpec) -> None:
    """Removes what an earlier run into this folder left for its own going on."""
    folder = spec.destination()
    for name in ("checkpoints", "samples"):
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
    best: float = field(default=float("-inf"), init=False)

    def outcome(self) -> Outcome:
        spec = self.spec
        self.folder = spec.destination()
        self.recipe = self.cook(spec)
        overwrite = self.may_overwrite()
        device = pick_device(spec.memory.device)
        self.model = load_model(
            spec.model.source,
            device,
            pick_dtype(spec.memory.precision, device),
            phases=spec.memory.phases,
            keeping=Keeping(**spec.memory.keeping),
            trains=True,
            **spec.model.loading,
        )
        if spec.noise.zero_terminal_snr:
            self.model.end_in_pure_noise()
        self.studio = Studio(self.model, self.emit)
        sources, pictures = make_sources(spec, self.recipe, self.studio, self.emit)
        self.data = data_hash(pictures)
        resumed = self.last_checkpoint()
        self.measure = Measure(spec, self.recipe, self.studio, pictures)
        self.album = Album(spec, self.recipe, self.studio)
        self.album.begin()
        if self.album.before and resumed is None and spec.sample.every:
            self.emit(Pictures(0, self.album.write(0, self.album.before), "samples"))

        conditioner = make_room(self.model, self.recipe, sources)
        self.learner = Learner(self.model, spec, self.recipe)
        self.emit(Facts("what learns", self.learner.facts()))
        if spec.memory.quantize != "none":
            self.emit(Note(merging_note(spec.memory.quantize), "warning"))
        if spec.memory.compile:
            compile_network(self.model.denoiser)
        self.objective = Objective(spec, self.recipe, self.model, self.learner, sources, conditioner)
        self.training = self.new_training()
        self.trace = Trace(self.training.groups, self.active, spec.train.steps) if self.recipe.embedding else None
        if resumed is not None:
            self.go_on_from(resumed)
        self.metrics = MetricsFile(self.folder)
        self.metrics.truncate(self.training.step)
        self.fit()
        return self.finish(overwrite)

    def may_overwrite(self) -> bool:
        """Whether the files in the folder are those of this run, interrupted, or the job allows it.

        Otherwise InputError when the result would replace one, now and not when training is over.
        """
        if self.spec.output.overwrite or (self.folder / METRICS).exists():
            return True
        there = [name for name in result_files(self.spec, self.recipe) if (self.folder / name).exists()]
        if there:
            raise InputError(
                f"{self.folder / there[0]} is already there: choose another --out, or replace it with --overwrite"
            )
        return False

    def active(self, step: int) -> frozenset[str]:
        """Names of the groups that learn in a step: those whose first word the recipe names."""
        names = self.recipe.active(step)
        return frozenset(group.name for group in self.groups if group.name.partition(":")[0] in names)

    def new_training(self) -> Training:
        train, optimizer = self.spec.train, self.spec.optimizer
        self.groups = self.learner.groups()
        plan = Plan(
            train.steps,
            train.grad_accum,
            train.max_grad_norm,
            self.spec.schedule.name,
            self.spec.schedule.warmup_steps,
            self.active,
            train.ema,
        )
        made = make_optimizer(
            self.groups,
            optimizer.name,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
            eps=optimizer.eps,
            options=optimizer.options,
        )
        return Training(self.groups, made, plan)

    # The loop

    def fit(self) -> None:
        hooks: dict[str, Any] = {"where": self.objective.where, "on_numbers": self.on_numbers}
        hooks["project"] = self.learner.end_step
        self.objective.settle()
        try:
            with self.stop:
                fit(self.training, self.objective, self.emit, self.after_step, **hooks)
        except NumericsError as error:
            (self.folder / "stopped.txt").write_text(f"{error}\n", encoding="utf-8")
            raise

    def on_numbers(self, step: int, numbers: Any) -> None:
        self.metrics.add(step, numbers)
        self.emit(Numbers(step, dict(numbers)))

    def after_step(self, done: int) -> None:
        """What happens between two steps; the checkpoint comes before everything that may fail."""
        spec = self.spec
        if self.trace:
            self.trace.after(done)
        last = done == spec.train.steps
        leaving = not last and (self.stop.requested is not None or self.stop.out_of_time())
        due = done % spec.checkpoint.every == 0 or (last and done > spec.checkpoint.every)
        if leaving or due or self.stop.checkpoint_wanted:
            self.save_checkpoint(done)
        if leaving:
            self.leave(done)
        if spec.sample.every and done % spec.sample.every == 0:
            with self.training.averaged():
                self.emit(Pictures(done, self.album.add(done), "samples"))
        if spec.eval.every and done % spec.eval.every == 0:
            self.score(done)
        if not last:
            self.objective.settle()

    def leave(self, done: int) -> None:
        """Raises KeyboardInterrupt or Terminated, with what to do next in `resume`."""
        try:
            self.stop.leave()
        except KeyboardInterrupt as error:
            steps = f"{done} of {self.spec.train.steps} steps"
            text = f"interrupted after {steps}: run the same job again to go on from there"
            error.resume = text  # type: ignore[attr-defined]  # the command line looks for it
            raise

    def score(self, done: int) -> None:
        with self.training.averaged():
            scores = {name: score.value for name, score in self.measure.after().items()}
        self.emit(Numbers(done, {f"eval/{name}": value for name, value in scores.items()}))
        name = self.spec.eval.keep_best
        if name is None:
            return
        if name not in scores:
            raise InputError(f"eval.keep_best names {name!r}, but this run measures {', '.join(scores)} alone")
        if scores[name] > self.best:
            self.best = scores[name]
            save_checkpoint(self.spec.checkpoints() / "best", *self.training.state(), step=done, keep=1)

    # Checkpoints

    def save_checkpoint(self, done: int) -> None:
        tensors, values = self.training.state()
        values = {
            **values,
            "job": self.job(),
            "data": self.data,
            "best": self.best if self.best > float("-inf") else None,
        }
        if self.trace:
            more, values["trace"] = self.trace.state()
            tensors = {**tensors, **more}
        path = save_checkpoint(self.spec.checkpoints(), tensors, values, step=done, keep=self.spec.checkpoint.keep)
        self.emit(Wrote(path, "checkpoint"))

    def job(self) -> dict[str, Any]:
        return self.spec.model_dump(mode="json", exclude_none=True)

    def last_checkpoint(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Tensors and values of the checkpoint to go on from, if there is one and the job allows it."""
        path = latest_checkpoint(self.spec.checkpoints())
        if path is None:
            return None
        if self.spec.checkpoint.resume == "never":
            raise InputError(
                f'{self.folder} holds an interrupted run: choose another --out, allow checkpoint.resume = "auto", or '
                "start over with --overwrite"
            )
        tensors, values = load_checkpoint(path)
        self.judge(values)
        return tensors, values

    def judge(self, values: dict[str, Any]) -> None:
        """MismatchError when the job or its pictures changed so that the steps done would have been others."""
        refused, warned = judge(values["job"], json.loads(json.dumps(self.job())))
        if values["data"] != self.data:
            refused.append("the training pictures, masks or captions are not those of the interrupted run")
        before = self.cook(type(self.spec).model_validate_json(json.dumps(values["job"])))
        if not refused and any(before.active(s) != self.recipe.active(s) for s in range(values["step"])):
            refused.append("the change of train.steps moves the phases of steps that are done")
        if refused:
            raise MismatchError(
                f"{self.folder} holds an interrupted run of another job; undo these changes, choose another --out, or "
                "start over with --overwrite:\n" + "\n".join(refused)
            )
        for change in warned:
            self.emit(Note(f"the interrupted run goes on with a change: {change}", "warning"))

    def go_on_from(self, checkpoint: tuple[dict[str, Any], dict[str, Any]]) -> None:
        tensors, values = checkpoint
        self.training.restore(tensors, values)
        self.best = values["best"] if values["best"] is not None else float("-inf")
        if self.trace:
            self.trace.restore(tensors, values["trace"])
        self.emit(Note(f"going on from step {self.training.step} of {self.spec.train.steps}"))

    # The end

    def finish(self, overwrite: bool) -> Outcome:
        if self.spec.eval.keep_best and (path := latest_checkpoint(self.spec.checkpoints() / "best")):
            self.training.restore(*load_checkpoint(path))
            self.emit(Note(f"keeping step {self.training.step}, whose {self.spec.eval.keep_best} is the best"))
        with self.training.averaged():
            files = self.learner.save(self.folder, overwrite)
            if self.trace:
                files["trace"] = self.folder / "trace.json"
                files["trace"].write_text(
                    json.dumps(self.trace.stretches, indent=1, sort_keys=True) + "\n", encoding="utf-8"
                )
            if self.learner.learnt_nothing():
                self.emit(
                    Note(
                        "trained, but nothing was learnt: what learns is as it was; raise train.lr or steps", "warning"
                    )
                )
            files |= self.album.finish()
            scores = self.measure.after()
        files |= self.measure.write(scores)
        for what, path in files.items():
            self.emit(Wrote(path, what))
        losses, values = self.training.losses[-50:], {name: score.value for name, score in scores.items()}
        numbers = {"loss": sum(losses) / len(losses), "trainable_parameters": self.learner.count(), **values}
        self.measure.check(scores)
        return Outcome(files, numbers)
