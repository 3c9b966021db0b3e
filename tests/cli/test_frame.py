"""How the command line starts, refuses and ends: in processes of its own, as a person runs it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedgaze import __version__
from fedgaze.cli.app import app

FEDGAZE = Path(sys.executable).with_name("fedgaze")
# As most people have it: libraries are compiled once and not for each process.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def fedgaze(
    *words: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FEDGAZE, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=ENVIRONMENT | environment,
    )


def test_version_and_help() -> None:
    done = fedgaze("--version")
    assert (done.returncode, done.stdout) == (0, f"fedgaze {__version__}\n")
    done = fedgaze("--help")
    assert done.returncode == 0
    for command in ("explain", "init", "doctor"):
        assert command in done.stdout
    assert fedgaze().stdout.strip() == done.stdout.strip()


def test_help_imports_nothing_heavy() -> None:
    program = """
import sys
sys.argv = ["fedgaze", "--help"]
from fedgaze.cli import main
try:
    main()
finally:
    heavy = {"torch", "numpy", "PIL", "flwr", "sklearn", "pydantic"} & sys.modules.keys()
    sys.stderr.write(f"heavy: {sorted(heavy)}")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stderr == "heavy: []"


def test_libraries_are_told_to_be_quiet_before_they_are_imported(tmp_path: Path) -> None:
    program = """
import os, sys
for name in list(os.environ):
    if name.startswith(("FLWR", "HF_", "DO_NOT")): del os.environ[name]
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "0"
import fedgaze.cli
assert "flwr" not in sys.modules and "typer" not in sys.modules
sys.argv = ["fedgaze", "--version"]
try:
    fedgaze.cli.main()
except SystemExit:
    names = ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "DO_NOT_TRACK",
             "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "HF_HUB_DISABLE_TELEMETRY")
    print([os.environ[name] for name in names])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    # What the user has set stays.
    assert done.stdout.splitlines()[-1] == "['0', '1', '1', '1', '0']"


def test_a_refusal_is_one_sentence(tmp_path: Path) -> None:
    done = fedgaze("explain", "nowhere.png", "--model", "resnet18", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "fedgaze: nowhere.png is not a file\n"
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_command_or_option_names_the_nearest() -> None:
    for words, near in ((["explian"], "explain"), (["explain", "--modle", "x"], "--model")):
        done = fedgaze(*words)
        assert done.returncode == 2
        assert near in done.stderr
        assert "Traceback" not in done.stderr


def test_a_fault_of_ours_shows_no_values_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("fedgaze.cli.explain.given_files", broken)
    done = CliRunner().invoke(app, ["explain", "a.png"])
    assert isinstance(done.exception, ZeroDivisionError)  # a traceback, not a sentence
    assert app.pretty_exceptions_enable is False


def test_ctrl_c_in_a_command_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedgaze.cli.explain.given_files", interrupted)
    done = CliRunner().invoke(app, ["explain", "a.png"])
    assert done.exit_code == 130
    assert done.stderr == "fedgaze: interrupted\n"


def test_ctrl_c_of_a_running_process(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(
        "import pathlib, time\npathlib.Path('started').touch()\ntime.sleep(60)\n"
    )
    (tmp_path / "a.png").touch()
    import torch

    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    words = ["explain", "a.png", "--model-code", "models.py:Net", "--checkpoint", "a.pt"]
    # Who runs the tests in the background of a script has told them to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [FEDGAZE, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr == "fedgaze: interrupted\n"
    assert not (tmp_path / "explanations").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    done = fedgaze("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0
    assert "fedgaze" in done.stdout
    words = {"COMP_WORDS": "fedgaze ex", "COMP_CWORD": "1"}
    done = fedgaze(**words, _FEDGAZE_COMPLETE="complete_bash")
    assert done.stdout.split() == ["explain", "export"]
