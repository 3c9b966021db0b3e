"""What the laboratory fixed on its first seeds, and what no run changes: see docs/gate.md."""

from typing import Final

__all__ = ["BIAS", "CAP", "HEIGHT", "WEIGHTS"]

BIAS: Final = -3.0
"""Nats of evidence of an update of which nothing is suspicious."""
WEIGHTS: Final = {
    "pull": 1.2,
    "changed": 0.8,
    "confusion": 0.6,
    "object_mass": 0.4,
    "border_mass": 0.4,
    "agreement": 0.3,
    "peer_agreement": 0.3,
    "degenerate": 0.8,
    "loss": 0.8,
    "length": 0.8,
    "direction": 1.0,
}
"""Nats for each ``ln(1 + spreads)``."""
HEIGHT: Final = 3.0
"""Nats of summed evidence at which suspicion is one half."""
CAP: Final = 8.0
"""Nats that are remembered at most, so that who stops is believed again after some rounds."""
