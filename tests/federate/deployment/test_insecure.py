"""Without TLS, on request and on loopback only."""

from pathlib import Path

import httpx
import pytest
from tests.federate.deployment.conftest import Farm, wait_for
from typer.testing import CliRunner

from fedgaze.cli.app import app


@pytest.mark.parametrize("address", ["0.0.0.0:8443", "192.0.2.7:8443"])
def test_others_are_never_served_without_tls(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["server", "start", "--listen", address, "--insecure"])
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert f"--insecure with --listen {address}: without TLS only 127.0.0.1 is allowed" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_federation_without_tls(farm: Farm) -> None:
    task = farm.task(
        task_id="plain",
        model={"_target_": "fedgaze.models.DigitsNet"},
        dataset={"name": "digits", "partition": "iid", "classes": ["1", "4"]},
        num_clients=2,
        num_rounds=2,
        xai={"layer": "conv3", "samples_per_class": 1},
    )
    farm.start("--insecure", "--task", task)
    for name in "ab":
        farm.join(name)
    wait_for(lambda: farm.record("plain")["status"] == "complete", 200, "the end")
    record = farm.record("plain")
    assert [len(each["clients"]) for each in record["rounds"]] == [2, 2]
    assert not list(farm.server.glob("*.crt"))
    # Its door is as narrow as that with TLS.
    plain = f"http://{farm.address}"
    for path in ("/v1/control/list-runs", "/docs", "/openapi.json"):
        assert httpx.post(plain + path, timeout=10).status_code in (403, 404)
    assert httpx.get(f"{plain}/v1/fedgaze/state", timeout=10).status_code in (401, 403)
