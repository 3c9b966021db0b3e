"""What no run changes: the weights of the evidence, and where suspicion begins.

Fitted to runs of the laboratory on its seeds 0 to 9, by ``benchmarks/gate.py``: see docs/gate.md.
"""

from typing import Final

__all__ = ["HEIGHT", "MEMORY", "WEIGHTS"]

WEIGHTS: Final = {
    "help": 2.6,
    "harm": 1.7,
    "recolouring": 1.5,
    "length": 0.9,
    "statistics": 0.65,
    "degenerate": 0.5,
    "light": 0.5,
    "direction": 0.4,
    "contrast": 0.3,
    "pull": 0.3,
    "doubt": 0.2,
    "pattern": 0.2,
    "layers": 0.15,
}
"""Nats for each :func:`fedgaze.federate.gate.gate.strength_of`; a measure without one is recorded,
and adds nothing."""
HEIGHT: Final = 6.2
"""Nats of evidence at which suspicion is one half."""
MEMORY: Final = 0.5
"""Which part of the evidence of earlier rounds still counts, a round later."""
