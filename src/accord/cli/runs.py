"""Whole runs: the demo, any recipe, and what stands in a project."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import accord
from accord.cli.keys import HelpAll
from accord.cli.options import FromDir, Json, Overrides, Resume, RunDir, Sweep, Track, Verbose, trackers_named
from accord.cli.people import AllowHost, Host, Port, Proxy
from accord.cli.project import Project, ProjectDir, find_project, run_dir
from accord.cli.talk import Talk, path_text, talking
from accord.cli.verdicts import run_lines
from accord.cli.waiting import Door, Invite, Serve, WaitForPeople, reception
from accord.config import Recipe, annotated_yaml, is_fitted, load_recipe
from accord.errors import UsageError
from accord.grid import grid
from accord.people.web.serving import Address
from accord.report.trackers import tracked


def demo(
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option("--seeds", "--seed", metavar="N[,N...]", help="One whole run per seed.")] = "0",
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Toy size: shows that it runs, its numbers mean nothing.")
    ] = False,
    from_dir: FromDir = None,
    project: ProjectDir = None,
    output_dir: RunDir = None,
    resume: Resume = True,
    track: Track = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run the whole loop on real reviews and ratings.

    From raw texts of film reviews and human ratings of them to an aligned model and an honest report. Downloads 12 MB
    once, verifies it, and writes runs/demo/report.html. Run it again to continue where it stopped.

    \b
    Examples:
      accord demo
      accord demo --seeds 0,1,2
      accord demo -o runs/stronger-kl rl.kl_coef=0.1
    """
    with talking(json, verbose) as talk:
        home = find_project(project)
        recipe = load_recipe("smoke" if smoke else "demo", overrides or (), defaults=home.defaults if home else None)
        wanted, folder = parse_seeds(seeds), run_dir(output_dir, home, recipe.name)
        named = trackers_named(track) or recipe.track
        with reception(talk, recipe, folder, home), tracked(folder, named, talk.log):
            made = accord.run_seeds(
                recipe,
                output_dir=folder,
                seeds=wanted,
                store=home.store if home else None,
                from_dir=from_dir,
                resume=resume,
                log=talk.log,
            )
        talk.result(made, next_step=_next_steps(folder, recipe, home))


def _next_steps(folder: Path, recipe: Recipe, home: Project | None) -> str:
    """Where the report is, and how people get to the samples that wait for them."""
    report = f"open {path_text(folder / 'report.html')}"
    if not recipe.ask.queue or recipe.compare.methods:
        return report
    place = path_text(home.root if home else folder)
    return f"{report}\n      accord label {place}   (people rank what the new policy writes)"


