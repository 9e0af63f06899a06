"""The engine: prompts in, samples with the exact log-probabilities they were drawn with out.

Continuous batching (Yu et al. 2022, Orca): a finished sequence leaves at once and a waiting one takes its row.

Shapes: B rows alive, V vocabulary, P prompts that enter together, N rows they become.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from accord.algo.product import Product
from accord.errors import DataError, UsageError
from accord.models.decoder import CausalLM
from accord.models.precision import tune_allocator
from accord.rollout.draw import draw_tokens, truncate
from accord.rollout.prefix_cache import PrefixCache
from accord.rollout.shaping import Shaping, Told, shape_logits, told_of
from accord.seeds import stream_seed

PREFILL_TOKENS = 8192  # most prompt tokens in one pass: bounds the memory of its activations
REFILL_SHARE = 8  # waiting samples enter when one in so many rows is free: fewer, larger prefills
LIVE_SLOTS = 64  # slots beyond the prompt that a live session reserves at first: few completions use their whole limit
READ_TOKENS = 256  # prompt tokens whose logits are there at once: T x V numbers of a long prompt would be gigabytes

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. ``samples_per_prompt`` is K; ``temperature`` divides the logits.

    ``stop_ids`` end a completion besides the engine's own. ``top_k`` and ``top_p`` cut the tail of the
    distribution, for serving; so does what ``shaping`` names, before it is cut. With ``told`` each token comes with
    what the model itself says of it and of that many likeliest ones (None: with nothing).
    """

    max_new_tokens: int
    samples_per_prompt: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()
    shaping: Shaping | None = None
    told: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UsageError(
                f"temperature {self.temperature} is not a number above 0",
                hint="use 1.0 for the model's own distribution, or top_k 1 for its likeliest token",
            )
        if self.max_new_tokens < 1 or self.samples_per_prompt < 1:
            raise UsageError("max_new_tokens and samples_per_prompt must be at least 1")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UsageError(
                f"top_k {self.top_k} and top_p {self.top_p} name no set of tokens",
                hint="top_k counts tokens (0 = all), top_p lies in (0, 1]",
            )

    @property
    def truncated(self) -> bool:
        """Whether some tokens can never be drawn."""
        return self.top_k > 0 or self.top_p < 1


@dataclass(frozen=True)
class Sample:
    """One completion with its provenance.

    ``completion`` ends with a stop token where ``finish`` is "stop"; ``behaviour_logp`` holds one
    log-probability a completion token, under the distribution it was drawn from (temperature and truncation included).
    """

    prompt_index: int
    sample_index: int
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    behaviour_logp: tuple[float, ...]
    finish: Finish


@dataclass(frozen=True)
class Token:
    """One step of one sample, as it is drawn. ``sample`` is the whole of it once it is finished.

    ``token`` is None where nothing was drawn because the sample was cancelled. ``told`` is there where the sampling
    asks for it.
    """

    prompt_index: int
    sample_index: int
    token: int | None
    logp: float
    sample: Sample | None = None
    told: Told | None = None


@dataclass(eq=False)
class _Row:
    """A sample on its way. ``uniforms`` are its own random stream, one number a token."""

    prompt_index: int
    sample_index: int
    prompt: tuple[int, ...]
    sampling: Sampling
    uniforms: list[float]
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)

    def finished(self, finish: Finish) -> Sample:
        return Sample(self.prompt_index, self.sample_index, self.prompt, tuple(self.tokens), tuple(self.logps), finish)


