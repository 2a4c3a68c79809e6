"""Carries out a fleet's job: many subjects on one model, each as a run of its own but for the model and the loop.

    locks → model → each: pictures, samples and scores before → each: what learns → fit together → each: save, after

A subject's folder is what `train` would have left for it alone, checkpoints included, so either can go on from the
other's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from loractl.device import pick_device, pick_dtype, require_determinism
from loractl.errors import NumericsError, ScoreError
from loractl.events import Emit, Event, Facts, Note, Numbers, Pictures, Progress, Wrote
from loractl.families.family import Family
from loractl.families.pipeline import load_model
from loractl.inject.fleet import Fleet, take_off
from loractl.inject.layers import LoraFactors
from loractl.method import Outcome
from loractl.runs.recipe import Cook
from loractl.runs.training import Run, forget
from loractl.sections import TrainingSpec
from loractl.train.batches import Batch
from loractl.train.conditioning import Conditioner
from loractl.train.fleet import Turns, fit_together
from loractl.train.lock import lock
from loractl.train.loss import denoising_errors
from loractl.train.stopping import Stop

WORDS = {Note: "text", Facts: "title", Progress: "stage", Wrote: "what", Pictures: "what"}  # where a name goes in


def train_together(
    spec: TrainingSpec, subjects: Sequence[TrainingSpec], emit: Emit, cook: Cook, at_once: int
) -> Outcome:
    """Trains each subject as its own spec says; what concerns the process and the model is taken from `spec`. The
    pictures of `at_once` subjects at most go through the model together.
    """
    if spec.train.deterministic:
        require_determinism()
    limit = spec.train.max_minutes
    stop = Stop(limit * 60 if limit else None)
    with ExitStack() as locks:
        for each in (spec, *subjects):
            locks.enter_context(lock(each.destination()))
        for each in subjects:
            if each.output.overwrite:
                forget(each)
        crew = {each.name: Member(each, speaker(each.name, emit), cook, Orders()) for each in subjects}
        return Together(spec, crew, emit, stop, at_once).outcome()


def speaker(name: str, emit: Emit) -> Emit:
    """Hands on what one subject's run says, with its name."""

    def say(event: Event) -> None:
        word = WORDS.get(type(event))
        if isinstance(event, Numbers):
            event = replace(event, values={f"{name}/{key}": value for key, value in event.values.items()})
        elif word is not None:
            event = replace(event, **{word: f"{name}: {getattr(event, word)}"})
        emit(event)

    return say


class Orders(Stop):
    """What a member's run hears of the world: nothing interrupts it but its fleet, which wants a checkpoint first."""

    wanted = False

    @property
    def checkpoint_wanted(self) -> bool:
        return self.wanted


class Member(Run):
    """One subject's run, in stages."""

    stop: Orders

    def join(self, conditioner: Conditioner) -> dict[str, dict[str, LoraFactors]]:
        """Injects its adapter and takes it off again: component → path → factors."""
        self.equip(conditioner)
        assert self.learner.lora is not None
        return {name: take_off(network) for name, network in self.learner.lora.networks_by_name.items()}


