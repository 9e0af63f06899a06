"""Values that fit the model and the data, where a recipe leaves them open: a table of rules, each with its reason.

They are for a given model (``base.model``) on prompts of one's own (the tasks files and store): there nobody has tuned
a recipe. What a recipe, a project, the command line or the named row of a table says stands above them, and a recipe
that pretrains its model, or brings a task of its own, has none. A rule that says None leaves the default as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accord.config.fitting_rules import (
    Case,
    DataFacts,
    MachineFacts,
    ModelFacts,
    adapter_lr,
    answer_tokens,
    best_of,
    cooler,
    curve_samples,
    demonstration_tokens,
    evaluated_samples,
    half_of_all,
    is_clipped,
    iterations,
    judged_tokens,
    micro_batch_tokens,
    minibatches,
    no_more_than_prompts,
    on_adapters,
    on_given,
    prompt_limit,
    prompts_a_round,
    reward_epochs,
    reward_lr,
    reward_rank,
    same_room,
    sft_epochs,
    step_tokens,
    still_embeddings,
    trunk_layers,
)
from accord.config.recipes import Recipe

#: Tasks whose data nobody has tuned a recipe for.
FITTED_TASKS = ("files", "store")


@dataclass(frozen=True)
class FittedKey:
    """A key, the rule that gives its value, and why; ``{model.x}`` and ``{data.x}`` in the reason stand for facts."""

    key: str
    rule: Callable[[Case], Any]
    why: str


def fit(
    recipe: Recipe,
    model: ModelFacts,
    data: DataFacts,
    machine: MachineFacts,
    table: Sequence[FittedKey] | None = None,
) -> Recipe:
    """Return the recipe with values that fit in every key that it leaves open; it says where each came from.

    ``table``: the rules, by default those of a whole run (`FITTED`).
    """
    given, case = recipe.given(), Case(model, data, machine, recipe)
    reasons: dict[str, str] = {}
    for row in FITTED if table is None else table:
        value = None if row.key in given else row.rule(case)
        if value is not None:
            case = Case(model, data, machine, recipe, {**case.chosen, row.key: value})
            reasons[row.key] = row.why.format(model=model, data=data)
    return recipe.with_fitted(case.chosen, reasons)


def is_fitted(recipe: Recipe) -> bool:
    """Return whether values are fitted: a model is given, and the data are of one's own."""
    return bool(recipe.base.model) and recipe.task.use in FITTED_TASKS


# ---- the table -------------------------------------------------------------------------------------------------------

_RANK = "an adapter of rank 16 on all linear layers, measured; its absence is the reference, which takes no memory"
_ALPHA = "twice the rank, as measured and as in most published adapters"
_LR = "4e-4 was measured at width 576 and falls as 1 / width (Adam, Tensor Programs V); here {model.width}"
_MEMORY = "logits over {model.vocabulary} entries and activations of {model.layers} layers within the memory"
_ROOM = "{data.ends}"
_SMALL_MODEL = "0.8 was measured; N+ and TRL take 0.7: what small models seldom say is seldom language"
_LONG = "99 of 100 judged texts are no longer than {data.long_judgement} tokens"
_DEAR = "steps of such a model take seconds: a killed run should lose minutes"

