"""The way to a Ray cluster: one that runs, one at an address, or one on this machine for as long as this process."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from accord.errors import ResourceError, UsageError
from accord.mirror import MIRROR_URL
from accord.rollout.vllm_env import VARIABLE as VLLM_ENVIRONMENT

START_S = 180.0  # of one actor on a busy machine: it imports torch


def require_ray() -> Any:
    """Return the `ray` module. Raises UsageError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise UsageError("Ray is not installed", hint="pip install 'accord[ray]'") from None
    return ray


def connected(address: str, *, local: bool = True) -> Any:
    """Return the `ray` module, connected: to the cluster at an address, or with "auto" to one that runs here.

    Where none runs and ``local`` is set, one is made that ends with this process.

    Raises UsageError where Ray is not installed, ResourceError where nothing answers at the address.
    """
    ray = require_ray()
    if ray.is_initialized():
        return ray
    # Workers find Accord, and a user's own modules, where this process does.
    passed = {name: os.environ[name] for name in (MIRROR_URL, VLLM_ENVIRONMENT) if name in os.environ}
    quietly: dict[str, Any] = {
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **passed}},
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    with contextlib.suppress(ConnectionError):
        ray.init(address=address, **quietly)
        return ray
    if address != "auto" or not local:
        raise ResourceError(f"no Ray cluster answers at {address}", hint="accord cluster up, or scale.ray=auto")
    ray.init(address="local", include_dashboard=False, **quietly)
    return ray


def place(ray: Any) -> dict[str, Any]:
    """Return what one process asks of the cluster: a GPU of its own where there are any, else no share of CPUs.

    Ray counts CPUs and divides none: processes share them as the system shares them.
    """
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    return {"num_gpus": 1 if has_gpus else 0, "num_cpus": 0, "scheduling_strategy": "SPREAD"}
