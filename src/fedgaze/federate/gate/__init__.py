"""The gate: an update whose model looks at the wrong place is seen before it is merged."""

from fedgaze.federate.gate.check import check_gate
from fedgaze.federate.gate.counted import Counted, count
from fedgaze.federate.gate.gate import Decision, Gate
from fedgaze.federate.gate.marks import Found, Predict
from fedgaze.federate.gate.merges import Certainty, Merges, certainty_of, leave_one_out
from fedgaze.federate.gate.registry import GROUP, GateMeasure, find_measures, gate_measures
from fedgaze.federate.gate.seen import Seen, Sight, Trial, shows_something

__all__ = [
    "GROUP",
    "Certainty",
    "Counted",
    "Decision",
    "Found",
    "Gate",
    "GateMeasure",
    "Merges",
    "Predict",
    "Seen",
    "Sight",
    "Trial",
    "certainty_of",
    "check_gate",
    "count",
    "find_measures",
    "gate_measures",
    "leave_one_out",
    "shows_something",
]
