"""A model with its adapters, for as long as one likes: pictures, weights that change, adapters that come and go.

    with Session(load_model("lab", device, dtype)) as session:
        session.add("face", Path("face.safetensors"), Use(schedule=Schedule(((0.0, 0.2), (0.5, 1.0)))))
        pictures = session.generate("a picture of a sks critter in the snow", seeds=[1, 2])
        session.set_weights({"face": 0.5})

Between runs the networks give the plain model's output, to the bit; `close` puts back the very layers as well. Nobody
else may change or move their weights meanwhile.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, Self

import torch
from PIL import Image
from torch import nn

from loractl.errors import JobError, MismatchError
from loractl.families.sd import StableDiffusion
from loractl.inject.inject import fitting_layers
from loractl.inject.targets import injectable
from loractl.sample.adapted import forget, read, requests, teach
from loractl.sample.compose import NOTHING, Branch, Cache, Composed, Engine, EngineName, Plan, Stack, choose
from loractl.sample.denoise import Request, Turns, batches, render_batch
from loractl.sample.schedule import Moment, Use, in_layers, run_moments
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank

CACHE_BYTES = 2 * 10**9
OnStep = Callable[[int, int], None]


@dataclass
class Run:
    """One run of the pipeline, which made the pictures of these requests; and for each turn of its loop the moment, and
    the strengths that adapters had in the denoiser: "face" where no pattern matches, "face mid_block" where one does.
    """

    requests: Sequence[Request]
    engine: EngineName = "composed"
    moments: Sequence[Moment] = ()
    strengths: list[Mapping[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class _Held:
    adapter: Adapter
    components: Sequence[str]  # that it changes
    use: Use
    number: int  # no other adapter of this session ever has it


class Session:
    """`runs` grows by one for each batch of pictures."""

    def __init__(
        self, model: StableDiffusion, engine: Literal["auto"] | EngineName = "auto", cache_bytes: int = CACHE_BYTES
    ) -> None:
        """At most `cache_bytes` of composed weights are kept; more than that, and "auto" takes the branch."""
        self.model, self.runs = model, list[Run]()
        self._wanted, self._cache = engine, Cache(cache_bytes)
        self._held: dict[str, _Held] = {}
        self._added = 0
        self._plans: dict[str, Plan] = {}
        self._engines: dict[str, Engine] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, name: str, adapter: Path | Adapter, use: Use = Use(), *, allow_pickle: bool = False) -> Adapter:
        """Takes up an adapter, or a file of one, with its learned tokens, and returns it.

        JobError for a name that is taken; MismatchError for what does not fit the model, or a pattern that fits no
        layer. Then nothing has changed.
        """
        if name in self._held:
            raise JobError(f'the session has an adapter "{name}" already: drop it first, or give this one another name')
        where = f"{adapter}: " if isinstance(adapter, Path) else ""
        found = read(self.model, adapter, allow_pickle) if isinstance(adapter, Path) else adapter
        try:
            _check_patterns(found, use)
            for component in found.components():
                fitting_layers(self._network(component), found.component(component))
            teach(self.model, found)
        except (JobError, MismatchError) as error:
            raise type(error)(f"{where}{error}") from error
        self._added += 1
        self._held[name] = _Held(found, found.components(), use, self._added)
        self._rearrange()
        return found

    def drop(self, name: str) -> None:
        """Forgets an adapter and its tokens; during a run, from the next step on."""
        dropped = self._known(name)
        del self._held[name]
        self._rearrange()
        if dropped.adapter.tokens:
            forget(self.model)
            for held in self._held.values():
                teach(self.model, held.adapter)

    def set_weights(self, uses: Mapping[str, float | Use]) -> None:
        """New weights, or new uses as a whole, by adapter; of the others nothing changes.

        Called from `on_step` of a run it counts from the next step on, but for text encoders, which have run.
        """
        held = {name: self._known(name) for name in uses}
        for name, use in uses.items():
            if isinstance(use, Use):
                _check_patterns(held[name].adapter, use)
        for name, use in uses.items():
            before = held[name].use
            self._held[name] = replace(held[name], use=use if isinstance(use, Use) else replace(before, weight=use))
            if tuple(self._held[name].use.layers) != tuple(before.layers):
                self._rearrange()

    def generate(
        self,
        prompt: str | Sequence[str],
        seeds: Sequence[int] = (0,),
        steps: int = 25,
        guidance: float | None = None,
        size: int | None = None,
        negative: str = "",
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """A picture for each prompt and seed, the seeds of a prompt in a row; see `render`."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        wanted = requests(self.model, prompts, seeds, steps, guidance, size, negative)
        return list(self.render(wanted, on_step=on_step))

    def render(
        self, wanted: Sequence[Request], batch_size: int = 4, on_step: OnStep | None = None
    ) -> Iterator[Image.Image]:
        """The pictures of the requests, in order. `on_step(done, total)` is called after every denoising step."""
        total, done = sum(request.steps for request in wanted), 0
        for batch in batches(wanted, batch_size):
            steps = batch[0].steps * len(batch)

            def after(turn: int, turns: int, base: int = done, steps: int = steps) -> None:
                if on_step:
                    on_step(base + steps * turn // turns, total)

            yield from self._run(batch, after)
            done += steps

    @property
    def compositions(self) -> int:
        """How many sums of the denoiser's weights have been formed; the cache has spared all others."""
        return self._cache.formed[self.model.denoiser_name]

    def close(self) -> None:
        """Forgets all adapters and their tokens."""
        self._rearrange()
        if any(held.adapter.tokens for held in self._held.values()):
            forget(self.model)
        self._held.clear()

    def _run(self, batch: Sequence[Request], after: Callable[[int, int], None]) -> list[Image.Image]:
        """The pictures of one run of the pipeline, of which `after(turn, turns)` hears every turn."""
        run = Run(batch)
        turns = Turns(partial(self._ahead, run))

        def at_end(turn: int, of: int) -> None:
            turns.turn = turn
            after(turn, of)

        try:
            for name in self.model.text_encoder_names:
                self._write(name, "branch" if self._wanted == "branch" else "composed", None)
            with turns.watching(self.model.denoiser):
                pictures = render_batch(self.model.pipeline, batch, at_end)
        finally:
            for engine in self._engines.values():
                engine.off()
        self.runs.append(run)
        return pictures

    def _ahead(self, run: Run, turn: int) -> None:
        """Before the denoiser's turn."""
        name, pipeline = self.model.denoiser_name, self.model.pipeline
        if turn == 0:
            path = self.model.path.to(torch.device("cpu"))
            run.moments = run_moments(pipeline.scheduler, pipeline.num_timesteps, path)
            run.engine = self._choice(run.moments)
        moment = run.moments[turn]
        self._write(name, run.engine, moment)
        run.strengths.append(self._said(name, moment))

    def _said(self, component: str, moment: Moment) -> dict[str, float]:
        """The strengths under their names, as a `Run` keeps them."""
        said: dict[str, float] = {}
        for name, held in self._held.items():
            if component in held.components:
                labels = [name, *(f"{name} {pattern}" for pattern in held.use.layers)]
                said |= zip(labels, held.use.strengths(moment), strict=True)
        return said

    def _choice(self, moments: Sequence[Moment]) -> EngineName:
        """Of the two engines, for a run with these moments."""
        plan = self._plan(self.model.denoiser_name)
        if self._wanted != "auto":
            return self._wanted
        keys = {plan.key(self._vector(moment)) for moment in moments} - {NOTHING}
        known = sum(key in self._cache for key in keys)
        return choose(len(keys), len(keys) - known, len(moments), plan.size, self._cache.limit)

    def _write(self, component: str, kind: EngineName, moment: Moment | None) -> None:
        """Makes a network act as the adapters shall at this moment, or before the run."""
        plan = self._plan(component)
        if plan.stacks:
            self._engine(plan, kind).write(self._vector(moment))

    def _engine(self, plan: Plan, kind: EngineName) -> Engine:
        """The network's engine, which takes the place of one of the other kind."""
        name = plan.component
        if name not in self._engines or self._engines[name].kind != kind:
            if name in self._engines:
                self._engines.pop(name).close()
            network = self._network(name)
            self._engines[name] = Branch(network, plan) if kind == "branch" else Composed(network, plan, self._cache)
        return self._engines[name]

    def _vector(self, moment: Moment | None) -> list[float]:
        """The strengths of all adapters, one after the other."""
        return [strength for held in self._held.values() for strength in held.use.strengths(moment)]

    def _plan(self, component: str) -> Plan:
        """What the adapters do to a network; made once for as long as they stay."""
        if component not in self._plans:
            self._plans[component] = self._planned(component)
        return self._plans[component]

    def _planned(self, component: str) -> Plan:
        parts: dict[str, list[tuple[int, LowRank]]] = {}
        meanings: list[Hashable] = []
        for held in self._held.values():
            for path, low in held.adapter.component(component).items():
                slot = len(meanings) + held.use.group(f"{component}.{path}")
                parts.setdefault(path, []).append((slot, low))
            meanings += [(held.number, tuple(held.use.layers), group) for group in range(len(held.use.layers) + 1)]
        layers = injectable(self._network(component))
        stacks = {path: Stack.of(each, layers[path].weight.device) for path, each in parts.items()}
        return Plan(component, stacks, tuple(meanings), sum(layers[path].weight.nbytes for path in stacks))

    def _rearrange(self) -> None:
        """After a change of what is there: the networks are the plain ones until they are needed again."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._plans.clear()

    def _network(self, component: str) -> nn.Module:
        return self.model.components[component]

    def _known(self, name: str) -> _Held:
        if name not in self._held:
            there = ", ".join(self._held) or "none"
            raise JobError(f'the session has no adapter "{name}"; it has {there}')
        return self._held[name]


def _check_patterns(adapter: Adapter, use: Use) -> None:
    """MismatchError when a pattern is for no module of the adapter."""
    for pattern in use.layers:
        if not any(in_layers(path, pattern) for path in adapter.modules):
            raise MismatchError(f'no module of the adapter matches "{pattern}": correct the pattern or remove it')
