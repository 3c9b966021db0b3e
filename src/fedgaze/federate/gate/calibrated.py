"""What no run changes: the weights of the evidence, and where suspicion begins.

Fitted by ``benchmarks/gate.py`` to runs of the laboratory on seeds below 10, and rounded; the
height raised from 5.1, so that no honest client of the demo gets there on seeds 20 to 35. They are
to be fitted once more: see docs/gate.md.
"""

from typing import Final

__all__ = ["HEIGHT", "MEMORY", "WEIGHTS"]

WEIGHTS: Final = {
    "help": 2.9,
    "own_border_mass": 1.5,
    "recolouring": 1.3,
    "harm": 1.1,
    "light": 0.7,
    "distance": 0.65,
    "length": 0.65,
    "contrast": 0.5,
    "degenerate": 0.5,
    "pull": 0.3,
    "pattern": 0.2,
    "doubt": 0.2,
    "statistics": 0.1,
    "accuracy": 0.05,
}
"""Nats for each :func:`fedgaze.federate.gate.gate.strength_of`; a measure without one is recorded,
and adds nothing."""
HEIGHT: Final = 5.5
"""Nats of evidence at which suspicion is one half."""
MEMORY: Final = 0.5
"""Which part of the evidence of earlier rounds still counts, a round later."""
