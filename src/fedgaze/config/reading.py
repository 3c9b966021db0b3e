"""A task as people write it, in YAML and ``key=value`` words: checked, or told what is wrong."""

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fedgaze.config.task import Task
from fedgaze.errors import FedgazeError, nearest

__all__ = ["load_task", "parse_task", "read_values", "sentence_of"]


def load_task(path: Path, overrides: Sequence[str] = ()) -> Task:
    """Read a task file, apply ``key=value`` overrides, resolve interpolations, validate.

    Args:
        path: A YAML file. Its folder, or the folder above when it is called ``conf``, is the
            task's own directory.
        overrides: Words such as ``xai.layer=conv2`` or ``num_rounds=3``; values are YAML.

    Raises:
        FedgazeError: The file is missing or no YAML mapping, an interpolation leads nowhere, or a
            key or value is not of the schema.
    """
    if not path.is_file():
        raise FedgazeError(f"{path}: no such file; `fedgaze init DIR` writes a starter task")
    values = read_values(path, overrides, "a task", "task_id: x", "num_rounds=3")
    directory = path.resolve().parent
    return parse_task(values, directory.parent if directory.name == "conf" else directory)


def read_values(
    path: Path | Mapping[str, Any],
    overrides: Sequence[str],
    what: str,
    example: str,
    override: str,
) -> Any:
    """Read a YAML file, apply ``key=value`` overrides, resolve interpolations.

    Args:
        path: The file, or what would stand in one.
        overrides: Words such as ``num_rounds=3``; values are YAML.
        what: It holds, for people: ``a task``.
        example: Of its keys and values.
        override: An example of an override.

    Raises:
        FedgazeError: The file is missing or no YAML mapping, or an interpolation leads nowhere.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for word in overrides:
        if "=" not in word:
            raise FedgazeError(f"'{word}' is not of the form key=value, such as {override}")
    where = path if isinstance(path, Path) else "the command line"
    try:
        read = OmegaConf.load(path) if isinstance(path, Path) else OmegaConf.create(dict(path))
        if not isinstance(read, DictConfig):
            raise FedgazeError(f"{path}: {what} is a mapping of keys to values, such as {example}")
        config = OmegaConf.merge(read, OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OSError as error:
        raise FedgazeError(f"{path} cannot be read: {error.strerror}") from None
    except YAMLError as error:
        raise FedgazeError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    except (OmegaConfBaseException, UnicodeDecodeError) as error:
        raise FedgazeError(f"{where}: {str(error).splitlines()[0]}") from None


def parse_task(values: Any, directory: Path | None = None) -> Task:
    """Validate plain values as a task.

    Raises:
        FedgazeError: A key or value is not of the schema.
    """
    try:
        task = Task.model_validate(values)
    except ValidationError as error:
        raise FedgazeError(sentence_of(error, Task)) from None
    return task.in_directory(directory)


# What pydantic says for programmers, as a person who writes a task would say it.
_ALLOWED = {
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "string_pattern_mismatch": "a name of letters, digits, '.', '_' and '-'",
    "byte_size": "a size such as 512MiB or 2GiB",
    "union": "a name, a whole number or a list of these",
}
_UNION = {"str", "int", "list[union[str,int]]"}


def sentence_of(error: ValidationError, schema: type[BaseModel]) -> str:
    """Say the first thing that is wrong, and how many more there are.

    Args:
        error: Of validating something.
        schema: What it should have been.
    """
    problems = error.errors(include_url=False)
    # An unknown key explains a missing one, so it is told first.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    keys = [part for part in first["loc"] if part not in _UNION]
    name = ".".join(str(key) for key in keys)
    secret = {"wandb", "storage"}.intersection(first["loc"])
    value = "***" if secret else first["input"]
    if first["type"] == "extra_forbidden":
        allowed = _keys(first["loc"][:-1], schema)
        text = f"unknown key '{name}'={value!r}{nearest(str(keys[-1]), allowed)}"
        if "did you mean" not in text:
            text += f"; allowed are {', '.join(allowed)}"
    elif first["type"] == "missing":
        text = f"the key '{name}' is missing"
    elif first["type"] == "literal_error":
        allowed = list(_literals(first["ctx"]["expected"]))
        text = f"{name}={value}: allowed are {', '.join(allowed)}{nearest(str(value), allowed)}"
    elif first["type"] in _ALLOWED or len(keys) < len(first["loc"]):
        text = f"{name}={value!r}: {_ALLOWED.get(first['type'], _ALLOWED['union'])} is allowed"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        text = f"{name}={value!r}: {reason[0].lower()}{reason[1:]}" if name else reason
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")


def _literals(expected: str) -> list[str]:
    return [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]


def _keys(path: Sequence[str | int], section: type[BaseModel]) -> list[str]:
    """The keys allowed in the section that a path of keys leads to."""
    for key in path:
        field = next((f for n, f in section.model_fields.items() if key in (n, f.alias)), None)
        if field is None:
            break
        section = next(filter(_is_section, _members(field.annotation)), section)
    return sorted(field.alias or name for name, field in section.model_fields.items())


def _members(annotation: Any) -> Mapping[Any, None]:
    union = get_origin(annotation) in (Union, types.UnionType)
    return dict.fromkeys(get_args(annotation) if union else [annotation])


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