FITTED: tuple[FittedKey, ...] = (
    FittedKey("sft.lora.rank", on_adapters(16), _RANK),
    FittedKey("sft.lora.alpha", on_adapters(32.0), _ALPHA),
    FittedKey("sft.optim.lr", adapter_lr, _LR),
    FittedKey("sft.optim.weight_decay", on_given(0.0), "a given model is to stay near where it was (TRL, N+)"),
    FittedKey("sft.dropout", on_given(0.0), "as N+ and TRL; measured without"),
    FittedKey(
        "sft.epochs", sft_epochs, "{data.demonstrations} demonstrations: fewer are read more often, 3 times at most"
    ),
    FittedKey(
        "sft.max_tokens", demonstration_tokens, "99 of 100 demonstrations are no longer than {data.long_demonstration}"
    ),
    FittedKey("sft.batch_tokens", step_tokens, "about 16 demonstrations of {data.usual_demonstration} tokens a step"),
    FittedKey("sft.micro_batch_tokens", micro_batch_tokens, _MEMORY),
    FittedKey("sft.checkpoint_every", on_given(25), _DEAR),
    FittedKey("sample.max_new_tokens", same_room("rl.max_new_tokens"), _ROOM),
    FittedKey("sample.temperature", cooler, _SMALL_MODEL),
    FittedKey("ask.prompts", no_more_than_prompts("ask.prompts"), "there are {data.prompts} prompts to train on"),
    FittedKey("ask.queue", no_more_than_prompts("ask.queue"), "there are {data.prompts} prompts to train on"),
    FittedKey("rl.lora.rank", on_adapters(16), _RANK),
    FittedKey("rl.lora.alpha", on_adapters(32.0), _ALPHA),
    FittedKey(
        "rl.lora.critic_rank",
        lambda case: 16 if case.adapts and is_clipped(case) else None,
        "the critic is a second model of the policy's size: an adapter spares its optimiser; measured",
    ),
    FittedKey("rl.actor.lr", adapter_lr, _LR),
    FittedKey(
        "rl.critic.lr", lambda case: adapter_lr(case, 1e-3), "two to three times the policy's; 1e-3 was measured"
    ),
    FittedKey("rl.max_new_tokens", same_room("sample.max_new_tokens"), _ROOM),
    FittedKey("rl.temperature", cooler, _SMALL_MODEL),
    FittedKey(
        "rl.prompts_per_iteration",
        prompts_a_round,
        "a round of about 8,192 tokens, a quarter of it without a GPU: prompts have {data.usual_prompt} in the middle, "
        "and there are {data.prompts}",
    ),
    FittedKey(
        "rl.ppo_epochs", lambda case: 2 if is_clipped(case) else None, "2 passes of 2 steps cost half of N+'s 4 of 1"
    ),
    FittedKey("rl.minibatches", minibatches, "2 passes of 2 steps cost half of N+'s 4 of 1"),
    FittedKey("rl.iterations", iterations, "as far as 16 rounds of 4 steps at 4e-4 went, which were measured"),
    FittedKey("rl.micro_batch_tokens", micro_batch_tokens, _MEMORY),
    FittedKey(
        "rl.kl_coef",
        on_adapters(0.1),
        "measured at such rates: 5.8 nats after 16 rounds; with 0.05 15.4 nats, and words that repeat",
    ),
    FittedKey("rl.length_coef", on_given(0.3), "what is liked must not just be longer or shorter; 0.3 was measured"),
    FittedKey("rl.eval_every", half_of_all, "each snapshot is sampled on all valid prompts"),
    FittedKey("rl.checkpoint_every", on_given(4), _DEAR),
    FittedKey("rl.prompts.max_tokens", prompt_limit, "the context of {model.context} must hold a completion too"),
    FittedKey(
        "reward.lora.rank", reward_rank, "above a billion weights an adapter; full training takes 16 bytes a weight"
    ),
    FittedKey("reward.lora.alpha", lambda case: 32.0 if reward_rank(case) else None, _ALPHA),
    FittedKey(
        "reward.trunk_layers",
        trunk_layers,
        "the first 16 of 30 layers were measured: .912 of the film pairs, at half the work of all",
    ),
    FittedKey(
        "reward.freeze_embeddings", still_embeddings, "words that no judgement mentions stay as they were; measured so"
    ),
    FittedKey("reward.optim.lr", reward_lr, "1e-4: measured at width 576, falling as 1 / width; TRL's for adapters"),
    FittedKey("reward.dropout", on_given(0.0), "measured without: one pass"),
    FittedKey("reward.max_tokens", judged_tokens, _LONG),
    FittedKey("reward.micro_batch_tokens", micro_batch_tokens, _MEMORY),
    FittedKey("reward.epochs", reward_epochs, "{data.judgements} judgements: 100 steps if three passes make them"),
    FittedKey("reward.checkpoint_every", on_given(50), _DEAR),
    FittedKey("dpo.lora.rank", on_adapters(16), _RANK),
    FittedKey("dpo.lora.alpha", on_adapters(32.0), _ALPHA),
    FittedKey(
        "dpo.optim.lr",
        lambda case: adapter_lr(case, 5e-5),
        "ten times DPO's 5e-6 at 124 million weights, falling as 1 / width",
    ),
    FittedKey("dpo.max_tokens", judged_tokens, _LONG),
    FittedKey("dpo.micro_batch_tokens", micro_batch_tokens, _MEMORY),
    FittedKey("dpo.max_new_tokens", same_room("rl.max_new_tokens"), _ROOM),
    FittedKey("eval.samples_per_prompt", evaluated_samples, "{data.measured} test prompts: 128 samples or one each"),
    FittedKey("eval.best_of", best_of, "a processor draws a completion in a second or more: two where there is no GPU"),
    FittedKey("eval.curve_samples", curve_samples, "{data.measured} prompts: 128 samples or two each"),
)

#: Of `accord sample` alone, whose samples people read: nothing else says how long answers are.
FITTED_SAMPLES: tuple[FittedKey, ...] = (
    FittedKey("sample.max_new_tokens", answer_tokens, "room for a chat model's answers to end by themselves"),
    *(row for row in FITTED if row.key == "sample.temperature"),
)
