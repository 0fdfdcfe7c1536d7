"""Checkpoints of others read without running anything that they bring.

A pickle is a program. torch's reader for weights runs none but tensors' own constructors; what nnU-Net stores besides,
numbers of numpy, is added here by name, each built by a function of this file that can do nothing else.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volseg.errors import CheckpointError, first_line

_NUMBERS = "?bBhHiIlLqQefd"
_REFUSED = re.compile(r"GLOBAL (\S+)")


def read_checkpoint(path: Path, name: str) -> Any:
    """What a file of `torch.save` holds, its tensors on the CPU; `name` begins the messages.

    Raises CheckpointError where it cannot be read, and, by name, where its pickle asks for anything but tensors, plain
    Python values and numpy's numbers: nothing of it has run then.
    """
    try:
        with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other protocols and formats: what cannot be read is refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        asked = _REFUSED.search(str(error))
        what = f"asks for {asked[1]}" if asked else f"cannot be read as one ({_reason(error)})"
        raise CheckpointError(
            f"{name}: refused, nothing of it was run: a checkpoint may hold tensors, numbers and plain values, but its "
            f"pickle {what}; take it from whom you trust, load it there and save its weights alone with torch.save"
        ) from None
    except RuntimeError as error:
        archive = "TorchScript" in str(error)
        what = "a TorchScript archive, which holds a program" if archive else f"no checkpoint ({first_line(error)})"
        raise CheckpointError(f"{name}: {what}; save the state dict of its module with torch.save") from None
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{name}: cannot be read as a checkpoint ({first_line(error)}); is it whole?") from None


def tensors_in(values: Any, name: str) -> dict[str, Tensor]:
    """The tensors of a state dict, without the prefixes of torch.compile and of training on several devices.

    Raises CheckpointError where it is none, or holds anything but tensors.
    """
    if not isinstance(values, Mapping) or not values:
        raise CheckpointError(f"{name}: holds no weights (a table of tensors)")
    tensors = {}
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{name}: {key!r} among its weights is no tensor but {type(value).__name__}")
        tensors[re.sub(r"^(?:module\.|_orig_mod\.)+", "", key)] = value
    return tensors


def _reason(error: BaseException) -> str:
    """The line of torch's message that says what is wrong; the first one recommends to load it all the same."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in reversed(lines[:-1] or lines) if "weights_only" not in line), first_line(error))


def _scalar(dtype: np.dtype[Any], data: Any = b"") -> Any:
    """A number of numpy, as it pickles itself."""
    if not isinstance(dtype, np.dtype) or dtype.char not in _NUMBERS or type(data) is not bytes:
        raise pickle.UnpicklingError("a number of numpy that is none")
    return np.frombuffer(data, dtype, count=1)[0]


def _dtype(name: Any, *options: Any) -> np.dtype[Any]:
    """A number's type, as numpy pickles it: a name such as f8."""
    if type(name) is not str or not re.fullmatch(r"[biufc?]\d{0,2}", name):
        raise pickle.UnpicklingError(f"a type of numpy that is no number's: {name!r}")
    return np.dtype(name)


def _allowed() -> list[Any]:
    """What a pickle may name beside what torch allows, each with what stands for it here."""
    types = {type(np.dtype(char)) for char in _NUMBERS}
    return [
        (_scalar, "numpy.core.multiarray.scalar"),
        (_scalar, "numpy._core.multiarray.scalar"),
        (_dtype, "numpy.dtype"),
        *sorted(types, key=lambda kind: kind.__name__),
    ]
