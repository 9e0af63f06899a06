"""A second device, pretended on the CPU, and the stages of Accord on it: ``python tests/pretended.py [NAME ...]``.

Its tensors hold their numbers in ordinary memory, say that they are on the device ``pretend``, and refuse what CUDA
refuses: an operation on tensors of two devices. So a tensor made on the wrong device fails here as on a GPU, with real
numbers in every loss and every sample, which must be those of the CPU. It registers a device with torch, hence a
process of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE = "pretend"
aten = torch.ops.aten
#: What CUDA does with tensors of two devices: copy, and read indices from the CPU (these arguments' places).
CROSSING: Mapping[Any, tuple[int, ...]] = {
    aten.copy_.default: (0, 1),
    aten.index.Tensor: (1,),
    aten.index_put_.default: (1,),
    aten.index_put.default: (1,),
    aten._index_put_impl_.default: (1,),
    aten._pack_padded_sequence.default: (1,),
    aten._pad_packed_sequence.default: (1,),
    aten.lstm.data: (1,),
}


class Pretended(torch.Tensor):
    """A tensor on the pretended device; ``held`` are its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> Pretended:
        made: Pretended = torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            layout=real.layout, device=f"{DEVICE}:0", requires_grad=real.requires_grad,
        )  # fmt: skip
        made.held = real
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()


class _Module:
    """What torch asks of a device's module."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]

    @staticmethod
    def is_available() -> bool:
        """No: its random numbers are the CPU's, and no library is to choose it by itself."""
        return False

    @staticmethod
    def is_initialized() -> bool:
        return False

    @staticmethod
    def device_count() -> int:
        return 0


class OnTheDevice(TorchDispatchMode):
    """Inside, tensors can be made on the device."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


class ListsToTheDevice(TorchFunctionMode):
    """Where torch makes tensors of lists it looks at no dispatch mode: here they are made on the CPU first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == DEVICE:
            return func(*args, **{k: v for k, v in kwargs.items() if k != "device"}).to(kwargs["device"])
        if func is torch.Tensor.__getitem__ and isinstance(args[1], list):
            return func(args[0], torch.tensor(args[1], dtype=torch.long))
        if func is torch.Tensor.__setitem__ and isinstance(args[1], list):
            return func(args[0], torch.tensor(args[1], dtype=torch.long), args[2])
        return func(*args, **kwargs)


def _leaves(x: Any) -> Iterator[Any]:
    """What an operation was given, or gave: tensors and numbers in tuples, lists and dicts of them.

    torch's own `tree_leaves` and `tree_map` know much more, and were two thirds of the time of these tests.
    """
    if isinstance(x, tuple | list):
        for one in x:
            yield from _leaves(one)
    elif isinstance(x, dict):
        yield from _leaves([*x.values()])
    else:
        yield x


def _mapped(f: Callable[[Any], Any], x: Any) -> Any:
    if isinstance(x, tuple | list):
        return type(x)([_mapped(f, one) for one in x])
    return {name: _mapped(f, one) for name, one in x.items()} if isinstance(x, dict) else f(x)


def _lstm_cell(input_NG: Any, hidden_NG: Any, cell_ND: Any, *biases_G: Any) -> tuple[Any, Any, Any]:
    """The kernel of one step of an LSTM, which torch has for GPUs alone."""
    gates_NG = sum((x for x in biases_G if x is not None), input_NG + hidden_NG)
    entry, forget, cell, out = gates_NG.chunk(4, dim=1)
    after_ND = forget.sigmoid() * cell_ND + entry.sigmoid() * cell.tanh()
    return out.sigmoid() * after_ND.tanh(), after_ND, gates_NG


def _run(op: Any, args: Any, kwargs: Any) -> Any:
    given = [x for x in _leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    wrapper = {id(x.held): x for x in given if isinstance(x, Pretended)}
    on_device, named = bool(wrapper), kwargs.get("device")
    if named is not None:
        on_device = torch.device(named).type == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu") if on_device else named}
    elif wrapper:
        _refuse_two_devices(op, args, kwargs)
    args, kwargs = _mapped(lambda x: x.held if isinstance(x, Pretended) else x, (args, kwargs))
    found = (_lstm_cell if op is aten._thnn_fused_lstm_cell.default else op)(*args, **kwargs)
    if not on_device or (op is aten.copy_.default and id(args[0]) not in wrapper):
        return found

    def wrapped(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return wrapper[id(x)] if id(x) in wrapper else Pretended(x)

    if op is aten._pack_padded_sequence.default:  # how many sequences reach each step stays on the CPU
        return wrapped(found[0]), found[1]
    return _mapped(wrapped, found)


def _refuse_two_devices(op: Any, args: Any, kwargs: Any) -> None:
    free = CROSSING.get(op, ())
    bound = [x for place, x in enumerate(args) if place not in free]
    for x in _leaves((bound, kwargs)):
        if isinstance(x, torch.Tensor) and not isinstance(x, Pretended) and x.dim():
            raise RuntimeError(f"{op} was given tensors on {DEVICE} and on the CPU")
    if op in CROSSING and op is not aten.copy_.default and not isinstance(args[0], Pretended):
        raise RuntimeError(f"{op} reads indices on {DEVICE} into a tensor on the CPU")


def on_both(stages: Any, bench: Any) -> None:
    """Run a scenario on the CPU and on the device: the same numbers, within rounding."""
    found = []
    for device in ("cpu", DEVICE):
        with tempfile.TemporaryDirectory() as folder:
            found.append(stages(bench(Path(folder), device)))
    here, there = (torch.tensor(numbers, dtype=torch.float64) for numbers in found)
    torch.testing.assert_close(there, here, rtol=2e-3, atol=2e-3)


def main(names: list[str]) -> None:
    """One line of JSON a scenario: its name, and what went wrong, or null."""
    warnings.simplefilter("ignore")
    torch.inference_mode = torch.no_grad  # type: ignore[misc, assignment]  # its tensors cannot be wrapped
    from stages import SCENARIOS, Bench

    _setup_privateuseone_for_python_backend(DEVICE, backend_module=_Module)
    with OnTheDevice(), ListsToTheDevice():
        for name in names or SCENARIOS:
            wrong = None
            try:
                on_both(SCENARIOS[name], Bench)
            except Exception:
                wrong = traceback.format_exc()
            print(json.dumps({"name": name, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
