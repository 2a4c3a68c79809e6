"""A model with adapters that come, go and change: exact at every step, and nothing left behind."""

from typing import Any

import numpy as np
import pytest
import torch

from loractl.errors import JobError, MismatchError
from loractl.families.sdxl import StableDiffusionXL
from loractl.inject.inject import base_tensors
from loractl.inject.tokens import token_parameters
from loractl.sample.denoise import Turns
from loractl.sample.schedule import Schedule, Use
from loractl.sample.session import Session
from loractl.sample.trace import plot, trace, traced
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank
from tests.sample.models import PROMPT, merge, outputs, random_adapter, tiny_model
from tests.tiny import WIDTH, tiny_sdxl, tiny_tokenizer

RISE = Schedule(((0.0, 0.25), (1.0, 1.0)), shape="linear")


@pytest.mark.parametrize("engine", ["composed", "branch"])
def test_constant_weights_are_the_static_merge(engine: Any) -> None:
    model, reference = tiny_model(), tiny_model()
    adapters = [random_adapter(model, seed, text=True) for seed in (1, 2)]
    for adapter, weight in zip(adapters, (0.8, -0.5), strict=True):
        merge(reference, adapter, weight)
    with Session(model, engine) as session, Session(reference) as static:
        plain = outputs(model, lambda: session.generate(PROMPT, steps=3))
        session.add("one", adapters[0], Use(0.8))
        session.add("two", adapters[1], Use(-0.5))
        ours = outputs(model, lambda: session.generate(PROMPT, steps=3))
        theirs = outputs(reference, lambda: static.generate(PROMPT, steps=3))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert (ours - plain).abs().max() > 0.01


def test_the_engines_agree_along_a_schedule_that_differs_by_layer() -> None:
    made = []
    for engine in ("composed", "branch"):
        model = tiny_model()
        with Session(model, engine) as session:  # type: ignore[arg-type]
            session.add("one", random_adapter(model, 1), Use(0.8, RISE, {"mid_block": 0.5, "attn2.to_k": Schedule()}))
            session.add("two", random_adapter(model, 2), Use(-0.5))
            made.append(outputs(model, lambda s=session: s.generate(PROMPT, steps=4)))  # type: ignore[misc]
    torch.testing.assert_close(*made, atol=1e-5, rtol=0)


def test_guidance_by_two_calls_is_one_turn() -> None:
    denoiser, told = torch.nn.Identity(), list[int]()
    turns = Turns(told.append)
    with turns.watching(denoiser):
        for turn in range(3):
            denoiser(0)
            denoiser(0)
            turns.turn = turn + 1
    denoiser(0)
    assert told == [0, 1, 2]


def test_compositions_are_counted_and_a_second_run_needs_none() -> None:
    model = tiny_model()
    segments = Schedule(tuple((i / 4, i + 1.0) for i in range(4)))
    with Session(model) as session:
        session.add("one", random_adapter(model), Use(0.1, segments))
        session.generate(PROMPT, steps=8)
        assert session.compositions == 4 and session.runs[0].engine == "composed"
        session.generate(PROMPT, seeds=[1, 2], steps=8)
        assert session.compositions == 4
        session.add("two", random_adapter(model, 2), Use(0.0))
        session.generate(PROMPT, steps=8)
        assert session.compositions == 4, "the other adapter adds nothing"


def test_weights_that_change_at_every_step_are_composed_where_two_fit() -> None:
    model = tiny_model()
    adapter = random_adapter(model)
    size = sum(model.denoiser.get_parameter(f"{path[5:]}.weight").nbytes for path in adapter.modules)
    for room, engine, compositions in ((2 * size, "composed", 5), (2 * size - 1, "branch", 0)):
        with Session(model, cache_bytes=room) as session:
            session.add("one", adapter, Use(1.0, RISE))
            session.generate(PROMPT, steps=5)
            assert (session.runs[0].engine, session.compositions) == (engine, compositions)
    with Session(model, "composed", cache_bytes=0) as session:
        session.add("one", adapter, Use(1.0, RISE))
        session.generate(PROMPT, steps=5)
        assert session.compositions == 5


def test_prefetching_changes_no_bit_and_no_count() -> None:
    made, counts = [], []
    for prefetch in (True, False):
        model = tiny_model()
        with Session(model, "composed", prefetch=prefetch) as session:
            session.add("one", random_adapter(model), Use(1.0, RISE))
            made.append(outputs(model, lambda s=session: s.generate(PROMPT, steps=4)))  # type: ignore[misc]
            made.append(outputs(model, lambda s=session: s.generate(PROMPT, steps=4)))  # type: ignore[misc]
            counts.append(session.compositions)
    assert counts == [4, 4] and all(torch.equal(made[0], each) for each in made)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["composed", "branch"])
def test_a_compiled_denoiser_is_compiled_once(engine: Any) -> None:
    model, graphs = tiny_model(), list[object]()

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with Session(model, engine) as session:
        session.add("one", random_adapter(model), Use(1.0, RISE))
        wanted = outputs(model, lambda: session.generate(PROMPT, steps=3))
        model.denoiser.compile(backend=backend)
        found = outputs(model, lambda: session.generate(PROMPT, steps=3))
        first = len(graphs)
        for weight in (0.5, -1.0):
            session.set_weights({"one": weight})
            session.generate(PROMPT, steps=3)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert first >= 1 and len(graphs) == first


