"""Learned tokens: words that a text encoder did not know, each with its own rows of the embedding table.

Textual inversion (Gal et al. 2022) learns these rows and nothing else. A token of n vectors is n words to the
tokenizer, "<rex>", "<rex>_1", …, of which a person writes the first alone: diffusers' pipelines put in the others.
"""

from collections.abc import Mapping
from copy import deepcopy
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import AddedToken
from torch import Tensor, nn

from loractl.errors import JobError, MismatchError


class TokenEmbedding(nn.Module):
    """A frozen table `base` (V, dim) and the learned rows beyond it, (n, dim) in fp32 for each token.

    The output has the base's precision, and gradients reach the learned rows alone.
    """

    weight = property(attrgetter("base.weight"))
    embedding_dim = property(attrgetter("base.embedding_dim"))
    num_embeddings = property(attrgetter("base.num_embeddings"))

    def __init__(self, base: nn.Embedding, first: int, core: Any) -> None:
        """Freezes `base`; learned ids begin at `first`. `core` is the tokenizer's, which `remove_tokens` puts back."""
        super().__init__()
        self.base, self.first, self.core = base, first, core
        self.tokens: list[str] = []
        self.learned = nn.ParameterList()  # a token may have dots, so it cannot name a parameter
        self._trainable = base.weight.requires_grad
        base.requires_grad_(False)
        self.train(base.training)

    @property
    def rows(self) -> dict[str, nn.Parameter]:
        """Token → its rows, live."""
        return dict(zip(self.tokens, self.learned, strict=True))

    def add(self, token: str, vectors: Tensor) -> None:
        rows = vectors.detach().to(self.base.weight.device, torch.float32, copy=True)
        self.tokens.append(token)
        self.learned.append(nn.Parameter(rows))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (…) → embeddings (…, dim)."""
        is_learned = ids >= self.first
        known: Tensor = self.base(ids.masked_fill(is_learned, 0))
        rows = torch.cat(list(self.learned)).to(known.dtype)
        learned = F.embedding((ids - self.first).clamp(min=0), rows)
        return torch.where(is_learned.unsqueeze(-1), learned, known)

    def unwrap(self) -> nn.Embedding:
        """The base, trainable or not as it was when it was wrapped."""
        return self.base.requires_grad_(self._trainable)


def add_tokens(tokenizer: Any, text_encoder: Any, vectors: Mapping[str, Tensor]) -> TokenEmbedding:
    """Teaches the pair tokens → rows (n, dim). It may be called again for more.

    A token is found in a text exactly as it is written, capitals included. JobError for a token that could be read in
    another way, MismatchError for rows of another width; then nothing has changed.
    """
    table = text_encoder.get_input_embeddings()
    there = table.rows if isinstance(table, TokenEmbedding) else {}
    _check_pieces({**there, **vectors})
    for token, rows in vectors.items():
        _check_word(token, tokenizer, there)
        _check_width(token, rows, table.embedding_dim)
    if not isinstance(table, TokenEmbedding):
        table = _wrap(tokenizer, text_encoder, table)
    for token, rows in vectors.items():
        tokenizer.add_tokens([_added(piece) for piece in _pieces(token, len(rows))])
        table.add(token, rows)
    return table


def remove_tokens(tokenizer: Any, text_encoder: Any) -> None:
    """Puts back the very table and vocabulary that were there before the first token."""
    table = text_encoder.get_input_embeddings()
    if isinstance(table, TokenEmbedding):
        tokenizer._tokenizer = table.core
        text_encoder.set_input_embeddings(table.unwrap())


def token_parameters(text_encoder: Any) -> dict[str, nn.Parameter]:
    """Token → the rows that an optimizer trains."""
    table = text_encoder.get_input_embeddings()
    return table.rows if isinstance(table, TokenEmbedding) else {}


def collect_tokens(text_encoder: Any) -> dict[str, Tensor]:
    """Token → a copy of its rows on the CPU."""
    return {token: rows.detach().to("cpu", copy=True) for token, rows in token_parameters(text_encoder).items()}


def initial_vectors(
    tokenizer: Any,
    text_encoder: Any,
    init: str | None,
    vectors: int,
    generator: torch.Generator | None = None,
    spread: float | None = None,
) -> Tensor:
    """Rows (vectors, dim) in fp32 on the CPU for a token to start from.

    `init` is "zero", "random" or None: N(0, spread²), by default of the table's own spread; or words, whose mean every
    row becomes: their positions in the text soon tell equal rows apart. JobError for words that the tokenizer lacks.
    """
    table = text_encoder.get_input_embeddings()
    if init == "zero":
        return torch.zeros(vectors, table.embedding_dim)
    if init in ("random", None):
        scale = float(table.weight.detach().float().std()) if spread is None else spread
        return scale * torch.randn(vectors, table.embedding_dim, generator=generator)
    ids = tokenizer(init, add_special_tokens=False).input_ids
    if not ids or tokenizer.unk_token_id in ids:
        raise JobError(f'the model knows no words for "{init}": start the token from other words, "random" or "zero"')
    with torch.no_grad():
        found: Tensor = table(torch.tensor(ids, device=table.weight.device))  # (words, dim)
    return found.float().mean(0, keepdim=True).repeat(vectors, 1).cpu()


def typical_norm(text_encoder: Any) -> float:
    """The mean norm of the rows that the model came with."""
    weight: Tensor = text_encoder.get_input_embeddings().weight
    return float(torch.linalg.vector_norm(weight.detach(), dim=1, dtype=torch.float32).mean())


def pull(rows: Tensor, target_norm: float) -> Tensor:
    """A penalty for rows (n, dim): Σ (‖row‖ − target)², a scalar."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return (norms - target_norm).square().sum()


