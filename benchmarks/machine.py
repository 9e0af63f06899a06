"""Which machine the figures are from, and its bounds."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from typing import Any

from benchmarks import roofline

Block = dict[str, Any]


def block() -> Block:
    """Processor, cores, instruction sets, torch, date and the bounds of its matrix products."""
    flags, model = set(), platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            entries = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
        entries = {key.strip(): value.strip() for key, value in entries.items()}
        flags, model = set(entries.get("flags", "").split()), entries.get("model name", model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "amx_bf16": "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "torch": version("torch"),
        "date": datetime.date.today().isoformat(),
        "gflops": roofline.measured(),
    }


def sentence(found: Block) -> str:
    """The block in words, for the docs."""
    bf16 = "AMX bf16" if found["amx_bf16"] else "AVX512-bf16" if found["avx512_bf16"] else "no bf16"
    bounds = "; ".join(f"{shape}: f32 {g['f32']:,.0f}, bf16 {g['bf16']:,.0f}" for shape, g in found["gflops"].items())
    return (
        f"{found['date']}, {found['cpu']}, {found['cores']} cores, {bf16}, torch {found['torch']}. "
        f"Matrix products in GFLOP/s: {bounds}."
    )
