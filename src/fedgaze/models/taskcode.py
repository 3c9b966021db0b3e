"""Load the Python files of a task's own directory.

A task brings files such as ``models.py`` and ``data_preparation.py``. Two tasks in one process both
have a ``models.py``, so neither may take that name in ``sys.modules``, nor may ``sys.path`` grow.
Each directory becomes a package of its own, with a name made from its path, and inside it
``import layers`` finds the directory's ``layers.py`` first, as it would for a script that lies
there.
"""

import builtins
import hashlib
import importlib
import importlib.util
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from fedgaze.errors import FedgazeError, nearest

__all__ = ["belongs_to_task", "last_own_line", "task_module", "task_object"]

_PREFIX = "fedgaze_task_"
_loading = threading.RLock()


def task_module(directory: Path, dotted: str) -> ModuleType:
    """Import ``dotted`` (``models``, ``nets.small``) from a task's directory.

    A second call gives the same module; two directories give two modules, whatever their names.

    Args:
        directory: The task's own directory.
        dotted: Where the file lies in it, with dots for folders and no ``.py``.

    Raises:
        FedgazeError: There is no such file, or importing it fails; the sentence names the line.
    """
    directory = directory.resolve()
    *folders, stem = parts = dotted.split(".")
    base = directory.joinpath(*folders)
    if not all(part.isidentifier() for part in parts) or not (
        (base / f"{stem}.py").is_file() or (base / stem / "__init__.py").is_file()
    ):
        there = [file.stem for file in sorted(base.glob("*.py"))] if base.is_dir() else []
        raise FedgazeError(
            f"{'/'.join(parts)}.py is not a file in {directory}{nearest(stem, there)}"
        )
    with _loading:
        package = _package(directory)
        try:
            return importlib.import_module(f"{package}.{dotted}")
        except SyntaxError as error:
            where = f"{error.filename or dotted}, line {error.lineno}"
            raise FedgazeError(f"{where}, is not valid Python: {error.msg}") from error
        # The file may raise anything at all, and call sys.exit() where it guards no main block.
        except (Exception, SystemExit) as error:
            where = last_own_line(error, directory) or str(base / f"{stem}.py")
            raise FedgazeError(
                f"{where}, could not be imported: {type(error).__name__}: {error}"
            ) from error


def task_object(directory: Path, dotted: str) -> Any:
    """Get what a task's file defines, such as ``data_preparation.load``.

    Only a public name right in the module counts. What its attributes lead to (``os.system`` by
    an ``import os``) cannot be reached, since every part but the last is a file or a folder.

    Raises:
        FedgazeError: The file or the name does not exist, or the file was imported with an error.
    """
    module_name, _, name = dotted.rpartition(".")
    if not module_name or name.startswith("_"):
        raise FedgazeError(
            f"'{dotted}' does not name a public object in a file of the task, as 'models.Net' does"
        )
    module = task_module(directory, module_name)
    if name not in vars(module):
        own = [key for key, value in vars(module).items() if belongs_to_task(value)]
        raise FedgazeError(
            f"{module.__file__} defines no '{name}'{nearest(name, own)}; it defines "
            f"{', '.join(sorted(own)) or 'no class and no function'}"
        )
    return vars(module)[name]


def belongs_to_task(value: object) -> bool:
    """Whether a class or function was defined in a task's own file, not imported into it."""
    return str(getattr(value, "__module__", "")).startswith(_PREFIX)


def last_own_line(error: BaseException, directory: Path) -> str | None:
    """Name the innermost line of the task's own files that an exception went through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_relative_to(directory.resolve()):
            return f"{frame.filename}, line {frame.lineno}"
    return None


def _package(directory: Path) -> str:
    """Return the name of the package that stands for a directory, made if it is the first time."""
    name = _PREFIX + hashlib.sha256(str(directory).encode()).hexdigest()[:16]
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(directory)]
        sys.modules[name] = package
        if not any(isinstance(finder, _TaskFinder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _TaskFinder())
    # Files may have been written since Python last listed the folder.
    importlib.invalidate_caches()
    return name


class _TaskFinder:
    """Finds modules of task packages, and loads them so that they see their siblings."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(_PREFIX):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _TaskLoader(spec.loader.name, spec.loader.path)
        return spec


class _TaskLoader(SourceFileLoader):
    """Gives a module an ``import`` statement that looks in the task's directory first."""

    def exec_module(self, module: ModuleType) -> None:
        package = module.__name__.partition(".")[0]
        # A module's globals choose its builtins, so imports inside functions are covered as well.
        module.__dict__["__builtins__"] = {
            **vars(builtins),
            "__import__": _sibling_import(package),
        }
        super().exec_module(module)


def _sibling_import(package: str) -> Any:
    root = Path(sys.modules[package].__path__[0])

    def import_(
        name: str,
        globals_: Mapping[str, object] | None = None,
        locals_: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if level == 0 and _is_sibling(root, name.partition(".")[0]):
            if fromlist:
                return builtins.__import__(f"{package}.{name}", None, None, fromlist)
            importlib.import_module(f"{package}.{name}")
            return sys.modules[f"{package}.{name.partition('.')[0]}"]
        return builtins.__import__(name, globals_, locals_, fromlist or (), level)

    return import_


def _is_sibling(root: Path, top: str) -> bool:
    """Whether a top-level name means a file or folder beside the task's files.

    A folder without ``__init__.py`` gives way to an installed package, as it does in Python: a
    folder ``datasets`` full of pictures must not hide the library of that name.
    """
    if (root / f"{top}.py").is_file() or (root / top / "__init__.py").is_file():
        return True
    if not (root / top).is_dir() or top in sys.modules:
        return False
    return importlib.util.find_spec(top) is None
