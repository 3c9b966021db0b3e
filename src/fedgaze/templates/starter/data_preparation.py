"""The data of this task: named in conf/config.yaml as `data_preparation.load`."""

from pathlib import Path

from fedgaze.data import Dataset, load_digits


def load(root: Path | None, seed: int) -> Dataset:
    """Load the pictures that are then split over the clients.

    Put your own data here: a `Dataset` holds pictures to train on and to test with, and the names
    of their classes.

    Args:
        root: `dataset.root` of the configuration.
        seed: `random_seed` of the configuration.
    """
    return load_digits(root, seed)
