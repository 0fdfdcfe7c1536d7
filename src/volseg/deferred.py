"""Modules of other packages that are loaded when they are first used, not when they are first imported.

A library imports much that most programs never use. `importlib.util.LazyLoader` would put a module off too, but loads
it as soon as a second import statement names it; here importing a module, however often, does not load it, and taking
anything from it does.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any

_TAKEN = ("__version__", "__all__", "__path__")
"""Names between underscores whose reading is use of a module; others only describe it. `__path__`, which packages alone
have, is read where a module within the package is imported."""

_loading = RLock()
_own_process = False


def own_this_process() -> None:
    """Say that nothing but volseg runs in this process, so that imports may be put off."""
    global _own_process
    _own_process = True


def put_off(*names: str, until: Sequence[str] = ()) -> None:
    """Let each of the modules be loaded when something is taken from one of them; then all of them are.

    Modules that are already imported, or are not installed, are left as they are; in another's process all are.

    until  modules whose import counts as use as well; none of them is imported yet
    """
    if _own_process:
        sys.meta_path.insert(0, _Finder(names, frozenset(until)))


def is_put_off(name: str) -> bool:
    """Whether a module is imported, and nothing of it was used."""
    return isinstance(sys.modules.get(name), _PutOff)


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """Import what follows as if the package `name` were not installed.

    Not where it is imported already, and not in another's process.
    """
    if not _own_process or name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


class _Finder(importlib.abc.MetaPathFinder):
    """Gives the modules that are put off together a loader that loads nothing yet."""

    def __init__(self, names: Sequence[str], until: frozenset[str]) -> None:
        self._names, self._until = names, until

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in self._until:
            self.load_all()
        if name not in self._names:
            return None
        real = PathFinder.find_spec(name, path)
        if real is None or real.loader is None:
            return None
        return ModuleSpec(name, _Later(self, real), origin=real.origin)

    def load_all(self) -> None:
        """Load those that were imported and put off; later imports load at once."""
        with _loading:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            for name in self._names:
                module = sys.modules.get(name)
                if isinstance(module, _PutOff):
                    _load(module)


class _Later(importlib.abc.Loader):
    """Makes a module that loads itself, by the loader of its real spec."""

    def __init__(self, finder: _Finder, real: ModuleSpec) -> None:
        self.finder, self.real = finder, real

    def create_module(self, spec: ModuleSpec) -> None:
        """An ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        """Put off what the real loader would do now."""
        module.__class__ = _PutOff


class _PutOff(ModuleType):
    """A module of which nothing has been taken."""

    def __getattr__(self, name: str) -> Any:
        spec = object.__getattribute__(self, "__spec__")
        later = spec.loader
        described = name not in _TAKEN or (name == "__path__" and later.real.submodule_search_locations is None)
        if name.startswith("__") and described:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        later.finder.load_all()
        return getattr(self, name)


def _load(module: _PutOff) -> None:
    """Make it the module that it stands for. Raises what the module raises; then it is no longer imported."""
    real = module.__spec__.loader.real  # type: ignore[union-attr]
    whole = importlib.util.module_from_spec(real)
    module.__dict__.update(whole.__dict__)
    module.__class__ = ModuleType  # type: ignore[assignment]
    try:
        real.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(module.__name__, None)
        raise
