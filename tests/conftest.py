"""What every test may ask for."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from tests.flaky import Flaky

# Two workers on two cores: threads of both would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

DATA = Path(os.environ.get("FEDGAZE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real weights and photographs; a test that needs it skips where it is absent."""
    if not DATA.is_dir():
        reason = f"no real data at {DATA}; set FEDGAZE_DATA to the folder that holds it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return DATA


@pytest.fixture
def flaky() -> Iterator[type[Flaky]]:
    """A storage that does what it should until it is told otherwise."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.faults, Flaky.calls, Flaky.go_on = {}, [], threading.Event()
    yield Flaky
    Flaky.go_on.set()
