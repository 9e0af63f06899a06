"""The plan of a run as text: what there is, what will be done, what it costs, and what the model will read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from accord.cli.doctor import GB, memory_gb
from accord.cli.talk import path_text, to_plain
from accord.progress import duration

if TYPE_CHECKING:
    from accord.loop.plan import CostEstimate, PlannedStage, PromptLengths, ReadText, RunPlan

SPLIT_NAMES = ("train", "valid", "test", "judge")
#: What each split is for, in the order of the columns.
SPLIT_USE = "train teaches, valid chooses among snapshots, test is reported, judge teaches the judge alone"
LIMIT_SHOWN = 1_200  # characters of a text: a long one would push everything else off the screen


def plan_json(plan: RunPlan) -> dict[str, Any]:
    """The plan as JSON, the recipe with every key."""
    plain: dict[str, Any] = to_plain(plan)
    return plain | {"recipe": plan.recipe.resolved(), "is_done": plan.is_done, "memory_free": _memory_free()}


def plan_text(plan: RunPlan) -> str:
    """The plan as somebody reads it. Nothing of it has been done."""
    parts = [
        _head(plan),
        *_counts(plan),
        *_lengths(plan.lengths),
        *_stages(plan.stages),
        *_costs(plan.cost),
        *_layout(plan.layout),
        *(f"note: {note}" for note in plan.notes),
        *_texts(plan),
    ]
    return "\n".join(parts)


def _head(plan: RunPlan) -> str:
    size = f", {plan.size.weights / 1e6:,.1f} million weights" if plan.size else ""
    model = f"model {path_text(plan.model)}{size}" if plan.model else f"model {plan.recipe.base.model or 'of its own'}"
    return f"plan of {plan.recipe.name}: task {plan.recipe.task.use}, {model}, into {path_text(plan.folder)}"


def _counts(plan: RunPlan) -> Iterator[str]:
    if not plan.counts:
        return
    yield "rows" + " " * 12 + "".join(f"{name:>9}" for name in SPLIT_NAMES)
    for kind in ("prompts", "demonstrations", "judgements", "texts"):
        of = plan.counts.get(kind, {})
        if of or kind != "texts":
            yield f"  {kind:<14}" + "".join(f"{of.get(name, 0) or '-':>9}" for name in SPLIT_NAMES)
    yield f"  ({SPLIT_USE})"
    for kind, told in plan.left_out.items():
        reasons = ", ".join(f"{count:,} {why}" for why, count in told["why"].items())
        if reasons:
            yield f"  left out of the {kind}: {reasons}"


def _lengths(lengths: PromptLengths | None) -> Iterator[str]:
    if lengths is None:
        return
    yield f"prompts in tokens: {lengths.mean:.0f} in the mean, {lengths.longest:,} the longest of {lengths.count:,}"
    for name, (limit, count) in lengths.too_long.items():
        told = f"{count:,} are too long" if count else "none is too long"
        yield f"  {told} for {name} {limit:,}, with an answer of {lengths.answer:,} tokens"


def _stages(stages: tuple[PlannedStage, ...]) -> Iterator[str]:
    rounds = {stage.round for stage in stages}
    shown = 0
    for stage in stages:
        if stage.round != shown:
            shown = stage.round
            yield f"round {shown}" if len(rounds) > 1 else "stages"
        took = "" if stage.seconds is None else f"{stage.tokens or 0:>12,} tokens  about {duration(stage.seconds)}"
        yield f"  {stage.name:<27}{stage.state:<9}{took}{'  ' * bool(took and stage.why)}{stage.why}".rstrip()


def _costs(cost: CostEstimate | None) -> Iterator[str]:
    if cost is None:
        return
    low, high = duration(cost.low), duration(cost.high)
    yield f"an estimate: {duration(cost.seconds)} of computing ({low} to {high}), people's time aside"
    yield f"  from {cost.tokens:,} tokens: {cost.basis}"
    free = _memory_free()
    has = "" if free is None else f" of {free / GB:.1f} GB free"
    stage = f" ({cost.memory_stage})" if cost.memory_stage else ""
    disk = f"{cost.disk / GB:.1f} GB of {cost.disk_free / GB:.0f} GB free"
    yield f"  memory up to {cost.memory / GB:.1f} GB{stage}{has}; disk up to {disk}"
    if free is not None and cost.memory > free:
        yield "  more than is free: train adapters (lora.rank), lower micro_batch_tokens, or take a smaller model"
    if cost.disk > cost.disk_free:
        yield "  more disk than is free: evaluate less often (eval_every), or write elsewhere with -o"


def _layout(lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield "processes"
    yield from (f"  {line}" for line in lines)


def _memory_free() -> float | None:
    """Bytes of memory that are free now; None where the system does not tell."""
    _, free = memory_gb()
    return None if free is None else free * GB


def _texts(plan: RunPlan) -> Iterator[str]:
    for number, text in enumerate(plan.prompts, 1):
        yield f"prompt {number}, {text.tokens} tokens as the model reads it:"
        yield from _pieces(text)
    if plan.demonstration is not None:
        yield f"a demonstration, {plan.demonstration.tokens} tokens; lines marked > count in the loss:"
        yield from _pieces(plan.demonstration)


def _pieces(text: ReadText) -> Iterator[str]:
    for piece, counts in text.pieces:
        shown = piece if len(piece) <= LIMIT_SHOWN else f"{piece[:LIMIT_SHOWN]}... ({len(piece):,} characters)"
        yield from (f"  {'>' if counts else '|'} {line}" for line in shown.split("\n"))