@dataclass
class Together:
    """One run of a whole fleet; `crew` has the members by name, in the order of their seats."""

    spec: TrainingSpec
    crew: Mapping[str, Member]
    emit: Emit
    stop: Stop
    at_once: int

    def outcome(self) -> Outcome:
        memory, source = self.spec.memory, self.spec.model
        for member in self.crew.values():
            member.begin()
        device = pick_device(memory.device)
        self.model = load_model(source.source, device, pick_dtype(memory.precision, device), **source.loading)
        if self.spec.noise.zero_terminal_snr:
            self.model.end_in_pure_noise()
        for member in self.crew.values():
            member.prepare(self.model)
        self.board()
        self.fit()
        return self.finish()

    def board(self) -> None:
        """All adapters onto the model, from the checkpoints where there are any."""
        conditioner = Conditioner(self.model)
        adapters = [member.join(conditioner) for member in self.crew.values()]
        networks = {name: self.model.components[name] for name in adapters[0]}
        self.fleet = Fleet(networks, adapters)
        for name, member in self.crew.items():
            self.wear(name)
            member.take_up()
        first = next(iter(self.crew.values()))
        self.emit(Facts("what learns", {"subjects": len(self.crew), **first.learner.facts()}))

    # The loop

    def fit(self) -> None:
        trainings = {name: member.training for name, member in self.crew.items()}
        for member in self.crew.values():
            member.objective.settle()
        loss = Voyage(self.model, self.crew, self.fleet, self.at_once)
        hooks = (self.emit, self.after_step, self.end_step, self.on_numbers, self.where)
        try:
            with self.stop:
                fit_together(trainings, loss, self.fleet.forget_gradients, *hooks)
        except NumericsError as error:
            (self.spec.destination() / "stopped.txt").write_text(f"{error}\n", encoding="utf-8")
            raise

    def where(self, name: str, step: int) -> str:
        return self.crew[name].objective.where(step)

    def on_numbers(self, told: Mapping[str, tuple[int, Mapping[str, float]]]) -> None:
        for name, (step, numbers) in told.items():
            self.crew[name].metrics.add(step, numbers)
        values = {f"{name}/{key}": value for name, (_, each) in told.items() for key, value in each.items()}
        self.emit(Numbers(max(step for step, _ in told.values()), values))

    def end_step(self, name: str) -> None:
        self.wear(name)
        self.crew[name].learner.end_step()

    def after_step(self, turns: Turns) -> None:
        """Each member's own; where the fleet must leave, all have a checkpoint first."""
        under_way = any(member.training.step < member.spec.train.steps for member in self.crew.values())
        leaving = under_way and (self.stop.requested is not None or self.stop.out_of_time())
        asked = self.stop.checkpoint_wanted
        for name in turns:
            self.crew[name].stop.wanted = leaving or asked
            self.wear(name)
            self.crew[name].after_step(turns[name])
        if leaving:
            for name in self.crew.keys() - turns.keys():
                self.crew[name].save_checkpoint(self.crew[name].training.step)
            self.leave()

    def leave(self) -> None:
        """Raises KeyboardInterrupt or Terminated, with what to do next in `resume`."""
        try:
            self.stop.leave()
        except KeyboardInterrupt as error:
            done = ", ".join(f"{name} {member.training.step}" for name, member in self.crew.items())
            text = f"interrupted after these steps: {done}; run the same job again to go on from there"
            error.resume = text  # type: ignore[attr-defined]  # the command line looks for it
            raise

    def wear(self, name: str) -> None:
        self.fleet.wear(list(self.crew).index(name))

    def finish(self) -> Outcome:
        """Every subject's files and numbers under its name. ScoreError, when all is written, for those below."""
        files: dict[str, Path] = {}
        numbers: dict[str, float] = {}
        low = []
        for name, member in self.crew.items():
            self.wear(name)
            try:
                outcome = member.finish(member.overwrites)
            except ScoreError as error:
                low.append(f"{name}: {error}")
                continue
            files |= {f"{name}: {what}": path for what, path in outcome.files.items()}
            numbers |= {f"{name}/{key}": value for key, value in outcome.numbers.items()}
        if low:
            raise ScoreError("; ".join(low))
        return Outcome(files, numbers)


@dataclass
class Voyage:
    """The loss of all members, as `fit_together` wants it: pictures of one size go through the model together, those of
    `at_once` members.
    """

    model: Family
    crew: Mapping[str, Member]
    fleet: Fleet
    at_once: int

    def __call__(self, turns: Turns, part: int) -> Iterator[dict[str, Tensor]]:
        """While the caller goes backward, the samples keep their seats: activations may be computed again."""
        waiting: dict[object, list[tuple[str, float, Batch]]] = {}
        for seat, (name, member) in enumerate(self.crew.items()):
            if name in turns:
                self.fleet.wear(seat)
                member.learner.start_step(turns[name])
                batches = member.objective.batches(turns[name], part)
                for weight, batch in zip((1.0, member.objective.prior_weight), batches, strict=False):
                    waiting.setdefault(batch.latents.shape[1:], []).append((name, weight, batch))
        for entries in (few for all_of_size in waiting.values() for few in self._parted(all_of_size)):
            with self.fleet.seated(self._counts(entries)):
                yield self._losses(entries)

    def _parted(self, entries: Sequence[tuple[str, float, Batch]]) -> Iterator[list[tuple[str, float, Batch]]]:
        """In order, so many members' at a time as go through the model together."""
        names = list(dict.fromkeys(name for name, _, _ in entries))
        for few in (set(names[first : first + self.at_once]) for first in range(0, len(names), self.at_once)):
            yield [entry for entry in entries if entry[0] in few]

    def _counts(self, entries: Sequence[tuple[str, float, Batch]]) -> list[int]:
        return [sum(len(batch) for owner, _, batch in entries if owner == name) for name in self.crew]

    def _losses(self, entries: Sequence[tuple[str, float, Batch]]) -> dict[str, Tensor]:
        """Of each member, the means of its pictures' errors and `weight` times its class pictures'."""
        batches = [batch for _, _, batch in entries]
        batch = sum(batches[1:], batches[0])
        objective = self.crew[entries[0][0]].objective
        with self.model.autocast():
            conditioning = objective.conditioner(batch.captions, objective.learns_words)
            errors = denoising_errors(self.model, batch, conditioning, objective.weighting)
        found: dict[str, Tensor] = {}
        for (name, weight, _), own in zip(entries, errors.split([len(each) for each in batches]), strict=True):
            loss = weight * own.mean()
            found[name] = found[name] + loss if name in found else loss
        return found