class Session:
    """Requests in, tokens out, one step at a time: submit at any time, cancel at any time.

    The policy's weights must stand still while it is open. Rows that are alive fill the first rows of one cache.
    With ``prefixes`` it is live: prompts begin with what is remembered of others, and room grows as it is used.
    """

    def __init__(
        self,
        model: CausalLM,
        head: Product,
        stop_ids: frozenset[int],
        max_rows: int,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self._model, self._head, self._stop_ids, self._max_rows = model, head, stop_ids, max_rows
        self._prefixes = prefixes
        self._device = model.device
        self._waiting: deque[list[_Row]] = deque()
        self._rows: list[_Row] = []
        self._cancelled: set[tuple[int, int]] = set()
        self._hidden_BD = torch.empty(0, model.config.width, device=self._device)
        self._cache = model.model.decoding(0, 0)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._rows)

    @property
    def free(self) -> int:
        """How many more samples could be alive; below 0 where some wait."""
        return self._max_rows - len(self._rows) - sum(map(len, self._waiting))

    def submit(
        self, prompt_index: int, prompt: Sequence[int], sampling: Sampling, *, seed: int, place: int | None = None
    ) -> None:
        """Queue K samples of a prompt, named by ``prompt_index``; each draws from a stream of its own.

        Args:
            place: Draw what the prompt at this place of `Engine.generate` would; by default ``prompt_index``.
        """
        _check_room(self._model.config.max_positions, len(prompt), sampling.max_new_tokens)
        ids, limit = tuple(prompt), sampling.max_new_tokens
        stream = prompt_index if place is None else place
        rows = [
            _Row(prompt_index, k, ids, sampling, _uniforms(limit, stream_seed(seed, stream, k)))
            for k in range(sampling.samples_per_prompt)
        ]
        # In pieces, so that 64 samples of one prompt need not wait until 64 rows are free.
        piece = max(1, self._max_rows // REFILL_SHARE)
        for start in range(0, len(rows), piece):
            self._waiting.append(rows[start : start + piece])

    def cancel(self, prompt_index: int, sample_index: int) -> None:
        """Let a sample leave before its next token; one that is finished or unknown is left alone."""
        self._cancelled.add((prompt_index, sample_index))

    @torch.inference_mode()
    def read(self, prompt: Sequence[int], most: int) -> list[Told]:
        """Return what the model says of each of a prompt's tokens but the first, given those before it."""
        _check_room(self._model.config.max_positions, len(prompt), 1)
        ids_T = torch.tensor(prompt, device=self._device)
        hidden_TD = self._model.model(ids_T[None])
        found: list[Told] = []
        for start in range(0, len(prompt) - 1, READ_TOKENS):
            behind = slice(start, min(start + READ_TOKENS, len(prompt) - 1))
            found += told_of(self._head(hidden_TD[behind]).float(), ids_T[1:][behind], most)
        return found

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Draw one token for every sample alive, and let waiting prompts in where rows are free."""
        drawn = self._drop_cancelled()
        self._admit()
        if not self._rows:
            return drawn
        token_B, logp_B, told = self._draw()
        alive: list[int] = []
        tokens, logps = token_B.tolist(), logp_B.tolist()
        # Checked on the numbers that come back to the host anyway: no further wait for a GPU.
        if any(map(math.isnan, logps)):
            raise DataError("the model's logits are not numbers", hint="give a checkpoint whose weights are finite")
        for index, (row, token, logp) in enumerate(zip(self._rows, tokens, logps, strict=True)):
            row.tokens.append(token)
            row.logps.append(logp)
            finish = self._finish(row, token)
            sample = row.finished(finish) if finish else None
            drawn.append(Token(row.prompt_index, row.sample_index, token, logp, sample, told.get(index)))
            if sample is None:
                alive.append(index)
        order = self._keep(alive)
        if order:
            # Sampled tokens stay on the device; only who is left is decided here.
            fed_B = token_B if len(order) == len(tokens) else token_B[order]
            if self._prefixes is not None:
                self._cache.reserve(len(order), max(len(row.prompt) + len(row.tokens) for row in self._rows))
            self._hidden_BD = self._model.model.step(self._cache, fed_B)
        return drawn

    def _finish(self, row: _Row, token: int) -> Finish | None:
        if token in self._stop_ids or token in row.sampling.stop_ids:
            return "stop"
        return "length" if len(row.tokens) == row.sampling.max_new_tokens else None

    def _draw(self) -> tuple[Tensor, Tensor, dict[int, Told]]:
        """Return each row's token, its log-probability, and by row what was asked to be told."""
        # fp32, as the learner's log-probabilities are: else their ratio would start away from 1.
        logits_BV = self._head(self._hidden_BD).float()
        asked = [index for index, row in enumerate(self._rows) if row.sampling.told is not None]
        own_AV = logits_BV[asked]  # a copy, for what follows changes them
        token_B, logp_B = self._drawn(logits_BV)
        if not asked:
            return token_B, logp_B, {}
        counts = [self._rows[index].sampling.told or 0 for index in asked]
        told = told_of(own_AV, token_B[asked], max(counts))
        cut = [Told(one.logp, one.top[:most]) for one, most in zip(told, counts, strict=True)]
        return token_B, logp_B, dict(zip(asked, cut, strict=True))

    def _drawn(self, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
        for index, row in enumerate(self._rows):
            if row.sampling.shaping is not None:
                logits_BV[index] = shape_logits(logits_BV[index], row.sampling.shaping, row.prompt, row.tokens)
        temperatures = [row.sampling.temperature for row in self._rows]
        if any(t != 1.0 for t in temperatures):
            logits_BV = logits_BV / torch.tensor(temperatures, device=self._device)[:, None]
        for (top_k, top_p), rows in self._truncated().items():
            logits_BV[rows] = truncate(logits_BV[rows], top_k, top_p)
        # Each row's own stream: what a sample draws does not depend on who else is alive.
        uniform_B = torch.tensor([row.uniforms[len(row.tokens)] for row in self._rows], device=self._device)
        return draw_tokens(logits_BV, uniform_B)

    def _truncated(self) -> dict[tuple[int, float], list[int]]:
        """Rows that are cut, by how: a pass each, not a row each."""
        found: dict[tuple[int, float], list[int]] = {}
        for index, row in enumerate(self._rows):
            if row.sampling.truncated:
                found.setdefault((row.sampling.top_k, row.sampling.top_p), []).append(index)
        return found

    def _keep(self, alive: list[int]) -> list[int]:
        """Let the other rows leave, the last ones taking their places, and return the new order."""
        if len(alive) == len(self._rows):
            return alive
        if self._prefixes is not None:
            for index in {*range(len(self._rows))} - {*alive}:
                row = self._rows[index]
                self._prefixes.keep((*row.prompt, *row.tokens), self._cache, index)
        order = _compacted(alive)
        self._cache.keep(order)
        self._rows = [self._rows[i] for i in order]
        return order

    def _drop_cancelled(self) -> list[Token]:
        if not self._cancelled:
            return []
        named, self._cancelled = self._cancelled, set()

        def goes(row: _Row) -> bool:
            return (row.prompt_index, row.sample_index) in named

        gone = [row for row in (*self._rows, *(r for group in self._waiting for r in group)) if goes(row)]
        self._hidden_BD = self._hidden_BD[self._keep([i for i, row in enumerate(self._rows) if not goes(row)])]
        kept = ([row for row in group if not goes(row)] for group in self._waiting)
        self._waiting = deque(group for group in kept if group)
        return [Token(row.prompt_index, row.sample_index, None, 0.0, row.finished("cancelled")) for row in gone]

    def _admit(self) -> None:
        """Let waiting prompts in: at once where all fit, else when enough rows are free to make a prefill worth it."""
        free = self._max_rows - len(self._rows)
        if not self._waiting or len(self._waiting[0]) > free:
            return
        # A prefill of one prompt costs a pass of its own, and all rows alive wait for it.
        if sum(map(len, self._waiting)) > free and self._rows and free < self._max_rows // REFILL_SHARE:
            return
        while self._waiting and len(self._waiting[0]) <= free:
            entering: list[list[_Row]] = []
            tokens = 0
            while self._waiting and len(self._waiting[0]) <= free:
                tokens += len(self._waiting[0][0].prompt)
                # One prompt always goes, however long: it has to at some time.
                if entering and tokens > PREFILL_TOKENS:
                    break
                entering.append(self._waiting.popleft())
                free -= len(entering[-1])
            self._prefill(entering)

    def _prefill(self, groups: list[list[_Row]]) -> None:
        """Run each prompt once; its last hidden state and its place in the cache serve all its samples."""
        rows = [row for group in groups for row in group]
        self._make_room(rows)
        if self._prefixes is not None:
            rows = [row for row in rows if not self._continued(row)]
            if not rows:
                return
        same = [list(runs) for _, runs in groupby(rows, key=lambda row: (row.prompt_index, row.prompt))]
        prompts = [runs[0].prompt for runs in same]
        length_P = torch.tensor([len(p) for p in prompts])
        ids_PT = torch.zeros(len(prompts), int(length_P.max()), dtype=torch.long)
        for index, prompt in enumerate(prompts):
            ids_PT[index, : len(prompt)] = torch.tensor(prompt)
        index_N = None
        if len(rows) > len(prompts):
            copies_P = torch.tensor([len(runs) for runs in same], device=self._device)
            index_N = torch.arange(len(prompts), device=self._device).repeat_interleave(copies_P)
        new_ND = self._model.model.prefill(self._cache, ids_PT.to(self._device), length_P.to(self._device), index_N)
        self._hidden_BD = torch.cat((self._hidden_BD[: len(self._rows)], new_ND))
        self._rows += rows

    def _continued(self, row: _Row) -> bool:
        """Let a row in behind what is remembered of its prompt; False where that is nothing."""
        assert self._prefixes is not None
        hidden_1D = self._prefixes.enter(self._model.model, self._cache, row.prompt)
        if hidden_1D is None:
            return False
        self._hidden_BD = torch.cat((self._hidden_BD[: len(self._rows)], hidden_1D))
        self._rows.append(row)
        return True

    def _make_room(self, entering: Sequence[_Row]) -> None:
        """Size the cache for who is in and who comes; what is stored stays."""
        everyone = (*self._rows, *entering)
        waiting = sum(map(len, self._waiting))
        most = math.inf if self._prefixes is None else LIVE_SLOTS
        slots = int(max(len(row.prompt) + min(row.sampling.max_new_tokens, most) for row in everyone))
        # For those who wait too: growing once is cheaper than at each entry.
        self._cache.reserve(min(self._max_rows, len(everyone) + waiting), slots)


class Engine:
    """Samples from a policy whose weights are the learner's own tensors: nothing is copied or synchronised.

    ``stop_ids`` are the tokens that end a completion, as `Tokenizer.stop_ids`; with none all run to their limit.
    At most ``max_rows`` samples are alive at once. The samples of one prompt that enter together share its prefill.
    One session at a time may be open on a model.
    """

    def __init__(self, model: CausalLM, stop_ids: Collection[int], *, max_rows: int = 128) -> None:
        if max_rows < 1:
            raise UsageError(f"max_rows {max_rows} leaves no room for a sample", hint="use 1 or more")
        self.model, self.stop_ids, self.max_rows = model, frozenset(stop_ids), max_rows

    @contextmanager
    def session(self, prefixes: PrefixCache | None = None) -> Iterator[Session]:
        """Open a session over the present weights: dropout is off and the weights must not change until it closes.

        Args:
            prefixes: Makes it live, for requests that come as they come; a memory of these very weights.
        """
        # By default glibc maps each temporary over 32 MB afresh, and every page of it faults at its first touch.
        tune_allocator()
        was_training = self.model.training
        self.model.eval()
        try:
            with self.model.packed() as head:
                yield Session(self.model, head, self.stop_ids, self.max_rows, prefixes)
        finally:
            self.model.train(was_training)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int) -> list[Sample]:
        """Return K samples a prompt, in the order of the prompts.

        Each sample has its own random stream, named by seed, prompt index and sample index, so that the same
        call gives the same samples whatever ``max_rows`` is (up to padding's rounding).
        """
        # In the order of prompts again: they finish in any order, and are taken in by length.
        samples = [token.sample for token in self.stream(prompts, sampling, seed=seed) if token.sample is not None]
        return sorted(samples, key=lambda s: (s.prompt_index, s.sample_index))

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int, skip: Collection[int] = ()
    ) -> Iterator[Token]:
        """Yield the same samples token by token, as they are drawn; closing the iterator ends the work.

        ``skip``: places of prompts to leave out. The others draw what they would have drawn beside them.
        """
        if not prompts:
            raise UsageError("the engine was given no prompts", hint="give at least one")
        for count in {min(map(len, prompts)), max(map(len, prompts))}:
            _check_room(self.model.config.max_positions, count, sampling.max_new_tokens)
        return self._stream(prompts, sampling, seed, frozenset(skip))

    def _stream(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, skip: frozenset[int]
    ) -> Iterator[Token]:
        wanted = [index for index in range(len(prompts)) if index not in skip]
        with self.session() as session:
            # Like lengths together: less padding in the attention of a prefill.
            for index in sorted(wanted, key=lambda i: len(prompts[i])):
                session.submit(index, prompts[index], sampling, seed=seed)
            while session.busy:
                yield from session.step()


def _check_room(positions: int, prompt_tokens: int, new_tokens: int) -> None:
    if prompt_tokens == 0:
        raise UsageError("the engine was given an empty prompt", hint="give at least one token each")
    if prompt_tokens + new_tokens - 1 > positions:  # the last token is never fed back
        raise UsageError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones exceed its {positions} positions",
            hint="shorten the prompts, lower max_new_tokens or use a model with a longer context",
        )


def _compacted(alive: Sequence[int]) -> list[int]:
    """Return the rows that stay, those beyond their number moved into the gaps before it: as few moves as can be."""
    number = len(alive)
    stay = {index for index in alive if index < number}
    movers = iter([index for index in alive if index >= number])
    return [place if place in stay else next(movers) for place in range(number)]


def _uniforms(count: int, seed: int) -> list[float]:
    numbers: list[float] = torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return numbers
