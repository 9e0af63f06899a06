"""How fast this machine multiplies matrices: the bound of every row. ``python -m benchmarks.roofline``"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

#: rows x inner x columns: a square one, the vocabulary head of `tiny` in a training step, and in a decoding step.
SHAPES = {
    "square 2048": (2048, 2048, 2048),
    "tiny head, training": (3072, 256, 8192),
    "tiny head, decoding": (32, 256, 8192),
}


def measured() -> dict[str, dict[str, float]]:
    """GFLOP/s by shape and precision, measured in a process of its own: this one stays without torch."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.roofline"], capture_output=True, text=True, check=True)
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def gflops(rows: int, inner: int, columns: int, precision: str, runs: int = 7) -> float:
    """``(rows, inner) @ (inner, columns)`` by PyTorch's own product or ours, the faster: medians of several timings."""
    import torch

    from accord.algo.product import product

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
    left, weight = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    flops = 2 * rows * inner * columns
    repeats = max(1, int(2e9 / flops))  # 20 ms or more
    best = 0.0
    with torch.inference_mode():
        for multiply in (torch.nn.functional.linear, product):
            multiply(left, weight)
            found = []
            for _ in range(runs):
                start = time.perf_counter()
                for _ in range(repeats):
                    multiply(left, weight)
                found.append(repeats * flops / (time.perf_counter() - start) / 1e9)
            best = max(best, statistics.median(found))
    return round(best, 1)


def main() -> None:
    """Print the bounds as one line of JSON."""
    import torch

    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "2")))
    print(json.dumps({name: {p: gflops(*shape, p) for p in ("f32", "bf16")} for name, shape in SHAPES.items()}))


if __name__ == "__main__":
    main()
