"""What no run changes: the weights of the evidence, and where suspicion begins.

Fitted to trial runs on digits, digits scenes and Fashion-MNIST (seeds 0 to 2), rounded by hand; the
laboratory's own calibration, on its seeds 0 to 9, is to replace them: see docs/gate.md.
"""

from typing import Final

__all__ = ["BIAS", "CAP", "HEIGHT", "TRUST", "WEIGHTS"]

BIAS: Final = -1.8
"""Nats of evidence of an update of which nothing is suspicious."""
WEIGHTS: Final = {
    "harm": 3.0,
    "length": 3.0,
    "help": 1.1,
    "light": 1.2,
    "pull": 1.1,
    "layers": 0.8,
    "pattern": 0.5,
    "degenerate": 0.5,
    "direction": 0.5,
    "accuracy": 0.4,
}
"""Nats for each ``ln(1 + (spreads / 2)^2)``; a measure without one is recorded, adding nothing."""
HEIGHT: Final = 6.5
"""Nats of summed evidence at which suspicion is one half."""
CAP: Final = 15.0
"""Nats that are remembered at most, so that who stops is believed again after some rounds."""
TRUST: Final = -5.0
"""Nats that are remembered at least, so that who begins is found after some rounds."""