@dataclass(frozen=True)
class RunRequest:
    """What `accord run` is to run: a recipe by name or file, or "" for the project's own, and what to change of it."""

    home: Project | None
    recipe: str
    overrides: Sequence[str]

    @classmethod
    def of(cls, home: Project | None, words: Sequence[str], seed: int | None) -> RunRequest:
        """Read the command's words: the recipe comes first, and has no equals sign."""
        named = bool(words) and ("=" not in words[0] or Path(words[0]).is_file())
        seeded = [] if seed is None else [f"seed={seed}"]
        asked = cls(home, words[0] if named else "", [*words[named:], *seeded])
        if not named and home is None:
            raise UsageError(
                "no recipe is named, and there is no project here",
                hint="name one, as in `accord run demo`, or make a project: accord init NAME --model smollm2",
            )
        return asked

    def load(self, more: Sequence[str] = ()) -> Recipe:
        """Return the recipe with its changes, and ``more`` of them."""
        given = [*self.overrides, *more]
        if self.home is not None and not self.recipe:
            return self.home.recipe_with(given)
        return load_recipe(self.recipe, given, defaults=self.home.defaults if self.home else None)

    def command(self, more: Sequence[str]) -> str:
        """Return the command that runs it, with further words."""
        return shlex.join(["accord", "run", *filter(None, [self.recipe]), *self.overrides, *more])

    def place(self, path: Path | None) -> Path | None:
        """Return a path that the user gave, as it is named where the recipe runs."""
        return path if path is None or self.recipe else path.absolute()

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """Where paths of the recipe are seen from: the project's folder where it is the project's own."""
        return self.home.entered() if self.home is not None and not self.recipe else contextlib.nullcontext()


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            help="A YAML file, or the name of a shipped recipe; without it the project's own. And keys to change.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check everything, files too, and print the plan; write nothing.")
    ] = False,
    show_recipe: Annotated[
        bool, typer.Option("--show-recipe", help="Only print the recipe: every key with its value, as YAML.")
    ] = False,
    sweep: Sweep = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Instead of the recipe's seed.")] = None,
    from_dir: FromDir = None,
    project: ProjectDir = None,
    output_dir: RunDir = None,
    resume: Resume = True,
    wait: WaitForPeople = False,
    serve: Serve = False,
    invite: Invite = "",
    host: Host = "127.0.0.1",
    port: Port = 8765,
    allow_host: AllowHost = None,
    proxy: Proxy = None,
    track: Track = None,
    help_all: HelpAll = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a recipe, or continue it; without a name the project's own, which stands in its accord.yaml.

    Stages whose inputs did not change are skipped; an interrupted one continues from its last checkpoint. A recipe with
    compare.methods runs each of them on each of compare.seeds, and writes one report.

    With ask.who=people the samples wait in the queue, and the command ends with exit code 5 until there are enough
    answers; the same command then goes on. --wait waits for them, and --serve also opens the page where they answer and
    prints a link a colleague. With rounds=N the loop turns N times, each from the policy promoted last.

    \b
    Examples:
      accord run --dry-run
      accord run
      accord run demo --dry-run
      accord run my-recipe.yaml rl.kl_coef=0.02 rl.iterations=100
      accord run demo -o runs/kls --sweep rl.kl_coef=.01,.05,.2
      accord run demo ask.who=people ask.prompts=40 --wait
      accord run demo ask.who=people ask.prompts=40 --serve --invite Ada,Ben
    """
    with talking(json, verbose) as talk:
        home = find_project(project)
        asked = RunRequest.of(home, words or [], seed)
        made, points = asked.load(), grid(sweep, asked.load) if sweep else []
        folder = run_dir(asked.place(output_dir), home, f"{made.name}-sweep" if sweep else made.name)
        from_dir = asked.place(from_dir)
        settings: dict[str, Any] = {"store": home.store if home else None, "from_dir": from_dir, "resume": resume}
        if show_recipe:
            show_values(talk, asked, made, folder, settings)
            return
        if dry_run and points:
            with asked.inside():
                check_each([point.recipe for point in points], folder, home, from_dir)
            talk.result({point.name: point.recipe for point in points}, text="\n".join(point.name for point in points))
            return
        if dry_run:
            more = [f"--{name}={path}" for name, path in (("output-dir", output_dir), ("project", project)) if path]
            show_plan(talk, asked, made, folder, settings, asked.command(more))
            return
        settings["log"] = talk.log
        following = tracked(folder, trackers_named(track) or made.track, talk.log)
        door = Door(serve, invite, Address(host, port, tuple(allow_host or ()), tuple(proxy or ())))
        if points:
            with reception(talk, made, folder, home, door, wait) as people, asked.inside(), following:
                swept = accord.sweep(points, output_dir=folder, wait=people.wait, **settings)
            talk.result(swept, next_step=f"open {path_text(swept.report)}")
            return
        if seed is not None and made.compare.methods:
            made = asked.load([f"compare.seeds=[{seed}]"])
        work = accord.compare if made.compare.methods else accord.run
        with reception(talk, made, folder, home, door, wait) as people, asked.inside(), following:
            summary = work(made, output_dir=folder, wait=people.wait, **settings)
        steps = _next_steps(folder, made, home)
        talk.result(
            summary, above=run_lines(folder), next_step=steps if asked.recipe else f"{steps}\n      accord status"
        )


def show_values(talk: Talk, asked: RunRequest, recipe: Recipe, folder: Path, settings: Mapping[str, Any]) -> None:
    """Print every key with its value and, but for defaults, where it came from; as JSON the values alone."""
    if is_fitted(recipe):
        from accord.loop.plan import planned_recipe

        with asked.inside():
            recipe = planned_recipe(recipe, output_dir=folder, **settings)
    talk.result(recipe, text=annotated_yaml(recipe, recipe.origins()))


def show_plan(
    talk: Talk, asked: RunRequest, recipe: Recipe, folder: Path, settings: Mapping[str, Any], command: str
) -> None:
    """Print what the run would do, and the command that does it."""
    from accord.cli.plans import plan_json, plan_text
    from accord.loop.plan import plan_run

    with asked.inside():
        plan = plan_run(recipe, output_dir=folder, **settings)
    told = "accord status   (all of it is done)" if plan.is_done else command
    talk.result(plan_json(plan), text=plan_text(plan), next_step=told)


def check_each(recipes: Sequence[Recipe], folder: Path, home: Project | None, from_dir: Path | None) -> None:
    """Check recipes as far as it goes without any work."""
    from accord.loop.run import check_run

    for recipe in recipes:
        check_run(recipe, output_dir=folder, store=home.store if home else None, from_dir=from_dir)


def parse_seeds(text: str) -> list[int]:
    """``"0,1,2"`` as numbers; raises UsageError for anything else, and for a seed named twice."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"seeds {text!r} are not whole numbers", where="--seeds", hint="write them like 0,1,2")
    seeds = [int(part) for part in parts]
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds {text!r} name one seed twice", where="--seeds", hint="name each seed once")
    return seeds
