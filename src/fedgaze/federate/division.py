"""Who got which images: what a run's record says of the split that the server made."""

from typing import Any

import numpy as np

from fedgaze.data import hold_back
from fedgaze.federate.setup import Setup

__all__ = ["describe_split"]


def describe_split(setup: Setup) -> dict[str, Any] | None:
    """Count what each client holds.

    Counts per class are facts about a client's own images. They are told only where the server
    split the images itself and so knows them anyway; where clients bring their own it does not.

    Returns:
        ``clients``, a list with for each its number as ``client``, how many images it trains on and
        keeps for validation as ``training`` and ``validation``, how many of each class it has of
        both together as ``classes`` (by index) and, if the split is natural, the names of its
        ``groups``. None where the server does not know.
    """
    task, dataset = setup.task, setup.dataset
    if task.dataset.partition == "own":
        return None
    clients = []
    for number, own in enumerate(setup.parts):
        labels = dataset.train.labels[own]
        kept, held = hold_back(labels, task.dataset.validation_split, task.random_seed)
        entry: dict[str, Any] = {
            "client": number,
            "training": len(kept),
            "validation": len(held),
            "classes": labels.bincount(minlength=len(dataset.classes)).tolist(),
        }
        if task.dataset.partition == "natural" and dataset.groups is not None:
            groups = np.unique(np.asarray([dataset.groups[i] for i in own.tolist()]))
            entry["groups"] = [str(each) for each in groups.tolist()]
        clients.append(entry)
    return {"clients": clients}
