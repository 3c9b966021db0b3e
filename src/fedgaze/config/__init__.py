"""The one schema of a task: read from YAML by OmegaConf, validated by pydantic.

A task is one YAML file and, on the command line, ``key=value`` words that overrule it.
:func:`load_task` returns it checked, or raises one sentence that names the key, the value and the
nearest right one. What only the running task can know (does the model have this layer?) is checked
by :func:`fedgaze.federate.prepare`, also before anything is written.
"""

from fedgaze.config.reading import load_task, parse_task, read_values, sentence_of
from fedgaze.config.sections import (
    BehaviourSpec,
    ContributionSpec,
    DatasetSpec,
    GateSpec,
    ModelSpec,
    PlantSpec,
    PrivacySpec,
    SelectionSpec,
    Share,
    StrategySpec,
    XaiSpec,
)
from fedgaze.config.task import Task

__all__ = [
    "BehaviourSpec",
    "ContributionSpec",
    "DatasetSpec",
    "GateSpec",
    "ModelSpec",
    "PlantSpec",
    "PrivacySpec",
    "SelectionSpec",
    "Share",
    "StrategySpec",
    "Task",
    "XaiSpec",
    "load_task",
    "parse_task",
    "read_values",
    "sentence_of",
]
