"""The laboratory: the gate beside other defences, on the same rounds."""

from fedgaze.federate.lab.defences import (
    DEFENCES,
    Defence,
    Defend,
    FoolsGold,
    Opinion,
    RoundView,
    find_defence,
    merged,
)
from fedgaze.federate.lab.plan import GATE, Cell, Plan, Setting, parse_plan, read_plan
from fedgaze.federate.lab.runner import LabFolder, run_cells
from fedgaze.federate.lab.scenarios import BEHAVIOURS
from fedgaze.federate.lab.written import write_results

__all__ = [
    "BEHAVIOURS",
    "DEFENCES",
    "GATE",
    "Cell",
    "Defence",
    "Defend",
    "FoolsGold",
    "LabFolder",
    "Opinion",
    "Plan",
    "RoundView",
    "Setting",
    "find_defence",
    "merged",
    "parse_plan",
    "read_plan",
    "run_cells",
    "write_results",
]
