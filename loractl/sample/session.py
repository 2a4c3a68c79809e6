"""A model with its adapters, for as long as one likes: pictures, weights that change, adapters that come and go.

    with Session(load_model("lab", device, dtype)) as session:
        session.add("face", Path("face.safetensors"), Use(schedule=Schedule(((0.0, 0.2), (0.5, 1.0)))))
        pictures = session.generate("a picture of a sks critter in the snow", seeds=[1, 2])
        session.set_weights({"face": 0.5})

Everything that a file changes takes part: low-rank updates, whole differences, those of biases and norms, DoRA.
Between runs the networks give the plain model's output, to the bit; `close` puts back the very layers as well. Nobody
else may change or move their weights meanwhile.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from PIL import Image
from torch import nn

from loractl.errors import JobError, MismatchError
from loractl.families.family import Family
from loractl.formats import load_adapter
from loractl.sample.adapted import forget, requests, teach
from loractl.sample.ahead import aside
from loractl.sample.canvas import Size
from loractl.sample.compose import Branch, Cache, Composed, Engine, EngineName, choose
from loractl.sample.denoise import Request, Turns, in_batches, pipeline_for, render_batch
from loractl.sample.held import Held, check, check_patterns, make_plan, strangers, vector
from loractl.sample.reading import Reader
from loractl.sample.schedule import Moment, Use, run_moments
from loractl.sample.stack import Plan
from loractl.tensors.adapter import Adapter

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


class Session:
    """`runs` grows by one for each batch of pictures."""

    def __init__(
        self,
        model: Family,
        engine: Literal["auto"] | EngineName = "auto",
        cache_bytes: int = CACHE_BYTES,
        prefetch: bool | None = None,
    ) -> None:
        """At most `cache_bytes` of composed weights are kept. Those of the next step are formed while the present one
        runs if `prefetch` says so or, where it is None, if a GPU or an idle core can do it.
        """
        self.model, self.runs = model, list[Run]()
        self._wanted, self._cache, self._prefetch = engine, Cache(cache_bytes), prefetch
        self._held: dict[str, Held] = {}
        self._reader = Reader(model)
        self._added = 0
        self._plans: dict[str, Plan] = {}
        self._engines: dict[str, Engine] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, name: str, adapter: Path | Adapter, use: Use = Use(), *, allow_pickle: bool = False) -> Adapter:
        """Takes up an adapter, or a file of one, with its learned tokens, and returns it.

        JobError for a name that is taken, or a change that is no low-rank one where the branch is forced; MismatchError
        for what does not fit the model, or a pattern that fits no layer. Then nothing has changed.
        """
        if name in self._held:
            raise JobError(f'the session has an adapter "{name}" already: drop it first, or give this one another name')
        paths, called = self.model.module_paths(), str(adapter) if isinstance(adapter, Path) else "the adapter"
        if isinstance(adapter, Path):
            adapter = load_adapter(adapter, paths, allow_pickle=allow_pickle, whole=True)
        if unknown := strangers(adapter, self.model.components):
            raise MismatchError(f"{called} adapts {', '.join(unknown)}, which this model does not have")
        try:
            check(adapter, use, self.model.components, self._wanted == "branch")
            teach(self.model, adapter)
        except (JobError, MismatchError) as error:
            if adapter.tokens:
                self._teach_again()  # one of several text encoders may have learned them
            raise type(error)(f"{called}: {error}") from error
        self._added += 1
        self._held[name] = Held(adapter, use, self._added)
        self._rearrange()
        return adapter

    def drop(self, name: str) -> None:
        """Forgets an adapter and its tokens; during a run, from the next step on."""
        dropped = self._known(name)
        del self._held[name]
        self._rearrange()
        self._cache.forget(dropped.number)
        if dropped.adapter.tokens:
            self._teach_again()

    def set_weights(self, uses: Mapping[str, float | Use]) -> None:
        """New weights, or new uses as a whole, by adapter; of the others nothing changes.

        Called from `on_step` of a run it counts from the next step on, but for text encoders, which have run.
        """
        held = {name: self._known(name) for name in uses}
        for name, use in uses.items():
            if isinstance(use, Use):
                check_patterns(held[name].adapter, use)
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
        size: int | Size | None = None,
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
        return in_batches(self._run, wanted, batch_size, on_step)

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
        self._cache.clear()

    def _run(self, batch: Sequence[Request], after: Callable[[int, int], None]) -> list[Image.Image]:
        """The pictures of one run of the pipeline, of which `after(turn, turns)` hears every turn."""
        run = Run(batch)
        pipeline = pipeline_for(self.model.pipeline, batch[0])
        turns = Turns(partial(self._ahead, run, pipeline))

        def at_end(turn: int, of: int) -> None:
            turns.turn = turn
            after(turn, of)

        try:
            for name in self.model.text_encoder_names:
                self._write(name, "branch" if self._wanted == "branch" else "composed", None)
            with turns.watching(self.model.denoiser), self._reader.reading(pipeline, self._said_to_texts()):
                pictures = render_batch(pipeline, batch, at_end, partial(self.model.arguments, pipeline=pipeline))
        finally:
            for engine in self._engines.values():
                engine.off()
        self.runs.append(run)
        return pictures

    def _said_to_texts(self) -> Hashable:
        """What texts are read with: the adapters, their tokens and the weights that they have before a run."""
        return tuple(each.number for each in self._held.values()), tuple(self._vector(None))

    def _ahead(self, run: Run, pipeline: Any, turn: int) -> None:
        """Before the denoiser's turn in a run of this pipeline."""
        name = self.model.denoiser_name
        if turn == 0:
            path = self.model.path.to(torch.device("cpu"))
            run.moments = run_moments(pipeline.scheduler, pipeline.num_timesteps, path)
            run.engine = self._choice(run.moments)
        moment = run.moments[turn]
        self._write(name, run.engine, moment)
        run.strengths.append(self._said(name, moment))
        if name in self._engines and turn + 1 < len(run.moments):
            self._engines[name].prefetch(self._vector(run.moments[turn + 1]))

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
        if not plan.is_low_rank:
            return "composed"
        vectors = {frozenset(plan.keys(self._vector(moment))) for moment in moments} - {frozenset()}
        return choose(len(vectors), plan.size, self._cache.limit)

    def _write(self, component: str, kind: EngineName, moment: Moment | None) -> None:
        """Makes a network act as the adapters shall at this moment, or before the run."""
        plan = self._plan(component)
        if plan.stacks:
            able = kind if plan.is_low_rank else "composed"  # an adapter may have come during the run
            self._engine(plan, able).write(self._vector(moment))

    def _engine(self, plan: Plan, kind: EngineName) -> Engine:
        """The network's engine, which takes the place of one of the other kind."""
        name = plan.component
        if name not in self._engines or self._engines[name].kind != kind:
            if name in self._engines:
                self._engines.pop(name).close()
            self._engines[name] = self._made(plan, kind)
        return self._engines[name]

    def _made(self, plan: Plan, kind: EngineName) -> Engine:
        network = self._network(plan.component)
        if kind == "branch":
            return Branch(network, plan)
        runs_in_steps = plan.component == self.model.denoiser_name
        beside = aside(next(network.parameters()).device, self._prefetch) if runs_in_steps else None
        return Composed(network, plan, self._cache, beside)

    def _vector(self, moment: Moment | None) -> list[float]:
        return vector(self._held.values(), moment)

    def _plan(self, component: str) -> Plan:
        """What the adapters do to a network; made once for as long as they stay."""
        if component not in self._plans:
            self._plans[component] = make_plan(component, self._network(component), self._held.values())
        return self._plans[component]

    def _rearrange(self) -> None:
        """After a change of what is there: the networks are the plain ones until they are needed again."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._plans.clear()

    def _teach_again(self) -> None:
        """Has the model know the tokens of the adapters that are held, and no others."""
        forget(self.model)
        for held in self._held.values():
            teach(self.model, held.adapter)

    def _network(self, component: str) -> nn.Module:
        return self.model.components[component]

    def _known(self, name: str) -> Held:
        if name not in self._held:
            there = ", ".join(self._held) or "none"
            raise JobError(f'the session has no adapter "{name}"; it has {there}')
        return self._held[name]
