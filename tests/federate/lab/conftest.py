"""An experiment of runs that take a second each."""

from typing import Any

TINY: dict[str, Any] = {
    "data": {
        "name": "tiny",
        "preset": "digits",
        "dataset": {"classes": ["1", "4", "7"], "limit": 120, "test_limit": 60},
        "num_epochs": 1,
        "num_rounds": 2,
        "xai": {"samples_per_class": 2},
    },
    "splits": "iid",
    "behaviours": ["none", "patch"],
    "clients": 3,
    "attackers": 0.34,
    "seeds": 0,
    "defences": ["none", "gate"],
}
