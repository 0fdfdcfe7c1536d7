"""A torch module that a user names: a function or class in a file of theirs, or a class of MONAI."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from volseg.errors import ConfigError, first_line
from volseg.text import read_text

_NETS = "monai.networks.nets"
_CLASSES = ("out_channels", "num_classes", "n_classes", "classes")
"""What functions and classes call the number of channels of the logits."""


def module_named(name: str, arguments: str | None, in_channels: int, classes: int) -> nn.Module:
    """The module that ``FILE.py:name`` makes, or that class of `monai.networks.nets`.

    Where its signature has them, it is called with `in_channels`; with `classes` as out_channels, num_classes,
    n_classes or classes; and with spatial_dims = 3. What a file has under the name may be a module, too. The file is
    run.

    arguments  further ones, TOML as between the braces of an inline table, or a TOML file; they override the others

    Raises ConfigError, which says what is wrong, where there is no such name, or making the module fails.
    """
    maker = _from_file(name) if ".py" in name else _from_monai(name, f"--network {name}")
    given = _parsed(arguments)
    if isinstance(maker, nn.Module):
        if given:
            raise ConfigError(f"--network {name}: is a module already, which takes no --network-args; leave them out")
        return maker
    try:
        accepted = inspect.signature(maker).parameters
        given = _usual(set(accepted), in_channels, classes) | given
        module = maker(**given)
    except Exception as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise ConfigError(
            f"--network {name}: making it with ({shown}) failed: {type(error).__name__}: {first_line(error)}; give "
            "what it needs with --network-args"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"--network {name}: gives a {type(module).__name__}, no torch.nn.Module")
    return module


def monai_network(name: str, arguments: Mapping[str, Any], where: str) -> nn.Module:
    """A class of `monai.networks.nets` made with `arguments`, in evaluation mode; `where` begins the messages.

    Raises ConfigError where MONAI is not installed, has no such class, or cannot make it so.
    """
    maker = _from_monai(name, where)
    try:
        module = maker(**arguments)
    except Exception as error:
        raise ConfigError(
            f"{where}: making a {name} failed: {type(error).__name__}: {first_line(error)}; its arguments are those of "
            "another version of MONAI, or wrong"
        ) from error
    assert isinstance(module, nn.Module), "classes of networks make modules"
    return module.eval()


def _usual(accepted: set[str], in_channels: int, classes: int) -> dict[str, Any]:
    """Arguments that a function takes which says so."""
    values: dict[str, Any] = {"in_channels": in_channels, "spatial_dims": 3}
    values |= {name: classes for name in _CLASSES[:1] if name in accepted} or {
        name: classes for name in _CLASSES if name in accepted
    }
    return {name: value for name, value in values.items() if name in accepted}


def _parsed(arguments: str | None) -> dict[str, Any]:
    if not arguments:
        return {}
    text = read_text(Path(arguments)) if arguments.endswith(".toml") and Path(arguments).is_file() else None
    try:
        parsed = tomllib.loads(text) if text is not None else tomllib.loads(f"given = {{ {arguments} }}")["given"]
    except ValueError as error:
        raise ConfigError(
            f"--network-args {arguments}: is not TOML ({error}); write key = value, key = value, texts in quotes, such "
            "as: channels = [16, 32, 64], strides = [2, 2], act = 'RELU'"
        ) from None
    return dict(parsed)


def _from_file(name: str) -> Callable[..., Any] | nn.Module:
    place, colon, wanted = name.rpartition(":")
    if not colon or not place.endswith(".py") or not wanted.isidentifier():
        raise ConfigError(f"--network {name}: name a function or class in the file, such as network.py:make")
    path = Path(place)
    if not path.is_file():
        raise ConfigError(f"--network {name}: there is no file {path}")
    found = importlib.util.spec_from_file_location(f"volseg_network_{path.stem}", path)
    assert found is not None
    assert found.loader is not None
    loaded = importlib.util.module_from_spec(found)
    try:
        with _beside(path.parent):
            found.loader.exec_module(loaded)
    except Exception as error:
        raise ConfigError(
            f"--network {name}: running {path} failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    made: Callable[..., Any] | nn.Module = _attribute(loaded, wanted, f"--network {name}: {path}")
    return made


def _from_monai(name: str, where: str) -> type[nn.Module]:
    try:
        nets = importlib.import_module(_NETS)
    except ImportError as error:
        other = ", or give FILE.py:name" if where.startswith("--") else ""
        raise ConfigError(
            f"{where}: {name} is a class of MONAI, which cannot be imported here ({first_line(error)}); install it "
            f"(pip install monai){other}"
        ) from None
    named = _attribute(nets, name, f"{where}: {_NETS}")
    if not (isinstance(named, type) and issubclass(named, nn.Module)):
        raise ConfigError(f"{where}: {_NETS}.{name} is no class of a network")
    return named


def _attribute(home: Any, wanted: str, where: str) -> Any:
    found = getattr(home, wanted, None)
    if callable(found):
        return found
    names = [name for name in vars(home) if not name.startswith("_") and callable(getattr(home, name))]
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names[:8]) or 'none'}"
    raise ConfigError(f"{where} has no function or class {wanted}; {hint}")


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Within, a file can import those that lie beside it."""
    sys.path.insert(0, str(folder.absolute()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.absolute()))
