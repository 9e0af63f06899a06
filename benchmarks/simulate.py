"""The cost model of policy optimisation on many GPUs, as a command: `python -m benchmarks.simulate`.

    python -m benchmarks.simulate                       seconds an iteration, 8 to 512 GPUs
    python -m benchmarks.simulate --check               beside figures that others published, misses and all
    python -m benchmarks.simulate --model 8B --gpus 64 --samples 4096

Arithmetic: no number here was measured on a GPU by us. Generation is simulated event by event (continuous batching on
engines that a roofline slows: weights and cache through the memory, products through the units); learning and scoring
are products at a share of the peak, or the gathers of weights where those take longer.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Model:
    """A policy: weights, layers, and the width of keys and values together in a layer."""

    name: str
    weights: float
    layers: int
    kv_width: int


@dataclass(frozen=True)
class Gpu:
    """One device: products a second (bf16), bytes a second of its memory, bytes; of links inside and outside a node."""

    name: str
    products: float
    bandwidth: float
    memory: float
    link: float
    network: float


@dataclass(frozen=True)
class Work:
    """One iteration: samples, tokens of a prompt, mean and longest completion, epochs, and whether a critic learns.

    ``spread`` is the standard deviation of the logarithm of lengths; 0: all are as long as the mean.
    """

    samples: int = 4096
    prompt: int = 512
    mean: int = 600
    longest: int = 2048
    epochs: int = 2
    critic: bool = True
    spread: float = 0.9


@dataclass(frozen=True)
class Shares:
    """What is reached of the peaks: products while learning and while scoring, and bandwidth while writing."""

    learning: float = 0.35
    scoring: float = 0.4
    writing: float = 0.45


@dataclass(frozen=True)
class Seconds:
    """One iteration by its parts. ``bound``: what the learning waits for."""

    writing: float
    scoring: float
    learning: float
    handing: float
    bound: str

    @property
    def whole(self) -> float:
        return self.writing + self.scoring + self.learning + self.handing


MODELS = {
    "1.1B": Model("1.1B", 1.1e9, 22, 2 * 4 * 64),
    "8B": Model("8B", 8.0e9, 32, 2 * 8 * 128),
    "70B": Model("70B", 70.6e9, 80, 2 * 8 * 128),
}
H100 = Gpu("H100", 989e12, 3.35e12, 80e9, 450e9, 50e9)
A800 = Gpu("A800", 312e12, 2.0e12, 80e9, 200e9, 25e9)
H20 = Gpu("H20", 148e12, 4.0e12, 96e9, 450e9, 50e9)
GPUS = (8, 16, 32, 64, 128, 256, 512)
NODE = 8
STEP_S = 0.006  # of an engine's step that neither memory nor products explain
MOST_ROWS = 1024  # alive at once in an engine
WEIGHT_SHARE = 0.45  # of a GPU's memory that an engine's weights may take; beyond, it spans two
CACHE_SHARE = 0.85
TRAINED_BYTES = 16  # a weight that trains, in fp32 with its gradient and moments
MICRO_BATCHES = 4  # passes that each gather all weights, an epoch


def span(model: Model, gpu: Gpu) -> int:
    """Return how many GPUs one engine spans (a power of two)."""
    most = WEIGHT_SHARE * gpu.memory
    return 2 ** max(0, math.ceil(math.log2(2 * model.weights / most)))


def lengths_of(work: Work, seed: int = 0) -> list[int]:
    """Return the lengths of an iteration's completions, log-normal and cut at the longest."""
    if not work.spread:
        return [work.mean] * work.samples
    draw, middle = random.Random(seed), math.log(work.mean) - work.spread**2 / 2
    return [max(8, min(work.longest, round(draw.lognormvariate(middle, work.spread)))) for _ in range(work.samples)]


def engine_seconds(model: Model, gpu: Gpu, lengths: Sequence[int], prompt: int, shares: Shares) -> float:
    """Return when one engine has written all of these: rows leave as they end, and others take their places."""
    gpus = span(model, gpu)
    cached = 2 * model.layers * model.kv_width  # bytes a token
    mean = sum(lengths) / max(1, len(lengths))
    room = (CACHE_SHARE * gpu.memory * gpus - 2 * model.weights) / (cached * (prompt + 0.7 * mean))
    most = max(8, min(MOST_ROWS, int(room)))
    products, bandwidth = gpus * gpu.products * shares.learning, gpus * gpu.bandwidth * shares.writing
    waiting, ends = list(lengths), []  # at which step of the engine each row alive ends
    now, step = 0.0, 0
    while waiting or ends:
        while waiting and len(ends) < most:
            heapq.heappush(ends, step + waiting.pop())
            now += 2 * model.weights * prompt / products
        # Until the next row ends nothing changes but the cache, which stands at its mean.
        count, steps = len(ends), max(1, ends[0] - step)
        moved = 2 * model.weights + count * cached * (prompt + mean / 2)
        now += steps * (moved / bandwidth + 2 * model.weights * count / products + STEP_S)
        step += steps
        while ends and ends[0] <= step:
            heapq.heappop(ends)
    return now


