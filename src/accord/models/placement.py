"""Where a model lives and what its matrix products run in: chosen once, when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from accord.config import Training
from accord.errors import UsageError
from accord.models.precision import compute_dtype, exact_cuda


@dataclass(frozen=True)
class Placement:
    """The two choices of a recipe, ``precision`` and ``device``, and what they mean on this machine.

    Weights stay fp32 wherever they are. A model takes its inputs from anywhere, and what it says of tokens and texts
    comes back to the CPU: losses and statistics over these few numbers know no device.
    """

    precision: str = "auto"
    where: str = "auto"

    @classmethod
    def of(cls, config: Training) -> Placement:
        """Return what a stage's settings say."""
        return cls(config.precision, config.device)

    @property
    def device(self) -> torch.device:
        """Raises UsageError where CUDA is asked for and there is none."""
        has_cuda = torch.cuda.is_available()
        device = torch.device(self.where if self.where != "auto" else "cuda" if has_cuda else "cpu")
        if device.type == "cuda" and not has_cuda:
            raise UsageError(
                "device is cuda, and there is no CUDA here",
                why="no GPU is visible" if torch.version.cuda else "the installed torch is built without CUDA",
                hint="set device=auto or device=cpu; on a machine with a GPU install torch's CUDA build",
            )
        if device.type == "cuda":
            # Here, where every model passes: a stage that forgot it would train in another precision in silence.
            exact_cuda()
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products run in."""
        return compute_dtype(self.precision, self.device.type)

    def facts(self) -> dict[str, str]:
        """Return both by name, for the record of a run."""
        device = self.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {"precision": str(self.dtype).removeprefix("torch."), "device": name}


#: The best of the machine; and what every machine has.
AUTO, PLAIN = Placement(), Placement("fp32", "cpu")
