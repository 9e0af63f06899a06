"""Any other architecture through `transformers`, behind the door of `accord.models.backbone`: slower, the same numbers.

Needs the extra ``accord[transformers]``, which is imported when such a folder is opened. The backbone is the
architecture's own base model, and the head stays ours: the two heads, the engine and the learner know no difference.
Folders are read and written by `transformers` itself, from local safetensors only and without anybody's code.

Shapes: B rows, T tokens, N real tokens of all rows (row after row) or rows that enter, M of the N that are read, P
prompts, V different tokens, D width.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from accord.errors import DataError, UsageError
from accord.models.backbone import Headed
from accord.models.weights import promised

NO_LIMIT = 1 << 20  # positions of an architecture that names no limit
# Nothing is fetched, and nobody's code is run.
LOCAL_ONLY: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}
#: What a head may do besides its product, by the names that `transformers` gives it, and what stands for "nothing".
HEAD_SETTINGS = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}
PROBE_GAP = 1e-3  # relative; rounding in fp32 stays far below, a wrong position or scale far above


@dataclass(frozen=True)
class ForeignConfig:
    """The shape of an architecture that only `transformers` knows; ``theirs`` is its config object."""

    theirs: Any
    family: str
    vocab_size: int
    width: int
    num_layers: int
    max_positions: int
    tied: bool


def _transformers(family: str) -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            f"a model of type {family!r} is read through the package transformers, which is not installed",
            hint="run `pip install 'accord[transformers]'`",
        ) from error
    module: ModuleType = transformers
    return module


@contextmanager
def _quietly(hub: ModuleType) -> Iterator[None]:
    """Silence bars and advice: what matters of a load is checked here and becomes an error."""
    log = hub.utils.logging
    before, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if bars:
            log.enable_progress_bar()


def read_config(raw: Mapping[str, Any], folder: Path) -> ForeignConfig:
    """Return the shape of a folder whose ``model_type`` the decoder does not know.

    Raises UsageError where `transformers` is missing, DataError where it does not know it either or the head does more
    than multiply.
    """
    family = str(raw["model_type"])
    hub = _transformers(family)
    if family not in hub.CONFIG_MAPPING:
        raise DataError(
            f"this checkpoint's architecture is not supported: model_type is {family!r}",
            why="neither the decoder nor the installed transformers knows it",
            hint="use a checkpoint of another architecture, or a newer transformers",
        )
    try:
        theirs = hub.AutoConfig.from_pretrained(folder, **LOCAL_ONLY)
    except Exception as error:  # of a hundred architectures, each raises what it likes
        raise DataError(f"transformers refuses it ({_first_line(error)})", why=f"model_type is {family!r}") from error
    # By name: a soft cap bends large logits only, which the trial below does not reach.
    beyond = [name for name, none in HEAD_SETTINGS.items() if getattr(theirs, name, none) not in (None, none)]
    if beyond:
        raise DataError(
            f"the vocabulary head of {family!r} is more than one product: {', '.join(beyond)}",
            hint="use a checkpoint of another architecture",
        )
    try:
        return ForeignConfig(
            theirs=theirs,
            family=family,
            vocab_size=int(theirs.vocab_size),
            width=int(getattr(theirs, "word_embed_proj_dim", None) or theirs.hidden_size),
            num_layers=int(theirs.num_hidden_layers),
            max_positions=int(getattr(theirs, "max_position_embeddings", None) or NO_LIMIT),
            tied=bool(theirs.tie_word_embeddings),
        )
    except AttributeError as error:
        raise DataError(f"model_type {family!r} is no plain language model ({error})") from error


class ForeignState:
    """The ids of each row, padded on the left, and the architecture's own cache of them.

    ``ids_BT`` is kept so that the cache can be made anew whenever rows enter: one pass over all rows, exact and simple.
    """

    def __init__(self, device: torch.device) -> None:
        self.ids_BT = torch.zeros(0, 0, dtype=torch.long, device=device)
        self.length_B = torch.zeros(0, dtype=torch.long, device=device)
        self.cache: Any = None

    @property
    def real_BT(self) -> Tensor:
        """True on real tokens."""
        T = self.ids_BT.shape[1]
        return torch.arange(T, device=self.ids_BT.device) >= T - self.length_B[:, None]

    def reserve(self, rows: int, slots: int) -> None:
        """Nothing to do: the cache grows by itself."""

    def keep(self, order: Sequence[int]) -> None:
        index_B = torch.tensor(order, dtype=torch.long, device=self.ids_BT.device)
        self.ids_BT, self.length_B = self.ids_BT[index_B], self.length_B[index_B]
        if order:
            self.cache.batch_select_indices(index_B)

    def enter(self, ids_NT: Tensor, length_N: Tensor) -> None:
        """Append rows that are padded on the right, and forget the cache."""
        every_B = torch.cat((self.length_B, length_N))
        ids_BT = self.ids_BT.new_zeros(len(every_B), int(every_B.max()))
        old = [row[-length:] for row, length in zip(self.ids_BT, self.length_B.tolist(), strict=True)]
        new = [row[:length] for row, length in zip(ids_NT, length_N.tolist(), strict=True)]
        for row, ids in enumerate((*old, *new)):
            ids_BT[row, -len(ids) :] = ids
        self.ids_BT, self.length_B, self.cache = ids_BT, every_B, None

    def append(self, token_B: Tensor) -> None:
        """One token behind each row."""
        self.ids_BT = torch.cat((self.ids_BT, token_B[:, None]), dim=1)
        self.length_B = self.length_B + 1


class ForeignTrunk(nn.Module):
    """The base model of an architecture, in fp32 or under autocast to ``compute_dtype``.

    It always runs as in evaluation, so that the rates in its own config never make a training pass random;
    ``dropout`` acts on the embeddings, with one mask a sequence. `read` fills it.
    """

    inner: Any

    def __init__(self, config: ForeignConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = 0.0
        self.compute_dtype = torch.float32

    def adopt(self, inner: nn.Module) -> None:
        """Take a base model in."""
        self.inner = inner.eval()
        self._takes_places = "position_ids" in inspect.signature(inner.forward).parameters

    def train(self, mode: bool = True) -> ForeignTrunk:
        super().train(mode)
        self.inner.eval()
        return self

    @property
    def embed_tokens(self) -> nn.Embedding:
        table: nn.Embedding = self.inner.get_input_embeddings()
        return table

    def forward(self, ids_BT: Tensor, length_B: Tensor | None = None, read_M: Tensor | None = None) -> Tensor:
        """Return hidden states of the real tokens in fp32, after the last norm.

        ``(N, D)``, or of those read, ``(M, D)``.

        Padding runs with them.
        """
        (B, T), positions = ids_BT.shape, self.config.max_positions
        if positions < T:
            raise DataError(
                f"a sequence has {T} tokens but the model has {positions} positions",
                hint="shorten the text or use a model with a longer context",
            )
        if self.training and self.dropout:
            embedded_BTD = self.embed_tokens(ids_BT)
            # On the embeddings: inside, each architecture would be regularised by a rate that no recipe names.
            keep_B1D = torch.rand(B, 1, embedded_BTD.shape[2], device=ids_BT.device) >= self.dropout
            hidden_BTD = self._run(inputs_embeds=embedded_BTD * keep_B1D / (1 - self.dropout), use_cache=False)
        else:
            hidden_BTD = self._run(input_ids=ids_BT, use_cache=False)
        hidden_ND = hidden_BTD.flatten(0, 1)
        if length_B is not None:
            hidden_ND = hidden_BTD[torch.arange(T, device=ids_BT.device) < length_B[:, None]]
        return hidden_ND if read_M is None else hidden_ND[read_M]

    def decoding(self, rows: int, slots: int) -> ForeignState:
        return ForeignState(self.embed_tokens.weight.device)

    def prefill(self, state: ForeignState, ids_PT: Tensor, length_P: Tensor, index_N: Tensor | None = None) -> Tensor:
        if index_N is not None:
            ids_PT, length_P = ids_PT[index_N], length_P[index_N]
        state.enter(ids_PT, length_P)
        # A pass over all rows whenever some enter: it costs what is already known, and spares knowing how each
        # architecture keeps its cache.
        state.cache = _transformers(self.config.family).DynamicCache()
        return self._continue(state, state.ids_BT)[-len(length_P) :]

    def step(self, state: ForeignState, token_B: Tensor) -> Tensor:
        state.append(token_B)
        return self._continue(state, token_B[:, None])

    @contextmanager
    def packed(self) -> Iterator[None]:
        """Nothing to lay out: `transformers` runs its layers as they are."""
        yield

    def freeze_embeddings(self) -> None:
        self.embed_tokens.requires_grad_(False)

    def init_weights(self, generator: torch.Generator) -> None:
        raise UsageError(
            "training from scratch is for the decoder and the LSTM", hint="give a checkpoint to start from"
        )

    def _continue(self, state: ForeignState, ids_BT: Tensor) -> Tensor:
        """Run the rows' last tokens, which extends the cache, and return the hidden states behind them, ``(B, D)``."""
        real_BT = state.real_BT
        places: dict[str, Tensor] = {}
        if self._takes_places:
            # Exclusive counts of real tokens: left padding must not move a text's positions.
            places["position_ids"] = (real_BT.cumsum(1) - 1).clamp_min(0)[:, -ids_BT.shape[1] :]
        return self._run(
            input_ids=ids_BT, attention_mask=real_BT.long(), past_key_values=state.cache, use_cache=True, **places
        )[:, -1]

    def _run(self, **inputs: Any) -> Tensor:
        with torch.autocast(
            self.embed_tokens.weight.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32
        ):
            hidden_BTD: Tensor = self.inner(**inputs).last_hidden_state
        return hidden_BTD.float()


