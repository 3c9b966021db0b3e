"""What a federated round costs beside a bare Flower app that does the same training.

    python benchmarks/round_cost.py [--quick]

Both train the same network on the same images of MNIST with the same optimiser, and judge the
merged model on the test images after each round. On Flower's own launchers both are Flower apps,
and differ in what a client does: fedgaze judges and keeps each client's model, writes checkpoints
and a record and, in the last column, explains every update with the weights as received and as
trained. Each run is a process of its own; runs take turns, and the first round of each, in which
data and libraries are loaded, is not counted. In process, what is compared is CPU time; elsewhere
it is time on the clock.

The last row is fedgaze's server with two clients on loopback: with clients that stay warm, and with
Flower's own SuperNodes, which start a process, and import torch, for each message.
"""

import argparse
import json
import logging
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import bare_app
from bare_app import BATCH, CLIENTS, RATE, Clock
from common import DATA, STEADY, Report, alone, begin, parser, tell


class Timed:
    """Notes when fedgaze's rounds are over."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.over: list[float] = []

    def run_started(self, rounds: int, done: int) -> None: ...

    def round_started(self, number: int, clients: list[int]) -> None: ...

    def client_started(self, client: int, kind: str) -> None: ...

    def trouble(self, text: str) -> None: ...

    def round_done(self, record: dict[str, Any]) -> None:
        del record
        self.over.append(self.clock())


def task_of(engine: str, count: int, rounds: int, explains: bool) -> Any:
    from fedgaze.config import parse_task

    return parse_task(values_of(engine, rounds, explains), written(count))


def values_of(engine: str, rounds: int, explains: bool) -> dict[str, Any]:
    return {
        "task_id": "cost",
        "model": {"_target_": "fedgaze.models.DigitsNet"},
        "dataset": {"name": "data_preparation.load", "partition": "iid"},
        "learning_rate": RATE,
        "batch_size": BATCH,
        "num_clients": CLIENTS,
        "num_rounds": rounds,
        "engine": engine,
        "device": "cpu",
        "xai": {"enabled": explains, "layer": "conv3", "samples_per_class": 2},
    }


def written(count: int) -> Path:
    """A task's directory whose data are the first of MNIST's images."""
    folder = Path(tempfile.mkdtemp(prefix="cost-"))
    (folder / "data_preparation.py").write_text(
        "import torch\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from fedgaze.data import load_dataset\n"
        "def load(root, seed):\n"
        f"    data = load_dataset('mnist', Path({str(DATA / 'mnist')!r}), 42)\n"
        f"    few = torch.arange({CLIENTS * count})\n"
        "    return replace(data, train=data.train.select(few, data.train.labels[few]))\n"
    )
    return folder


def rounds_of(what: dict[str, Any]) -> list[float]:
    """Seconds of each counted round, measured in this process."""
    engine, count, rounds = what["engine"], what["count"], what["rounds"]
    clock: Clock = time.process_time if engine == "local" else time.perf_counter
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if what["app"] == "bare":
        over = bare_on(engine, count, rounds, clock)
    else:
        from fedgaze.federate import start

        timed = Timed(clock)
        with tempfile.TemporaryDirectory() as folder:
            task = task_of(engine, count, rounds, what["app"] == "explains")
            start(task, Path(folder) / "run", timed)
        over = timed.over
    return [later - earlier for earlier, later in pairwise(over)]


def bare_on(engine: str, count: int, rounds: int, clock: Clock) -> list[float]:
    if engine == "local":
        from fedgaze.federate.grid import LocalGrid

        grid = LocalGrid(bare_app.client(count), CLIENTS, Timed(clock).client_started)
        return bare_app.serve(grid, count, rounds, clock)[1:]
    from flwr.simulation import run_simulation

    over: list[float] = []
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # Ray's processes import the app
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        del context
        over.extend(bare_app.serve(grid, count, rounds, clock)[1:])

    run_simulation(
        server_app=app,
        client_app=bare_app.client(count),
        num_supernodes=CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0}},
    )
    return over


@contextmanager
def served(folder: Path) -> Iterator[Callable[..., None]]:
    """A folder in which `fedgaze` is called; its server is stopped at the end."""

    def call(*words: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "fedgaze.cli", *words],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    try:
        yield call
    finally:
        for command in (["client", "stop", "a"], ["client", "stop", "b"], ["server", "stop"]):
            try:
                call(*command)
            except subprocess.CalledProcessError:
                continue


def on_a_server(what: dict[str, Any]) -> list[float]:
    """Seconds of each counted round of a server, with warm clients or with Flower's launcher."""
    import yaml

    folder = written(what["count"])
    values = values_of("local", what["rounds"], False) | {"round_timeout": 300}
    (folder / "task.yaml").write_text(yaml.safe_dump(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    nodes: list[subprocess.Popen[bytes]] = []
    with served(folder) as call:
        call("server", "start", "--listen", address, "--insecure", "--task", "task.yaml")
        for number, name in enumerate("ab"):
            if what["launcher"] == "warm":
                call("server", "invite", "--name", name, "--output", f"{name}.invite")
                call("client", "join", f"{name}.invite")
            else:
                nodes.append(supernode(folder, address, number))
        summary = folder / "runs" / "cost" / "summary.json"
        while (record := known(summary))["status"] == "running":
            time.sleep(0.5)
        for node in nodes:
            node.terminate()
            node.wait()
    shutil.rmtree(folder)
    return [each["seconds"] for each in record["rounds"][1:]]


def known(summary: Path) -> dict[str, Any]:
    """A run's record, which begins some time after its server."""
    try:
        found: dict[str, Any] = json.loads(summary.read_text())
    except FileNotFoundError:
        return {"status": "running"}
    return found


def supernode(folder: Path, address: str, number: int) -> "subprocess.Popen[bytes]":
    environment = os.environ | {
        "FLWR_HOME": str(folder / f"flower-{number}"),
        "FEDGAZE_CLIENT": str(folder / f"client-{number}"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.Popen(
        [
            *(str(Path(sys.executable).parent / "flower-supernode"), "--insecure"),
            *("--superlink", address, "--port", str(9200 + number)),
            *("--node-config", f"partition-id={number}"),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def turns(options: argparse.Namespace, variants: list[dict[str, Any]]) -> list[float]:
    """The median round of each variant; they take turns, each in a process of its own."""
    taken: list[list[float]] = [[] for _ in variants]
    for _ in range(1 if options.quick else 2):
        for seconds, what in zip(taken, variants, strict=True):
            seconds.extend(alone(__file__, options, allocator=STEADY, **what))
    return [statistics.median(seconds) for seconds in taken]


def main() -> None:
    options = parser(__doc__).parse_args()
    begin(options)
    if options.alone:
        what = json.loads(options.alone)
        print(json.dumps(on_a_server(what) if "launcher" in what else rounds_of(what)))
        return
    count, rounds = (2000, 3) if options.quick else (10000, 5)
    report = Report(
        "A federated round",
        f"{CLIENTS} clients with {count:,} images of MNIST each, one local epoch. Seconds a round; "
        "in process CPU time, elsewhere time on the clock.",
        ("launcher", "bare Flower app", "fedgaze", "fedgaze, explaining", "ratios"),
    )
    for engine in ("local", "simulation"):
        variants = [
            {"engine": engine, "app": app, "count": count, "rounds": rounds}
            for app in ("bare", "plain", "explains")
        ]
        bare, plain, explains = turns(options, variants)
        ratios = f"{plain / bare:.2f}, {explains / bare:.2f}"
        report.row(engine, f"{bare:.2f}", f"{plain:.2f}", f"{explains:.2f}", ratios)
        report.check(f"{engine}: without explanations", plain / bare, at_most=1.10)
        report.check(f"{engine}: with explanations", explains / bare, at_most=1.20)
    launchers = [
        {"launcher": launcher, "count": count // 5, "rounds": min(rounds, 4)}
        for launcher in ("flower", "warm")
    ]
    flower, warm = turns(options, launchers)
    report.row("a server, two clients", "", f"{warm:.1f}", "", f"Flower's launcher {flower:.1f}")
    report.check("Flower's launcher takes so many times as long", flower / warm, at_least=2.0)
    tell(report, options)


if __name__ == "__main__":
    main()
