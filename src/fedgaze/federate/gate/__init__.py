"""The gate: an update whose model looks at the wrong place is seen before it is merged."""

from fedgaze.federate.gate.check import check_gate
from fedgaze.federate.gate.gate import Decision, Gate
from fedgaze.federate.gate.registry import GROUP, GateMeasure, find_measures, gate_measures
from fedgaze.federate.gate.seen import Seen, Sight, Trial

__all__ = [
    "GROUP",
    "Decision",
    "Gate",
    "GateMeasure",
    "Seen",
    "Sight",
    "Trial",
    "check_gate",
    "find_measures",
    "gate_measures",
]
