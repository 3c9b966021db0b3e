"""Which of a task's own files another one needs: what its ``import`` statements lead to."""

import ast
from collections.abc import Iterator
from pathlib import Path

__all__ = ["own_files"]


def own_files(directory: Path, dotted: str) -> list[Path]:
    """Find the Python files of a directory that a module of it imports, directly or not.

    Imports inside functions count; what is imported by a name made up at run time cannot be seen.

    Args:
        directory: The task's own directory.
        dotted: The module, such as ``models`` or ``nets.small``.

    Returns:
        Paths relative to the directory, in alphabetic order; empty where there is no such module.
    """
    found: set[Path] = set()
    waiting = [tuple(dotted.split("."))]
    while waiting:
        for file in _files(directory, waiting.pop()):
            if file not in found:
                found.add(file)
                waiting += _imports(directory, file)
    return sorted(found)


def _files(directory: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """The files that importing a dotted name runs: those of the packages on the way, and its own.

    A part that is no file is a name inside the module before it, or of another library.
    """
    for count in range(1, len(parts) + 1):
        base = Path(*parts[:count])
        for file in (base / "__init__.py", base.with_suffix(".py")):
            if (directory / file).is_file():
                yield file
                break


def _imports(directory: Path, file: Path) -> Iterator[tuple[str, ...]]:
    try:
        tree = ast.parse((directory / file).read_bytes())
    except (SyntaxError, ValueError):
        return  # whoever imports it is told
    package = file.parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(each.name.split(".")) for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            start: tuple[str, ...] = ()
            if node.level:  # one dot is the file's own package, each further one that above it
                start = package[: len(package) - node.level + 1]
            base = (*start, *(node.module or "").split(".")) if node.module else start
            yield from ((*base, each.name) for each in node.names)