def writing_seconds(model: Model, gpu: Gpu, gpus: int, work: Work, shares: Shares) -> float:
    """Return when the last of all engines has written its share."""
    engines, lengths = max(1, gpus // span(model, gpu)), lengths_of(work)
    return max(engine_seconds(model, gpu, lengths[i::engines], work.prompt, shares) for i in range(engines))


def learning_seconds(model: Model, gpu: Gpu, gpus: int, work: Work, shares: Shares) -> tuple[float, str]:
    """Return the time of all epochs, and whether products or the gathers of split weights bound it."""
    lengths = lengths_of(work)
    tokens = sum(lengths) + work.samples * work.prompt
    models = 2 if work.critic else 1
    products = models * work.epochs * 6 * model.weights * tokens / (gpus * gpu.products * shares.learning)
    link = 0.7 * (gpu.link if gpus <= NODE else gpu.network)
    # Twice gathered, once scattered, in bf16, each micro-batch; under the products as far as those last.
    gathers = work.epochs * MICRO_BATCHES * 3 * 2 * model.weights / link
    return (products, "products") if products >= gathers else (gathers, "gathers")


def scoring_seconds(model: Model, gpu: Gpu, gpus: int, work: Work, shares: Shares) -> float:
    """Return the time of the passes that only look: policy, reference, reward model, and critic."""
    tokens = sum(lengths_of(work)) + work.samples * work.prompt
    return (4 if work.critic else 3) * 2 * model.weights * tokens / (gpus * gpu.products * shares.scoring)


def handing_seconds(model: Model, gpu: Gpu, gpus: int) -> float:
    """Return how long the weights take to the engines, at half the speed of the links."""
    return 2 * model.weights / (0.5 * gpu.link) + (2 * model.weights / (0.5 * gpu.network) if gpus > NODE else 0.0)


def iteration(model: Model, gpu: Gpu, gpus: int, work: Work, shares: Shares = Shares()) -> Seconds:
    """Return one iteration where the same GPUs write, score and learn by turns."""
    learning, bound = learning_seconds(model, gpu, gpus, work, shares)
    writing = writing_seconds(model, gpu, gpus, work, shares)
    scoring, handing = scoring_seconds(model, gpu, gpus, work, shares), handing_seconds(model, gpu, gpus)
    return Seconds(writing, scoring, learning, handing, bound)


def one_step_off(model: Model, gpu: Gpu, gpus: int, work: Work, shares: Shares = Shares()) -> tuple[float, int]:
    """Return the best split where some GPUs write while the others learn from before: seconds, and GPUs that write."""
    found: list[tuple[float, int]] = []
    whole = span(model, gpu)
    for share in (1 / 8, 1 / 4, 1 / 2, 3 / 4):
        write = int(gpus * share) // whole * whole
        if 0 < write < gpus:
            learn = gpus - write
            side = learning_seconds(model, gpu, learn, work, shares)[0] + scoring_seconds(
                model, gpu, learn, work, shares
            )
            slower = max(writing_seconds(model, gpu, write, work, shares), side)
            found.append((slower + handing_seconds(model, gpu, gpus), write))
    return min(found, default=(math.inf, 0))


def fits(model: Model, gpu: Gpu, gpus: int, work: Work) -> bool:
    """Return whether what trains, what stands still and an engine leave a fifth of the memory free."""
    trained = (2 if work.critic else 1) * TRAINED_BYTES * model.weights
    held = 2 * 2 * model.weights  # reference and reward model in bf16
    engine = 2 * model.weights / span(model, gpu)
    return (trained + held) / gpus + engine < 0.8 * gpu.memory


# -- beside what others published --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A figure of others: on half of the GPUs vLLM writes, a quarter each teaches the policy and the critic."""

    model: Model
    gpus: int
    seconds: float


#: OpenRLHF's README: an epoch of PPO over 1,024 prompts on A800s. The lengths are assumed: it gives none.
OPENRLHF = (
    Published(Model("7B", 6.7e9, 32, 2 * 32 * 128), 16, 471.11),
    Published(Model("13B", 13e9, 40, 2 * 40 * 128), 32, 608.93),
    Published(Model("34B", 34e9, 48, 2 * 8 * 128), 32, 1526.4),
    Published(Model("70B", 70e9, 80, 2 * 8 * 128), 32, 4488.53),
)
OPENRLHF_WORK = Work(1024, 1024, 1024, 1024, 1, True, 0.0)
OPENRLHF_SHARES = Shares(0.25, 0.3, 0.35)
#: verl's fully asynchronous mode over its colocated one, Qwen2.5-Math-7B on H20s; mean length and batch are assumed.
VERL = ((32, 2.66), (64, 1.92), (128, 2.35))
VERL_MODEL = Model("7.6B", 7.6e9, 28, 2 * 4 * 128)
VERL_WORK = Work(8192, 800, 3500, 28000, 1, False)


def openrlhf_seconds(one: Published) -> float:
    """Return the model's time for a published run."""
    half, quarter = one.gpus // 2, one.gpus // 4
    alone = replace(OPENRLHF_WORK, critic=False)  # policy and critic learn side by side
    learning = learning_seconds(one.model, A800, quarter, alone, OPENRLHF_SHARES)[0]
    scoring = 2 / 3 * scoring_seconds(one.model, A800, quarter, alone, OPENRLHF_SHARES)
    writing = writing_seconds(one.model, A800, half, OPENRLHF_WORK, OPENRLHF_SHARES)
    return writing + learning + scoring + handing_seconds(one.model, A800, one.gpus)


def check() -> Iterator[str]:
    """Say how far the model is off where others gave numbers."""
    yield "OpenRLHF, seconds an epoch over 1,024 prompts, A800; 1,024 + 1,024 tokens are assumed, README gives none"
    off = []
    for one in OPENRLHF:
        seconds = openrlhf_seconds(one)
        off.append(one.seconds / seconds)
        beside = f"model {seconds:6.0f}, published {one.seconds:6.0f}, x{off[-1]:.2f}"
        yield f"  {one.model.name:>5} on {one.gpus:3} GPUs: {beside}"
    yield f"  off by x{min(off):.2f} to x{max(off):.2f}, and more the larger the model: for ratios, not for promises"
    yield "verl, how much faster fully asynchronous is than colocated, 7.6B, H20; lengths and batch are assumed"
    misses = []
    for gpus, published in VERL:
        shares = Shares(0.35, 0.4, 0.4)
        together = iteration(VERL_MODEL, H20, gpus, VERL_WORK, shares).whole
        gain = together / one_step_off(VERL_MODEL, H20, gpus, VERL_WORK, shares)[0]
        misses.append(published / gain)
        yield f"  {gpus:3} GPUs: model x{gain:.2f}, published x{published:.2f}"
    yield f"  a miss of x{min(misses):.2f} to x{max(misses):.2f}: do not argue for asynchrony with this model"


# -- the table ---------------------------------------------------------------------------------------------------------


def table(models: Sequence[Model], gpus: Sequence[int], work: Work) -> Iterator[str]:
    """Say seconds an iteration by model and GPUs: by turns | with samples one step old."""
    yield "| H100s | " + " | ".join(map(str, gpus)) + " |"
    yield "|---|" + "---|" * len(gpus)
    for model in models:
        cells = []
        for count in gpus:
            if count < span(model, H100) or not fits(model, H100, count, work):
                cells.append("-")
                continue
            turns, (ahead, _) = iteration(model, H100, count, work), one_step_off(model, H100, count, work)
            mark = "*" if turns.bound == "gathers" else ""
            cells.append(
                f"{turns.whole:,.0f}{mark} / {ahead:,.0f}" if math.isfinite(ahead) else f"{turns.whole:,.0f}{mark}"
            )
        yield f"| {model.name} | " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print what the command line asks for."""
    parser = argparse.ArgumentParser(description="Seconds an iteration on many GPUs, by arithmetic.")
    parser.add_argument("--check", action="store_true", help="beside figures that others published")
    parser.add_argument("--model", choices=MODELS, action="append", help="default: all")
    parser.add_argument("--gpus", type=int, action="append", help="default: 8 to 512")
    for name in ("samples", "prompt", "mean", "longest", "epochs"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Work(), name))
    given = parser.parse_args(argv)
    if given.check:
        print("\n".join(check()))
        return
    work = Work(given.samples, given.prompt, given.mean, given.longest, given.epochs)
    print(
        f"PPO with a critic, {work.samples:,} samples, {work.prompt} + mean {work.mean} tokens, {work.epochs} epochs\n"
        "seconds an iteration, by turns / with samples one step old; * bound by gathers, - does not fit; arithmetic"
    )
    print("\n".join(table([MODELS[name] for name in given.model or MODELS], given.gpus or GPUS, work)))


if __name__ == "__main__":
    main()
