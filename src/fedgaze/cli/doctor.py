"""`fedgaze doctor`: is everything here that fedgaze needs?"""

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

__all__ = ["doctor"]

_EXTRAS = (
    ("ray", "simulation", "engine: simulation"),
    ("timm", "hub", "models of timm"),
    ("transformers", "hub", "models of transformers"),
    ("pydicom", "medical", "DICOM files"),
    ("flwr_datasets", "datasets", "data sets named flwr:…"),
    ("onnxruntime", "onnx", "export to ONNX"),
    ("wandb", "wandb", "tracking with Weights & Biases"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        name: What was looked at.
        found: What was found.
        cure: What to do, if it is not well.
        required: Whether fedgaze cannot work like this.
    """

    name: str
    found: str
    cure: str = ""
    required: bool = True


def doctor() -> None:
    """Check that this machine has what fedgaze needs, and say what to do where it has not.

    The exit code is 1 if something is missing that nothing works without.
    """
    console = Console(highlight=False, soft_wrap=True)
    ill = False
    for look in (_python, _torch, _device, _torchvision, _flower, _extras, _writable):
        for finding in look():
            if not finding.cure:
                mark = "[green]ok  [/]"
            elif finding.required:
                mark, ill = "[red]fix [/]", True
            else:
                mark = "[dim]–   [/]"
            cure = f": {finding.cure}" if finding.cure else ""
            console.print(f"{mark} {finding.name:<13} {escape(finding.found + cure)}")
    if ill:
        raise typer.Exit(1)


def _python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 11)
    yield Finding("Python", found, "fedgaze needs 3.11 or newer" if old else "")


def _torch() -> Iterator[Finding]:
    yield _works("torch", "torch", lambda: __import__("torch").ones(2).sum().item())


def _torchvision() -> Iterator[Finding]:
    # A torchvision of another torch's is found, but fails when it is imported.
    yield _works("torchvision", "torchvision", lambda: __import__("torchvision.ops"))


def _device() -> Iterator[Finding]:
    try:
        import torch

        from fedgaze.models.device import choose_device

        device = choose_device()
    except ImportError:
        return  # torch's own line says so
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        yield Finding("device", f"{device} ({name}, {torch.cuda.device_count()} in all)")
    else:
        yield Finding("device", f"{device} ({torch.get_num_threads()} threads)")


def _flower() -> Iterator[Finding]:
    wanted = "1.41"
    finding = _works("Flower", "flwr", lambda: __import__("flwr.serverapp.strategy"))
    if not finding.cure and not finding.found.startswith(f"{wanted}."):
        finding = Finding(
            "Flower", finding.found, f"fedgaze is built on {wanted}: {_install('flwr')}"
        )
    yield finding


def _extras() -> Iterator[Finding]:
    for package, extra, use in _EXTRAS:
        if importlib.util.find_spec(package) is None:
            cure = f"for {use}: pip install 'fedgaze[{extra}]'"
            yield Finding(package, "not installed", cure, required=False)
        else:
            yield Finding(package, _version(package))


def _writable() -> Iterator[Finding]:
    here = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=here):
            yield Finding("write access", str(here))
    except OSError as error:
        cure = "runs are written where fedgaze is started; start it in a folder of yours"
        yield Finding("write access", f"{here} ({error.strerror})", cure)


def _works(name: str, package: str, use: Callable[[], object]) -> Finding:
    """Look whether a package that is required can be imported and used."""
    try:
        use()
    # A broken installation fails in any way: a missing library, another version's symbols.
    except Exception as error:  # noqa: BLE001
        return Finding(name, f"{type(error).__name__}: {error}", _install(package))
    return Finding(name, _version(package))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown version"


def _install(package: str) -> str:
    pinned = {"flwr": "flwr==1.41.0"}.get(package, package)
    return f"{Path(sys.executable).name} -m pip install --force-reinstall {pinned}"