@torch.no_grad()
def preserve_norm_(rows: Tensor, norms: Tensor | float) -> None:
    """Gives the rows (n, dim) the `norms` (n,), or one for all, and leaves their directions; a zero row stays zero."""
    now = torch.linalg.vector_norm(rows, dim=1)
    rows.mul_((norms / now.clamp_min(torch.finfo(rows.dtype).tiny)).unsqueeze(1))


def _pieces(token: str, count: int) -> list[str]:
    """The words that a token of `count` vectors is to the tokenizer, as diffusers has them."""
    return [token, *(f"{token}_{i}" for i in range(1, count))]


def _wrap(tokenizer: Any, text_encoder: Any, base: nn.Embedding) -> TokenEmbedding:
    """Tokens go to a copy of the tokenizer's core, since it knows no way to forget them."""
    table = TokenEmbedding(base, len(tokenizer), tokenizer._tokenizer)
    tokenizer._tokenizer = deepcopy(tokenizer._tokenizer)
    text_encoder.set_input_embeddings(table)
    return table


def _added(word: str) -> AddedToken:
    """Matched before the text is put into lower case, or diffusers would take one vector of a token with capitals; and
    as a whole word unless it is in < >, or "ana" would be found in a banana.
    """
    return AddedToken(word, normalized=False, single_word=not word.startswith("<"))


def _check_word(token: str, tokenizer: Any, there: Mapping[str, object]) -> None:
    if token in there:
        raise JobError(f'the model has learned a token "{token}" already: rename one of the two')
    if token in tokenizer.get_vocab() or len(tokenizer.tokenize(token)) < 2:
        raise JobError(
            f'"{token}" is a word of the model\'s vocabulary already: put it in < >, as <{token}>, '
            "also where it is the name of a file"
        )


def _check_width(token: str, rows: Tensor, width: int) -> None:
    if rows.shape[1] != width:
        raise MismatchError(
            f"the token {token} has embeddings {tuple(rows.shape)} and the text encoder's are {width} wide, "
            "so it was learned for another base model"
        )


def _check_pieces(vectors: Mapping[str, Tensor]) -> None:
    """That no token has the name of another's vector or of the next one, which diffusers would put in as well."""
    for token, rows in vectors.items():
        for word in _pieces(token, len(rows) + 1)[1:]:
            if word in vectors:
                raise JobError(f'"{word}" would be read as a vector of "{token}": rename one of the two')
