"""Weights come from files whole or not at all, and files bring nothing but weights."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.models import load_checkpoint, read_checkpoint


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def filled(value: float) -> dict[str, Tensor]:
    return {key: torch.full_like(each, value) for key, each in small().state_dict().items()}


def values(model: nn.Module) -> set[float]:
    return {float(value) for each in model.state_dict().values() for value in each.flatten()}


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth", "th", "ckpt", "bin"])
def test_weights_are_loaded_from_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(filled(3), path)
    model = small()
    load_checkpoint(model, path)
    assert values(model) == {3.0}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w, "epoch": 7},
        lambda w: {"model": w, "optimizer": {"state": {}}},
        lambda w: {"model_state_dict": {"state_dict": w}},
        lambda w: {f"module.{key}": value for key, value in w.items()},
        lambda w: {f"module._orig_mod.{key}": value for key, value in w.items()},
        lambda w: {"state_dict": {f"_orig_mod.module.{key}": value for key, value in w.items()}},
        lambda w: {key: value for key, value in w.items() if "num_batches" not in key},
        lambda w: {
            key: value.half() if value.is_floating_point() else value for key, value in w.items()
        },
    ],
)
def test_wrappers_prefixes_and_halves_are_understood(tmp_path: Path, wrap: object) -> None:
    torch.save(wrap(filled(3)), tmp_path / "a.pt")  # type: ignore[operator]
    model = small()
    load_checkpoint(model, tmp_path / "a.pt")
    left_alone = (
        {0.0} if "num_batches" not in str(read_checkpoint(tmp_path / "a.pt").keys()) else set()
    )
    assert values(model) == {3.0} | left_alone
    assert {each.dtype for each in model.parameters()} == {torch.float32}


def test_a_prefix_that_is_the_models_own_stays(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(1, 1)

    torch.save(
        {f"module.{k}": torch.ones_like(v) for k, v in Wrapped().state_dict().items()},
        tmp_path / "a.pt",
    )
    model = Wrapped()
    load_checkpoint(model, tmp_path / "a.pt")
    assert values(model) == {1.0}
    load_checkpoint(nn.DataParallel(model), tmp_path / "a.pt")


class _Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(
    tmp_path: Path, suffix: str, old: bool
) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / f"a.{suffix}"
    held = {"state_dict": filled(3), "extra": _Runs(mark)}
    torch.save(held, path, _use_new_zipfile_serialization=not old)
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    why = "not a whole safetensors file" if suffix == "safetensors" else r"would run posix\.system"
    with pytest.raises(FedgazeError, match=why) as caught:
        load_checkpoint(model, path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    # The file is the real thing: a reader that trusts it runs it.
    torch.load(path.rename(tmp_path / "trusted.pt"), weights_only=False)
    assert mark.exists()


def test_a_pickled_model_and_a_script_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(FedgazeError, match=r"would run torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "a.pt")
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "b.pt")
    with pytest.raises(FedgazeError, match="TorchScript archive"):
        read_checkpoint(tmp_path / "b.pt")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    torch.save(filled(3), tmp_path / "whole.pt")
    save_file(filled(3), tmp_path / "whole.safetensors")
    for suffix in ("pt", "safetensors"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        for name, content in {"cut": whole[:-100], "text": b"hello", "empty": b""}.items():
            (tmp_path / f"{name}.{suffix}").write_bytes(content)
            with pytest.raises(FedgazeError, match=rf"{name}\.{suffix} is not a whole"):
                read_checkpoint(tmp_path / f"{name}.{suffix}")
    with pytest.raises(FedgazeError, match="is not a file"):
        read_checkpoint(tmp_path / "none.pt")
    for held, why in [
        ([1, 2], "but a list"),
        ({}, "but a dict"),
        ({"lr": 0.1}, "its 'lr' is a float"),
        (torch.ones(1), "but a Tensor"),
    ]:
        torch.save(held, tmp_path / "other.pt")
        with pytest.raises(FedgazeError, match=why):
            read_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("3.bias"), r"1 of 9 weights are missing in the file, first '3\.bias'$"),
        (
            lambda w: w.update({"3.bais": w.pop("3.bias")}),
            r"first '3\.bias'; the nearest is '3\.bais' and .* the nearest is '3\.bias'",
        ),
        (lambda w: w.update(more=torch.ones(1)), r"1 of 10 weights are unknown to the model"),
        (
            lambda w: w.update({"3.weight": torch.ones(5, 8)}),
            r"1 of 9 weights have another shape, first '3\.weight', which is 5×8 .* 3×8 in the",
        ),
    ],
)
def test_what_does_not_fit_is_counted_and_changes_nothing(
    tmp_path: Path, change: object, message: str
) -> None:
    weights = filled(3)
    change(weights)  # type: ignore[operator]
    torch.save(weights, tmp_path / "a.pt")
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(FedgazeError, match=message):
        load_checkpoint(model, tmp_path / "a.pt")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
