"""The keys at the end of a command's --help: with the values that hold for what was named on the same line.

``--help`` shows those that one needs first, and the rows of the tables that they name; ``--help-all`` all of them, by
group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from accord.algo.table import TABLES
from accord.config import LabelConfig, Recipe, describe, load_recipe
from accord.errors import UsageError

KeyRow = tuple[str, Any, str]
_WORDS, _ALL = "accord.words", "accord.all"  # of a context: what stood on the command line, and whether all is wanted

#: What one needs first, by section.
FIRST_KEYS = {
    "pretrain": ("pretrain.epochs", "pretrain.optim.lr"),
    "model": ("model.width", "model.layers"),
    "tokenizer": ("tokenizer.vocab_size",),
    "sft": ("sft.epochs", "sft.optim.lr", "sft.max_tokens", "sft.batch_tokens", "sft.lora.rank"),
    "reward": ("reward.loss", "reward.epochs", "reward.optim.lr", "reward.max_tokens", "reward.lora.rank"),
    "rl": ("rl.algorithm", "rl.iterations", "rl.kl_coef", "rl.actor.lr", "rl.max_new_tokens"),
    "dpo": ("dpo.loss", "dpo.dpo_beta", "dpo.epochs", "dpo.optim.lr", "dpo.max_tokens"),
    "sample": (
        "sample.samples_per_prompt",
        "sample.max_new_tokens",
        "sample.temperature",
        "sample.top_p",
        "sample.best_of",
    ),
    "eval": ("eval.judges", "eval.samples_per_prompt", "eval.best_of", "eval.kl_ceiling", "eval.people.prompts"),
}
#: And of a whole run, whose sections are too many.
FIRST_OF_A_RUN = ("base.model", "task.use", "ask.who", "optimise", "rl.algorithm")


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        context.meta[_ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit


HelpAll = Annotated[
    bool, typer.Option("--help-all", callback=_show_all, is_eager=True, help="Show every key too, by group, and exit.")
]


def with_keys(*sections: str, first: Sequence[str] = (), recipe_word: bool = False) -> type[TyperCommand]:
    """Return the class of a command whose help ends with the keys of these sections.

    Args:
        first: Those that are shown by --help, by default the sections' of `FIRST_KEYS`.
        recipe_word: The first word of the command line may name a recipe.
    """
    shown = tuple(first) or tuple(key for section in sections for key in FIRST_KEYS[section])

    class WithKeys(TyperCommand):
        """A command that remembers its words, so that its help can be about them."""

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            ctx.meta[_WORDS] = list(args)
            return super().parse_args(ctx, args)

        def format_epilog(self, ctx: Any, formatter: Any) -> None:
            recipe, named = _recipe(ctx.meta.get(_WORDS, []), recipe_word)
            rows = [row for row in describe(recipe) if row[0].split(".", 1)[0] in sections]
            lines = _grouped(rows) if ctx.meta.get(_ALL) else _shortly(rows, shown, ctx.command_path)
            formatter.write("\n" + "\n".join([f"Keys, {named}:", *lines]) + "\n")

    return WithKeys


def label_keys_help() -> str:
    """The keys of a project's ``label:``, for the end of a help text."""
    rows = [row for row in describe(LabelConfig()) if row[0] != "axes"]
    return "\n".join(["\b", "Keys, with their defaults:", *_lines(rows)])


def _recipe(words: Sequence[str], recipe_word: bool) -> tuple[Recipe, str]:
    """Return the recipe that a command line describes, and what that is in words; where it makes no sense, defaults."""
    changes = [word for word in words if "=" in word and not word.startswith("-")]
    named = [after for word, after in pairwise(words) if word == "--recipe"]
    named += [word for word in words[:1] if recipe_word and word[:1].isalnum() and "=" not in word]
    try:
        made = load_recipe(named[0] if named else None, changes)
    except UsageError:
        return Recipe(), "with their defaults"
    said = [*named, *changes]
    return made, f"as they are with {' '.join(said)}" if said else "with their defaults"


def _shortly(rows: Sequence[KeyRow], first: Sequence[str], command: str) -> Iterator[str]:
    """The keys one needs first, the rows that they name, and how many others there are."""
    by_name = {row[0]: row for row in rows}
    yield from _lines([by_name[key] for key in first])
    for key in first:
        if key in TABLES:
            yield from ("", f"{key} is one of:", *_columns([(n, row.summary) for n, row in TABLES[key].items()]))
            yield "  module:name  of your own"
    groups = Counter(_group(name) or "of the whole" for name in by_name if name not in first)
    if groups:
        counted = ", ".join(f"{group} ({count})" for group, count in groups.items())
        yield from ("", f"{groups.total()} more, which `{command} --help-all` shows: {counted}")


def _grouped(rows: Sequence[KeyRow]) -> Iterator[str]:
    """All keys, a group after the other, and the rows of every table."""
    for group in dict.fromkeys(_group(row[0]) for row in rows):
        yield from ("", f"{group or 'of the whole'}:", *_lines([row for row in rows if _group(row[0]) == group]))
    for key in (row[0] for row in rows if row[0] in TABLES):
        yield from ("", f"{key} is one of:", *_columns([(n, row.summary) for n, row in TABLES[key].items()]))


def _group(key: str) -> str:
    return key.rpartition(".")[0]


def _lines(rows: Sequence[KeyRow]) -> list[str]:
    return _columns([(f"{key}={_shown(value)}", meaning) for key, value, meaning in rows])


def _columns(texts: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(left) for left, _ in texts)
    return [f"  {left:<{width}}  {right}" for left, right in texts]


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)
