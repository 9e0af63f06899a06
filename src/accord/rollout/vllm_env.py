"""vLLM's own Python environment: where it is, whether it is fit, and how it is made.

vLLM and Accord cannot share one (their bounds on transformers and fastapi exclude each other), so a process of its own
draws with it: `accord.rollout.vllm`. ``ACCORD_VLLM`` names another environment than the one made here.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from accord.errors import ResourceError
from accord.files import remove
from accord.progress import Log, quiet

VARIABLE = "ACCORD_VLLM"
VERSION = "0.32.0"  # of vLLM: the reload and its mends are tried with this one
PINNED = Path(__file__).with_name("vllm_requirements.txt")
PYTHONS = ((3, 11), (3, 14))
SIZE_GB = 3.5  # of the environment, about
LOOK_S, MAKE_S = 300.0, 3600.0


@dataclass(frozen=True)
class VllmEnvironment:
    """A folder with a Python that has vLLM, if it is there."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def exists(self) -> bool:
        return self.python.exists()

    def version(self) -> str:
        """Return the version of vLLM in it, which is loaded for that: installed is not yet fit for this processor.

        Raises ResourceError where it does not load.
        """
        code = "import vllm; print(vllm.__version__)"
        quietly = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
        argv = [str(self.python), "-I", "-c", code]
        try:
            said = subprocess.run(argv, capture_output=True, text=True, timeout=LOOK_S, env=quietly, check=False)
        except subprocess.TimeoutExpired:
            raise ResourceError(f"vLLM did not load in {LOOK_S:.0f} s", where=str(self.folder)) from None
        if said.returncode:
            raise ResourceError("vLLM does not load", where=str(self.folder), why=said.stderr.strip()[-400:])
        return said.stdout.split()[-1].partition("+")[0]

    def make(self, log: Log = quiet) -> None:
        """Make it from the pinned list, by pip. Raises ResourceError where that fails; nothing half made stays."""
        if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
            raise ResourceError(f"vLLM {VERSION} has no wheel for Python {platform.python_version()}")
        aside = self.folder.with_name(f".{self.folder.name}.partial")
        remove(aside)
        log(0.0, f"installing vLLM {VERSION} into {self.folder}: minutes, and about {SIZE_GB:.0f} GB")
        try:
            venv.create(aside, with_pip=True)
            # The list is whole: what vLLM names beside it (vision, audio) is left out, as it does not load beside the
            # CPU build of torch.
            argv = [str(aside / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
            argv += ["--no-deps", "--requirement", str(PINNED)]
            said = subprocess.run(argv, capture_output=True, text=True, timeout=MAKE_S, check=False)
            if said.returncode:
                raise ResourceError("pip could not install vLLM", where=str(PINNED), why=said.stderr.strip()[-400:])
            remove(self.folder)
            aside.replace(self.folder)
        finally:
            remove(aside)


def vllm_environment() -> VllmEnvironment:
    """Return the environment that is named by ``ACCORD_VLLM``, else Accord's own in the user's cache."""
    if named := os.environ.get(VARIABLE):
        return VllmEnvironment(Path(named))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return VllmEnvironment(cache / "accord" / f"vllm-{VERSION}")