# ---- folders ---------------------------------------------------------------------------------------------------------


def require_room(config: ForeignConfig, folder: Path, left_out: Sequence[str] = ()) -> None:
    """Compare a shape with the headers of the weights, before anything of that size is built.

    Raises DataError where they do not fit, or where an adapter lies beside the model.
    """
    if (folder / "adapter_config.json").is_file():
        raise DataError(
            f"an adapter lies beside a model of type {config.family!r}",
            where=str(folder),
            why="Accord applies adapters to the families that its own decoder reads",
            hint="merge it into the model with peft, or move adapter_config.json away",
        )
    headers = promised(folder)
    stored = sum(math.prod(tensor.shape) for tensor in headers.values())
    # Twice: an embedding that is written once may be the head too.
    if config.num_layers > len(headers) or _described(config, folder) > 2 * stored:
        raise DataError(
            f"config.json describes a model far larger than its {stored} stored numbers",
            where=str(folder),
            why="the weights are not those that config.json describes",
        )


def _described(config: ForeignConfig, folder: Path) -> int:
    """Return how many numbers the weights of a shape are."""
    hub, opener = _opener(config.family, False)
    try:
        with _quietly(hub), torch.device("meta"):
            outline = opener.from_config(config.theirs, trust_remote_code=False)
    except Exception as error:  # of a hundred architectures, each raises what it likes
        raise DataError(
            f"transformers cannot build a model of type {config.family!r} ({_first_line(error)})", where=str(folder)
        ) from error
    return sum(parameter.numel() for parameter in outline.parameters())


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def read_weights(model: Headed, folder: Path, left_out: Sequence[str] = ()) -> bool:
    """Fill a model from a folder. Returns whether the folder holds a score head; a model that wants one gets it.

    Raises DataError where weights are missing or left over, or the architecture does not behave as the door asks.
    """
    heads: Any = model  # either of the two
    family, scalar = model.config.family, hasattr(model, "score")
    hub, opener = _opener(family, scalar)
    labels = {"num_labels": heads.score.out_features} if scalar else {}
    try:
        with _quietly(hub), torch.random.fork_rng(devices=[]):
            whole, loading = opener.from_pretrained(
                folder, **LOCAL_ONLY, **labels, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # of a hundred architectures, each raises what it likes
        raise DataError(
            f"transformers cannot open this {family!r} folder ({_first_line(error)})",
            where=str(folder),
            hint="give a whole Hugging Face folder with safetensors weights (pickled ones are refused)",
        ) from error
    missing = sorted(map(str, {*loading["missing_keys"], *loading["mismatched_keys"]}))
    has_head = scalar and "score.weight" not in missing
    wrong = [f"{name} is missing, or has another shape" for name in missing if name != "score.weight"]
    left_over = (name for name in loading["unexpected_keys"] if name.startswith(whole.base_model_prefix + "."))
    wrong += [f"{name} is not known" for name in left_over]
    if wrong:
        raise DataError(
            "; ".join(wrong[:3]),
            where=str(folder),
            why=f"the weights are not those that a config.json of model_type {family!r} describes",
        )
    head = whole.score if scalar and hasattr(whole, "score") else whole.get_output_embeddings()
    if whole.base_model is whole or not isinstance(head, nn.Linear) or len([*head.parameters()]) > 1:
        raise DataError(
            f"{family!r} does not end in one linear head without a bias over a base model",
            where=str(folder),
            hint="use a checkpoint of another architecture",
        )
    heads.model.adopt(whole.base_model)
    if scalar:
        heads.score.weight = head.weight
    else:
        if head.weight is not heads.model.embed_tokens.weight:
            heads.untie()  # a head that is there and differs is the model's, whatever config.json says of it
        if not model.config.tied:
            heads.lm_head.weight = head.weight
    _probe(heads.model, whole, head, folder)
    return has_head


@torch.no_grad()
def _probe(trunk: ForeignTrunk, whole: Any, head: nn.Linear, folder: Path) -> None:
    """Run a few tokens both ways: the head must be its product, later tokens unseen, left padding without effect."""
    B, rows, pad_id = 2, torch.arange(2), getattr(trunk.config.theirs, "pad_token_id", None)
    # A prime step: tokens all over the vocabulary, the same on each trial.
    ids_BT = torch.arange(6 * B).view(B, 6) * 7919 % trunk.config.vocab_size
    ids_BT[ids_BT == pad_id] = 0 if pad_id else 1
    length_B = torch.tensor([3, 5])
    whole.eval()
    try:
        hidden_BTD = trunk(ids_BT).view(B, 6, -1)
        state = trunk.decoding(B, 6)
        first_BD = trunk.prefill(state, ids_BT, length_B)
        second_BD = trunk.step(state, ids_BT[rows, length_B])
        logits = whole(input_ids=ids_BT[:1]).logits
    except Exception as error:  # of a hundred architectures, each raises what it likes
        raise DataError(
            f"a model of type {trunk.config.family!r} cannot be run ({_first_line(error)})",
            where=str(folder),
            why="the adapter needs a causal base model with attention_mask and a key-value cache",
        ) from error
    said = head(hidden_BTD[:1, -1])
    checks = {
        "the head does more than multiply": (said, logits if logits.dim() == 2 else logits[:, -1]),
        "padding or later tokens change a token's hidden state": (first_BD, hidden_BTD[rows, length_B - 1]),
        "decoding with a cache differs from a whole pass": (second_BD, hidden_BTD[rows, length_B]),
    }
    for what, (ours, theirs) in checks.items():
        # `not <=`, so that NaN fails too.
        if not float((ours - theirs).abs().max()) <= PROBE_GAP * float(theirs.abs().max()):
            raise DataError(
                f"{what} in a model of type {trunk.config.family!r}",
                where=str(folder),
                why="training and sampling would disagree",
                hint="use a checkpoint of another architecture",
            )


def write_weights(model: Headed, ids: Mapping[str, int | None], folder: Path) -> None:
    """Write weights and config as `transformers` does, under the architecture's own names."""
    heads: Any = model
    scalar = hasattr(model, "score")
    hub, opener = _opener(model.config.family, scalar)
    config = copy.deepcopy(heads.config.theirs)
    for name, value in {
        **ids,
        **({"num_labels": heads.score.out_features} if scalar else {}),
        "dtype": "float32",
    }.items():
        setattr(config, name, value)
    with _quietly(hub), torch.device("meta"):  # a shell without weights around ours
        whole = opener.from_config(config)
    setattr(whole, whole.base_model_prefix, heads.model.inner)
    if scalar:
        whole.score.weight = heads.score.weight
    else:
        whole.get_output_embeddings().weight = heads.head_weight_VD
    with _quietly(hub):
        whole.save_pretrained(folder)


def _opener(family: str, scalar: bool) -> tuple[ModuleType, Any]:
    """Return `transformers`, and its class that opens policies or reward models."""
    hub = _transformers(family)
    return hub, hub.AutoModelForSequenceClassification if scalar else hub.AutoModelForCausalLM