def test_weights_set_during_a_run_count_from_the_next_step_on() -> None:
    model = tiny_model()
    with Session(model, "composed") as session:
        session.add("one", random_adapter(model))

        def react(done: int, total: int) -> None:
            assert total == 4
            if done == 2:
                session.set_weights({"one": 0.25})

        session.generate(PROMPT, steps=4, on_step=react)
        assert [row["one"] for row in session.runs[0].strengths] == [1, 1, 0.25, 0.25]


@pytest.mark.parametrize("engine", ["composed", "branch"])
def test_adapters_come_and_go_and_nothing_is_left(engine: Any) -> None:
    model = tiny_model()
    before = {name: {key: t.clone() for key, t in part.state_dict().items()} for name, part in model.components.items()}
    modules = dict(model.denoiser.named_modules())
    session = Session(model, engine)
    plain = outputs(model, lambda: session.generate(PROMPT, steps=2))
    session.add("one", random_adapter(model, 1, text=True))
    first = outputs(model, lambda: session.generate(PROMPT, steps=2))
    session.add("two", random_adapter(model, 2))
    session.generate(PROMPT, steps=2, on_step=lambda done, _: session.drop("two") if done == 1 else None)
    assert [sorted(row) for row in session.runs[-1].strengths] == [["one", "two"], ["one"]]
    again = outputs(model, lambda: session.generate(PROMPT, steps=2))
    assert torch.equal(first, again) and not torch.equal(first, plain)
    with pytest.raises(ZeroDivisionError):
        session.generate(PROMPT, steps=2, on_step=lambda *_: print(1 // 0))
    for name, part in model.components.items():
        now = base_tensors(part)
        assert all(torch.equal(tensor, now[key]) for key, tensor in before[name].items()), "between runs"
    session.close()
    assert torch.equal(outputs(model, lambda: session.generate(PROMPT, steps=2)), plain)
    assert dict(model.denoiser.named_modules()) == modules


def test_tokens_come_and_go_with_their_adapters() -> None:
    model = tiny_model()
    rex, tom = (Adapter({}, {}, {f"text_encoder.<{name}>": torch.ones(2, WIDTH)}) for name in ("rex", "tom"))
    with Session(model) as session:
        plain = model.encode_text(["<rex> and <tom>"])
        session.add("tom", tom)
        alone = model.encode_text(["<rex> and <tom>"])
        session.add("rex", rex)
        assert not torch.equal(model.encode_text(["<rex> and <tom>"]), alone)
        session.drop("rex")
        assert torch.equal(model.encode_text(["<rex> and <tom>"]), alone) and not torch.equal(alone, plain)
    assert torch.equal(model.encode_text(["<rex> and <tom>"]), plain)


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    model = tiny_model()
    with Session(model) as session:
        session.add("one", random_adapter(model), Use(0.5))
        with pytest.raises(JobError, match='has an adapter "one" already'):
            session.add("one", random_adapter(model))
        with pytest.raises(MismatchError, match="no linear layer or convolution nowhere"):
            session.add("two", Adapter({"unet.nowhere": LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0)}))
        with pytest.raises(MismatchError, match='no module of the adapter matches "mid_blok"'):
            session.set_weights({"one": Use(layers={"mid_blok": 0.0})})
        with pytest.raises(JobError, match='no adapter "two"; it has one'):
            session.drop("two")
        session.generate(PROMPT, steps=2)
        assert session.runs[0].strengths == [{"one": 0.5}, {"one": 0.5}]


def test_the_trace_shows_every_step() -> None:
    model = tiny_model()
    with Session(model) as session:
        session.add("one", random_adapter(model), Use(1.0, RISE, {"mid_block": -1.0}))
        session.generate(PROMPT, seeds=range(6), steps=4)
        (group,) = traced(session.runs)
        assert [len(run.requests) for run in group] == [4, 2]
    turns = trace(group[0])["turns"]
    assert [turn["step"] for turn in turns] == [0, 1, 2, 3]
    assert [turn["weights"]["one"] for turn in turns] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert [turn["weights"]["one mid_block"] for turn in turns] == pytest.approx([-0.25, -0.5, -0.75, -1])
    assert [turn["sigma"] for turn in turns] == sorted((turn["sigma"] for turn in turns), reverse=True)
    ink = np.asarray(plot(group[0]))
    blue = np.argwhere((ink == (31, 119, 180)).all(-1) & (np.arange(len(ink)) < 170)[:, None])
    heights = [blue[blue[:, 1] == x][:, 0].mean() for x in (100, 220, 340, 460)]
    assert heights == sorted(heights, reverse=True) and len({*heights}) == 4, "the line rises"


def test_an_adapter_whose_words_one_text_encoder_refuses_leaves_none_in_another() -> None:
    pipeline = tiny_sdxl()
    pipeline.register_modules(tokenizer_2=tiny_tokenizer())
    model = StableDiffusionXL(pipeline, torch.float32)
    tom = Adapter({}, {}, {f"{name}.<tom>": torch.ones(2, WIDTH) for name in model.text_encoder_names})
    rex = Adapter({}, {}, {"text_encoder.<rex>": torch.ones(2, WIDTH), "text_encoder_2.<rex>": torch.ones(2, 3)})
    with Session(model) as session:
        session.add("tom", tom)
        before = {name: [*token_parameters(model.components[name])] for name in model.text_encoder_names}
        with pytest.raises(MismatchError, match="learned for another base model"):
            session.add("rex", rex)
        after = {name: [*token_parameters(model.components[name])] for name in model.text_encoder_names}
        assert before == after == {name: ["<tom>"] for name in model.text_encoder_names}
