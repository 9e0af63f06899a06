"""Facts that values are fitted to (`accord.config.fitting`): sizes of a model's folder, lengths of a task's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from accord.config import FITTED_SAMPLES, DataFacts, MachineFacts, ModelFacts, Recipe, fit, is_fitted
from accord.errors import DataError
from accord.formats import read_items
from accord.formats.stage_rows import Conversation, read_completions, read_lessons, read_prompts
from accord.loop.stages import Home, start_of
from accord.loop.task import Split, Task
from accord.models.folder import shape_of
from accord.models.lora import require_peft
from accord.models.placement import AUTO, Placement
from accord.models.shape import DecoderConfig
from accord.models.weights import count_weights
from accord.text.tokenizer import Tokenizer, load_tokenizer

MEASURED_ROWS = 4000  # of each file; more of them change no percentile by much, and a million take minutes
#: The file of a kind (prompts, demonstrations, judgements) and split, None where there is none.
FileOf = Callable[[str, Split], Path | None]


def fitted_home(home: Home) -> Home:
    """The same home, its recipe with values that fit the model and the task's files, where it leaves them open.

    Both must be there: the task's files are prepared, the model that everything starts from is in its folder.
    """
    return replace(home, recipe=fitted_recipe(home.recipe, start_of(home), files_of(home.task)))


def fitted_recipe(recipe: Recipe, model: Path, file_of: FileOf) -> Recipe:
    """The recipe with values that fit a model's folder and files, where it is of the kind that has some."""
    if not is_fitted(recipe):
        return recipe
    data = data_facts(file_of, load_tokenizer(model))
    made = fit(recipe, model_facts(model), data, machine_facts(Placement.of(recipe.rl)))
    check_adapters(made)
    return made


def fitted_samples(recipe: Recipe, model: Path) -> Recipe:
    """The recipe with values of ``sample`` that fit a model whose samples people read, where it leaves them open."""
    facts = replace(model_facts(model), chat=load_tokenizer(model).chat is not None)
    return fit(recipe, facts, DataFacts(), machine_facts(AUTO), FITTED_SAMPLES)


def check_adapters(recipe: Recipe) -> None:
    """Refuse adapters where the package that makes them is not installed: hours later would be too late.

    Raises UsageError.
    """
    if any(stage.lora.rank for stage in (recipe.sft, recipe.reward, recipe.optimisation())):
        require_peft()


def files_of(task: Task) -> FileOf:
    """The files of a task that has prepared them."""
    return lambda kind, split: getattr(task, kind)(split)


def model_facts(folder: Path) -> ModelFacts:
    """Sizes of the model in a folder. Raises DataError where it cannot be read."""
    shape = shape_of(folder)
    sizes = (count_weights(folder), shape.width, shape.num_layers, shape.max_positions, shape.vocab_size)
    return ModelFacts(*sizes, decoder=isinstance(shape, DecoderConfig))


def machine_facts(placement: Placement) -> MachineFacts:
    """Memory of the device that a stage works on."""
    device = placement.device
    if device.type == "cuda":
        return MachineFacts(torch.cuda.get_device_properties(device).total_memory, gpu=True)
    return MachineFacts(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def data_facts(file_of: FileOf, tokenizer: Tokenizer) -> DataFacts:
    """How much a task's files hold to train on, and how long it is in tokens, laid out by the model's template."""
    prompts, taught, judged = (file_of(kind, "train") for kind in ("prompts", "demonstrations", "judgements"))
    asked = tokens_of(tokenizer, [row.text for row in read_prompts(prompts, tokenizer.chat)]) if prompts else []
    lessons = demonstration_lengths(tokenizer, taught) if taught else []
    judgements = pair_lengths(tokenizer, read_completions(judged, tokenizer.chat)) if judged else []
    return DataFacts(
        prompts=count_rows(prompts),
        demonstrations=count_rows(taught),
        judgements=count_rows(judged),
        measured=count_rows(file_of("prompts", "test")),
        usual_prompt=percentile(asked, 50),
        long_prompt=percentile(asked, 99),
        longest_prompt=percentile(asked, 100),
        long_completion=percentile([said for _, said in judgements or lessons], 90),
        long_judgement=percentile([prompt + said for prompt, said in judgements], 99),
        usual_demonstration=percentile([prompt + said for prompt, said in lessons], 50),
        long_demonstration=percentile([prompt + said for prompt, said in lessons], 99),
    )


def count_rows(path: Path | None) -> int:
    """How many rows a file has; none where there is no file."""
    return 0 if path is None else sum(1 for _ in read_items(path))


def tokens_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Lengths in tokens of the first texts of many."""
    return list(map(len, tokenizer.encode_batch(texts[:MEASURED_ROWS])))


def pair_lengths(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """Lengths of prompts and of their completions, each with its end token."""
    asked, said = (tokens_of(tokenizer, texts) for texts in zip(*pairs, strict=True))
    return [(prompt, completion + 1) for prompt, completion in zip(asked, said, strict=True)]


def demonstration_lengths(tokenizer: Tokenizer, path: Path) -> list[tuple[int, int]]:
    """Lengths of what comes before the last answer and of that answer, of demonstrations and whole conversations."""
    return pair_lengths(tokenizer, [parted(lesson, tokenizer) for lesson in read_lessons(path)[:MEASURED_ROWS]])


def parted(lesson: tuple[str, str] | Conversation, tokenizer: Tokenizer) -> tuple[str, str]:
    """What stands before the last answer, and the answer. Raises DataError for messages without a template."""
    if not isinstance(lesson, Conversation):
        return lesson
    if tokenizer.chat is None:
        raise DataError("messages are taught, and the model has no chat template", where=lesson.where)
    last = max(i for i, message in enumerate(lesson.messages) if message["role"] == "assistant")
    return tokenizer.chat.prompt(lesson.messages[:last]), str(lesson.messages[last]["content"])


def percentile(lengths: Sequence[int], share: int) -> int:
    """The least length that so many of a hundred do not exceed; 0 where there is none."""
    ordered = sorted(lengths)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)] if ordered else 0
