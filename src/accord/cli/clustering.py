"""``accord cluster``: a Ray cluster to train on, looked at or started on this machine."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from accord.cli.options import Json, Verbose
from accord.cli.talk import talking
from accord.errors import ResourceError

app = typer.Typer(no_args_is_help=True, help="A Ray cluster to train on: `accord run RECIPE scale.ray=auto`.")
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@app.command()
def up(
    ray: Annotated[
        str, typer.Option("--ray", help="Address of a cluster; auto: one that runs here, else one is started.")
    ] = "auto",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say what a Ray cluster has, and start one on this machine where none runs.

    It goes on until `accord cluster down`. Other machines join it with `ray start --address=HOST:6379`.

    \b
    Examples:
      accord cluster up
      accord run RECIPE scale.ray=auto scale.rollout_workers=4
    """
    with talking(json, verbose) as talk:
        from accord.cluster.connect import connected

        try:
            cluster = connected(ray, local=False)
        except ResourceError:
            if ray != "auto":
                raise
            _ray("start", "--head", "--disable-usage-stats", "--include-dashboard=false")
            cluster = connected(ray, local=False)
        nodes = [node for node in cluster.nodes() if node["Alive"]]
        found = {"nodes": len(nodes), "cpus": 0.0, "gpus": 0.0, "memory_gb": 0.0}
        for node in nodes:
            has = node["Resources"]
            found["cpus"] += has.get("CPU", 0)
            found["gpus"] += has.get("GPU", 0)
            found["memory_gb"] += has.get("memory", 0) / 1e9
        told = f"{found['nodes']} machine{'s' * (len(nodes) != 1)}, {found['cpus']:.0f} CPUs, {found['gpus']:.0f} GPUs"
        talk.result({key: round(value, 1) for key, value in found.items()}, text=told)


@app.command()
def down(json: Json = False, verbose: Verbose = False) -> None:
    """End the Ray processes of this machine, whoever started them.

    \b
    Example:
      accord cluster down
    """
    with talking(json, verbose) as talk:
        _ray("stop")
        talk.result({"ended": True}, text="no Ray process runs on this machine any more")


def _ray(*argv: str) -> None:
    from accord.cluster.connect import require_ray

    require_ray()
    done = subprocess.run([*RAY, *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ResourceError(f"ray {argv[0]} failed", why=(done.stderr or done.stdout).strip()[-400:])
