"""What every test may ask for."""

import os
from pathlib import Path

import pytest

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
