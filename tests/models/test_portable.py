"""A model taken elsewhere: the code that it needs, the file that builds it, and ONNX."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.models import (
    DigitsNet,
    build_model,
    build_script,
    check_onnx,
    export_onnx,
    own_files,
    plan_model,
    without_weights,
)

SHAPE = (1, 12, 12)


def write(directory: Path, **files: str) -> None:
    for name, text in files.items():
        path = directory / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_what_is_imported_directly_or_not_is_found(tmp_path: Path) -> None:
    write(
        tmp_path,
        models="import layers, os\nfrom nets.deep import blocks as b\nimport nets.wide.door",
        layers="def f():\n    from late import x",
        late="import models",  # in a circle
        nets__deep__blocks="from ..common import y\nfrom . import beside",
        nets__deep__beside="",
        nets__common="from not_here import z\nfrom torch import nn",
        nets__wide__door="",
        data_preparation="import models",
        nets__deep__alone="",
    )
    (tmp_path / "nets" / "wide" / "__init__.py").write_text("import inside")
    (tmp_path / "inside.py").write_text("this is no Python")
    assert [each.as_posix() for each in own_files(tmp_path, "models")] == [
        "inside.py",
        "late.py",
        "layers.py",
        "models.py",
        "nets/common.py",
        "nets/deep/beside.py",
        "nets/deep/blocks.py",
        "nets/wide/__init__.py",
        "nets/wide/door.py",
    ]
    assert own_files(tmp_path, "nets.deep.beside") == [Path("nets/deep/beside.py")]
    assert own_files(tmp_path, "torch") == []


def test_no_import_leads_out_of_the_directory(tmp_path: Path) -> None:
    write(tmp_path, outside="", task__models="from ... import outside\nfrom .. import outside")
    assert own_files(tmp_path / "task", "models") == [Path("models.py")]


def run_script(script: str) -> nn.Module:
    names: dict[str, Any] = {}
    exec(script, names)  # noqa: S102 - what is tested
    built = names["build"]()
    assert isinstance(built, nn.Module)
    return built


@pytest.mark.parametrize(
    ("target", "name", "arguments"),
    [
        ("fedgaze.models.DigitsNet", None, {"channels": 3}),
        (None, "squeezenet1_1", {"dropout": 0.25}),
        ("torchvision.models.squeezenet1_1", None, {}),
        ("torchvision.models.SqueezeNet", None, {"version": "1_1"}),
        (None, "timm:test_resnet", {"in_chans": 1, "act_layer": "silu"}),
    ],
)
def test_the_file_builds_the_same_model(
    target: str | None, name: str | None, arguments: dict[str, Any]
) -> None:
    builder, given = plan_model(target, name, arguments, num_classes=4)
    script = build_script(builder, given)
    torch.manual_seed(0)
    wanted = build_model(target, name, arguments, num_classes=4)
    torch.manual_seed(0)
    found = run_script(script)
    assert type(found) is type(wanted)
    assert str(found) == str(wanted)
    own, other = wanted.state_dict(), found.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[key], other[key]) for key in own)
    compile(script, "architecture.py", "exec")


def test_an_argument_cannot_be_code() -> None:
    builder, _ = plan_model("fedgaze.models.DigitsNet")
    with pytest.raises(FedgazeError, match="is no name that an argument can have"):
        build_script(builder, {"x=1), print(1": 1})
    script = build_script(builder, {"channels": "1), print('run'"})
    assert "DigitsNet(channels=\"1), print('run'\")" in script


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_a_model_that_had_published_weights_is_built_like_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torchvision itself makes where weights are asked for, with random ones instead."""
    from torchvision.models import WeightsEnum, get_model

    bare = get_model(name, init_weights=False, aux_logits=True, transform_input=True)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: bare.state_dict())
    wanted = get_model(name, weights="DEFAULT")
    builder, given = plan_model(None, name, {"weights": "DEFAULT"}, num_classes=1000)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", None)
    found = run_script(build_script(builder, without_weights(builder, given)))
    assert found.transform_input is wanted.transform_input is True
    assert found.state_dict().keys() == wanted.state_dict().keys()
    found.load_state_dict(wanted.state_dict())
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(found.eval()(images), wanted.eval()(images))


def test_without_weights_leaves_all_else_alone() -> None:
    builder, given = plan_model(None, "timm:test_resnet", {"pretrained": True, "in_chans": 1})
    assert without_weights(builder, given) == {"in_chans": 1}
    builder, given = plan_model(None, "inception_v3", {"weights": None, "dropout": 0.1})
    assert without_weights(builder, given) == {"dropout": 0.1}


class Wrapped(nn.Module):
    """Returns its logits in a mapping, and has parts that are off in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(144, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": images, "logits": self.layer(self.dropout(images.flatten(1)))}


@pytest.mark.parametrize("make", [Wrapped, lambda: DigitsNet(1, 3)])
def test_an_onnx_file_takes_any_number_of_images(make: Any, tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(1)
    model = make().eval()
    path = tmp_path / "model.onnx"
    path.write_bytes(export_onnx(model, SHAPE, {"a": "b", "c": ["é"]}))
    assert check_onnx(model, SHAPE, path).difference < 1e-5
    session = onnxruntime.InferenceSession(path)
    for count in (1, 2, 9):
        images = torch.rand(count, *SHAPE)
        with torch.no_grad():
            out = model(images)
        wanted = out["logits"] if isinstance(out, dict) else out
        [found] = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map == {"a": "b", "c": '["é"]'}


def test_a_file_of_other_weights_is_found_out(tmp_path: Path) -> None:
    torch.manual_seed(1)
    one, other = DigitsNet(1, 3).eval(), DigitsNet(1, 3).eval()
    path = tmp_path / "model.onnx"
    path.write_bytes(export_onnx(one, SHAPE, {}))
    with pytest.raises(FedgazeError, match="the file's logits differ from the model's by"):
        check_onnx(other, SHAPE, path)
    with pytest.raises(FedgazeError, match=r"makes logits \(1, 3\), and the model \(1, 4\)"):
        check_onnx(DigitsNet(1, 4).eval(), SHAPE, path)
    path.write_bytes(b"nonsense")
    with pytest.raises(FedgazeError, match="DigitsNet's ONNX file cannot be run: "):
        check_onnx(one, SHAPE, path)


class Fixed(nn.Module):
    """Takes two images, and no other number."""

    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(2, 144)[:, :3]


class Odd(nn.Module):
    """Needs an operator that ONNX has not."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.linalg.svdvals(images[:, 0])[:, :3]


@pytest.mark.parametrize(
    ("model", "said"), [(Fixed(), "static shape of 2"), (Odd(), "_linalg_svd")]
)
def test_a_model_that_cannot_be_exported_is_one_sentence(
    model: nn.Module, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FedgazeError, match=f"cannot be exported to ONNX: .*{said}") as caught:
        export_onnx(model.eval(), SHAPE, {})
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_weights_too_large_for_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgaze.models.onnxfile._LIMIT", 1000)
    with pytest.raises(FedgazeError, match="an ONNX file holds at most 2 GiB"):
        export_onnx(DigitsNet().eval(), SHAPE, {})
