"""Learned tokens on a tiny pipeline: added, trained beside adapters, kept at a norm, removed; all else stays."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loractl.errors import JobError, MismatchError
from loractl.families.sd import StableDiffusion
from loractl.inject.inject import adapter_parameters, base_tensors, hash_of, inject, remove
from loractl.inject.targets import resolve
from loractl.inject.tokens import (
    add_tokens,
    collect_tokens,
    initial_vectors,
    preserve_norm_,
    pull,
    remove_tokens,
    token_parameters,
    typical_norm,
)
from loractl.train.templates import OBJECT, STYLE, fill
from tests.tiny import WIDTH, tiny_sd, tiny_text_encoder, tiny_tokenizer

PROMPT = "a photo of <rex>, and of Ana"


def frozen(dtype: torch.dtype = torch.float32) -> StableDiffusion:
    """A tiny pipeline as it is loaded for training."""
    model = StableDiffusion(tiny_sd() if dtype == torch.float32 else tiny_sd().to(dtype), dtype)
    for network in model.networks.values():
        network.requires_grad_(False).eval()
    return model


def vectors(count: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def teach(model: StableDiffusion, **counts: int) -> dict[str, nn.Parameter]:
    """Adds tokens of so many vectors each: rex is "<rex>", the others are as they are."""
    named = {"<rex>" if token == "rex" else token: vectors(count, count) for token, count in counts.items()}
    return add_tokens(model.tokenizer, model.pipeline.text_encoder, named).rows


def loss_of(model: StableDiffusion, prompts: Sequence[str] = (PROMPT,)) -> Tensor:
    """A loss that depends on the text through the denoiser."""
    noisy = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(model.dtype)
    return model.predict(noisy, torch.tensor([500] * len(prompts)), model.encode_text(prompts)).float().square().mean()


def hashes(model: StableDiffusion) -> dict[str, str]:
    return {name: hash_of(network) for name, network in model.networks.items()}


def words(model: StableDiffusion, prompt: str) -> list[str]:
    """What the tokenizer makes of a prompt, with all vectors put in."""
    found: list[str] = model.tokenizer.tokenize(model.pipeline.maybe_convert_prompt(prompt, model.tokenizer))
    return found


def test_training_changes_the_learned_rows_and_nothing_else() -> None:
    """With AdamW and weight decay over every parameter of every network, which would shrink a row that it reached."""
    model = frozen()
    before, table = hashes(model), model.pipeline.text_encoder.get_input_embeddings().weight.clone()
    rows = teach(model, rex=2, Ana=1)
    start = collect_tokens(model.pipeline.text_encoder)
    everything = [parameter for network in model.networks.values() for parameter in network.parameters()]
    optimizer = torch.optim.AdamW(everything, lr=1e-2, weight_decay=0.5)
    for _ in range(3):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert hashes(model) == before
    assert torch.equal(model.pipeline.text_encoder.get_input_embeddings().base.weight, table)
    for token, now in rows.items():
        assert (now != start[token]).any(1).all()


def test_the_hash_and_the_base_tensors_pass_over_learned_tokens() -> None:
    model = frozen()
    text_encoder = model.pipeline.text_encoder
    keys, before = list(text_encoder.state_dict()), hash_of(text_encoder)
    teach(model, rex=2)
    inject(text_encoder, resolve(text_encoder, ["text-encoder"], 2))
    assert sorted(base_tensors(text_encoder)) == sorted(keys)
    assert hash_of(text_encoder) == before
    text_encoder.get_input_embeddings().base.weight[3, 3] += 1e-3
    assert hash_of(text_encoder) != before


def test_removal_puts_back_the_very_table_and_vocabulary() -> None:
    model = frozen()
    tokenizer, text_encoder = model.tokenizer, model.pipeline.text_encoder
    table = text_encoder.get_input_embeddings().requires_grad_(True)
    before, plain = (len(tokenizer), tokenizer.get_vocab(), tokenizer.tokenize(PROMPT)), model.encode_text([PROMPT])
    teach(model, rex=2)
    teach(model, Ana=3)  # a second call
    assert len(tokenizer) == before[0] + 5
    assert not table.weight.requires_grad
    assert not torch.equal(model.encode_text([PROMPT]), plain)
    remove_tokens(tokenizer, text_encoder)
    remove_tokens(tokenizer, text_encoder)  # nothing to do
    assert text_encoder.get_input_embeddings() is table
    assert table.weight.requires_grad
    assert (len(tokenizer), tokenizer.get_vocab(), tokenizer.tokenize(PROMPT)) == before
    assert torch.equal(model.encode_text([PROMPT]), plain)
    assert token_parameters(text_encoder) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_looked_up_in_the_precision_of_the_base_and_learn_in_fp32(dtype: torch.dtype) -> None:
    model = frozen(dtype)
    text_encoder, first = model.pipeline.text_encoder, len(model.tokenizer)
    known = text_encoder.get_input_embeddings().weight[[7, 5]].clone()
    rows = teach(model, rex=2)["<rex>"]
    found = text_encoder.get_input_embeddings()(torch.tensor([[7, first + 1], [5, first]]))
    assert found.dtype == text_encoder.dtype == dtype
    assert torch.equal(found[:, 0], known)
    assert torch.equal(found[:, 1], rows.detach()[[1, 0]].to(dtype))
    found[0].float().sum().backward()
    assert rows.dtype == torch.float32
    assert torch.equal(rows.grad, torch.tensor([[0.0], [1.0]]).expand(2, WIDTH))


def test_a_table_longer_than_its_vocabulary_keeps_its_spare_rows_to_itself() -> None:
    model = frozen()
    model.pipeline.text_encoder.resize_token_embeddings(len(model.tokenizer) + 8)
    rows = teach(model, rex=1)["<rex>"]
    ids = torch.tensor(model.tokenizer.convert_tokens_to_ids(["<rex>"]))
    assert torch.equal(model.pipeline.text_encoder.get_input_embeddings()(ids), rows)


@pytest.mark.parametrize("count", [1, 3])
def test_training_and_rendering_see_the_same_words(count: int) -> None:
    model = frozen()
    rows = teach(model, rex=count)["<rex>"]
    ours = model.encode_text([PROMPT, "<rex>"])
    theirs = model.pipeline.encode_prompt([PROMPT, "<rex>"], torch.device("cpu"), 1, False)[0]
    assert torch.equal(ours, theirs)
    ours[1].sum().backward()
    assert (rows.grad != 0).any(1).all()


def test_a_token_is_found_as_it_is_written_and_in_no_other_word() -> None:
    model = frozen()
    teach(model, rex=2, Ana=2)
    assert words(model, "<rex>, Ana.") == ["<rex>", "<rex>_1", ",</w>", "Ana", "Ana_1", ".</w>"]
    assert words(model, "an <rex>") == ["a", "n</w>", "<rex>", "<rex>_1"]
    assert words(model, "ana banana Anabel") == words(frozen(), "ana banana Anabel")


@pytest.mark.parametrize(
    ("named", "error", "message"),
    [
        ({"x": vectors(1)}, JobError, '"x" is a word of the model\'s vocabulary already: put it in < >, as <x>'),
        ({"<rex>": vectors(1)}, JobError, 'learned a token "<rex>" already'),
        ({"<rex>_1": vectors(1)}, JobError, '"<rex>_1" would be read as a vector of "<rex>"'),
        ({"<rex>_2": vectors(1)}, JobError, '"<rex>_2" would be read as a vector of "<rex>"'),
        ({"<s>_1": vectors(1), "<s>": vectors(1)}, JobError, '"<s>_1" would be read as a vector of "<s>"'),
        ({"<s>": vectors(1)[:, 1:]}, MismatchError, r"<s> has embeddings \(1, 31\) and the text encoder's are 32 wide"),
    ],
)
def test_a_token_that_cannot_be_changes_nothing(named: dict[str, Tensor], error: type[Exception], message: str) -> None:
    model = frozen()
    teach(model, rex=2)
    before = (len(model.tokenizer), collect_tokens(model.pipeline.text_encoder).keys())
    with pytest.raises(error, match=message):
        add_tokens(model.tokenizer, model.pipeline.text_encoder, {"<good>": vectors(1), **named})
    assert (len(model.tokenizer), collect_tokens(model.pipeline.text_encoder).keys()) == before


def test_tokens_and_adapters_learn_together_and_go_in_any_order() -> None:
    for tokens_first in (True, False):
        model = frozen()
        text_encoder = model.pipeline.text_encoder
        before, plain = hashes(model), model.encode_text([PROMPT])
        acts = [
            lambda model=model: teach(model, rex=2),
            lambda part=text_encoder: inject(part, resolve(part, ["text-encoder"], 2)),
        ]
        for act in acts if tokens_first else acts[::-1]:
            act()
        loss_of(model).backward()
        ups = [parameter for name, parameter in adapter_parameters(text_encoder).items() if name.endswith("up")]
        assert all((up.grad != 0).any() for up in ups)
        assert (token_parameters(text_encoder)["<rex>"].grad != 0).any(1).all()
        assert hashes(model) == before
        if tokens_first:
            remove(text_encoder)
        remove_tokens(model.tokenizer, text_encoder)
        if not tokens_first:
            remove(text_encoder)
        assert torch.equal(model.encode_text([PROMPT]), plain)


def test_under_autocast_gradients_are_those_of_fp32_to_rounding() -> None:
    model = frozen()
    rows = teach(model, rex=2)["<rex>"]
    loss_of(model).backward()
    expected, rows.grad = rows.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(model).backward()
    assert rows.grad.dtype == torch.float32
    assert torch.cosine_similarity(rows.grad.flatten(), expected.flatten(), dim=0) > 0.98


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = frozen()
    rows = teach(model, rex=2)["<rex>"]
    loss_of(model).backward()
    expected, rows.grad = rows.grad, None
    model.enable_gradient_checkpointing()
    text_encoder = model.pipeline.text_encoder.train()
    text_encoder.gradient_checkpointing_enable()
    calls: list[Any] = []
    text_encoder.encoder.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    loss_of(model).backward()
    assert len(calls) == 2  # computed again on the way back
    torch.testing.assert_close(rows.grad, expected, rtol=1e-5, atol=1e-9)


# --- where a token starts, and its norm ------------------------------------------------------------------------------


TOKENIZER = tiny_tokenizer()
TEXT_ENCODER = tiny_text_encoder(TOKENIZER)
TABLE = TEXT_ENCODER.get_input_embeddings().weight.detach()


def start(init: str | None, count: int = 2, **settings: Any) -> Tensor:
    return initial_vectors(TOKENIZER, TEXT_ENCODER, init, count, **settings)


def test_words_start_a_token_at_the_mean_of_their_rows() -> None:
    ids = TOKENIZER.convert_tokens_to_ids(["a</w>", "c", "a", "t</w>"])
    torch.testing.assert_close(start("a cat"), TABLE[ids].mean(0).expand(2, WIDTH))


def test_a_learned_token_can_start_another() -> None:
    tokenizer = tiny_tokenizer()
    text_encoder = tiny_text_encoder(tokenizer)
    rows = add_tokens(tokenizer, text_encoder, {"<rex>": vectors(1)}).rows["<rex>"]
    assert torch.equal(initial_vectors(tokenizer, text_encoder, "<rex>", 1), rows)


@pytest.mark.parametrize("init", ["", "日本"])
def test_words_that_the_model_lacks_start_nothing(init: str) -> None:
    with pytest.raises(JobError, match=f'knows no words for "{init}": start the token from other words'):
        start(init)


def test_zero_and_random_starts() -> None:
    assert torch.equal(start("zero"), torch.zeros(2, WIDTH))
    for init in ("random", None):
        drawn = start(init, 100, generator=torch.Generator().manual_seed(3))
        assert torch.equal(drawn, start(init, 100, generator=torch.Generator().manual_seed(3)))
        assert drawn.std().item() == pytest.approx(TABLE.std().item(), rel=0.05)
    wide = start("random", 100, generator=torch.Generator().manual_seed(3), spread=2.0)
    assert wide.std().item() == pytest.approx(2.0, rel=0.05)


def test_pull_is_the_squared_distance_of_the_norms_and_leads_to_the_target() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]], requires_grad=True)
    penalty = pull(rows, 2.0)
    assert penalty.item() == pytest.approx(9 + 4 + 1)
    (gradient,) = torch.autograd.grad(penalty, rows)
    torch.testing.assert_close(gradient, torch.tensor([[3.6, 4.8], [0.0, 0.0], [0.0, -2.0]]))


def test_preserved_norms_leave_the_directions() -> None:
    rows = nn.Parameter(vectors(3))
    before = rows.detach().clone()
    norms = torch.tensor([1.0, 2.0, 3.0])
    preserve_norm_(rows, norms)
    torch.testing.assert_close(rows.norm(dim=1), norms)
    torch.testing.assert_close(torch.cosine_similarity(rows, before), torch.ones(3))
    preserve_norm_(zeros := torch.zeros(1, 4), 1.0)
    assert torch.equal(zeros, torch.zeros(1, 4))


def test_the_typical_norm_is_that_of_the_model_s_own_rows() -> None:
    tokenizer = tiny_tokenizer()
    text_encoder = tiny_text_encoder(tokenizer)
    expected = text_encoder.get_input_embeddings().weight.norm(dim=1).mean().item()
    add_tokens(tokenizer, text_encoder, {"<rex>": 1000 * vectors(1)})
    assert typical_norm(text_encoder) == pytest.approx(expected)


def test_templates_hold_the_token_once_each() -> None:
    assert (len(set(OBJECT)), len(set(STYLE))) == (27, 19)
    assert all(fill(template, "<rex>").count("<rex>") == 1 for template in (*OBJECT, *STYLE))
    assert fill("a {} of {wool}", "<rex>") == "a <rex> of {wool}"
