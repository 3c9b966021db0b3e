"""Methods by name: those of fedgaze, those of other packages, and their options."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fedgaze.errors import FedgazeError
from fedgaze.xai import Method, explain, find_method, list_methods
from fedgaze.xai.registry import GROUP, third_party

MakeCNN = Callable[..., nn.Module]

# The names of the command line.
NAMES = {
    *("cam", "gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "eigencam"),
    *("eigengradcam", "gradcam_elementwise", "smooth_gradcam++", "shapleycam", "finercam"),
    *("kpcacam", "fullgrad", "random"),
    *("scorecam", "sscam", "iscam", "ablationcam", "groupcam", "rise", "occlusion"),
    *("saliency", "input_x_gradient", "integrated_gradients", "smoothgrad", "vargrad"),
    *("guided_backprop", "guided_gradcam", "deconvnet", "lrp"),
    *("attention_rollout", "attention_flow", "gradient_rollout", "raw_attention"),
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    third_party.cache_clear()
    yield
    third_party.cache_clear()


def offer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, code: str, **points: str
) -> None:
    """Install a package of one module that offers methods, as pip would leave it."""
    (folder / f"{package}.py").write_text(code)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {package}:{attribute}" for name, attribute in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))
    monkeypatch.syspath_prepend(folder)


BRIGHTNESS = """
from fedgaze.xai import Method

def brightness(runner, *, power: float = 1.0):
    return runner.images.mean(1, keepdim=True) ** power

method = Method("{}", brightness, "run", "none", "nobody", layers=False, gradients=False)
"""


# Those of fedgaze.


def test_all_methods_are_there_once() -> None:
    names = [method.name for method in list_methods()]
    assert set(names) == NAMES
    assert len(names) == len(NAMES)
    assert all(find_method(name).name == name for name in NAMES)


def test_each_method_says_what_it_costs_and_where_it_comes_from() -> None:
    for method in list_methods():
        assert method.cost, method.name
        assert method.paper, method.name
        assert method.compute.__doc__, method.name
        assert method.cost_class in {"forward", "backward", "many"}
        assert set(method.needs) <= {"layer", "attention", "gradients"}


@pytest.mark.parametrize(
    ("name", "cost", "needs"),
    [
        ("cam", "forward", ("layer",)),
        ("gradcam", "backward", ("layer", "gradients")),
        ("saliency", "backward", ("gradients",)),
        ("integrated_gradients", "many", ("gradients",)),
        ("scorecam", "many", ("layer",)),
        ("rise", "many", ()),
        ("attention_rollout", "forward", ("attention",)),
        ("gradient_rollout", "backward", ("attention", "gradients")),
    ],
)
def test_costs_and_needs(name: str, cost: str, needs: tuple[str, ...]) -> None:
    assert find_method(name).cost_class == cost
    assert find_method(name).needs == needs


@pytest.mark.parametrize(
    ("name", "near"),
    [("grad-cam", "gradcam"), ("integrated-gradients", "integrated_gradients"), ("LRP", None)],
)
def test_an_unknown_method_is_one_sentence_with_the_nearest_name(
    name: str, near: str | None
) -> None:
    with pytest.raises(FedgazeError) as caught:
        find_method(name)
    message = str(caught.value)
    assert message.startswith(f"there is no method {name!r}; allowed are ")
    assert all(each in message for each in NAMES)
    assert "\n" not in message
    assert message.endswith(f"; did you mean {near!r}?") or near is None


@pytest.mark.parametrize(
    ("method", "option", "message"),
    [
        ("integrated_gradients", "stepps", "allowed are steps, baseline, rule; .*'steps'"),
        ("gradcam", "steps", "gradcam has no option 'steps'; allowed are none$"),
        ("finercam", "alfa", "allowed are alpha, count, weighting; .*'alpha'"),
    ],
)
def test_options_are_checked_before_anything_runs(method: str, option: str, message: str) -> None:
    class Never(nn.Module):
        def forward(self, *_images: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    with pytest.raises(FedgazeError, match=message):
        explain(Never(), torch.rand(1, 3, 8, 8), method, **{option: 1})


# Those of other packages.


def test_another_package_adds_a_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_cnn: MakeCNN
) -> None:
    code = BRIGHTNESS.format("brightness")
    offer(tmp_path, monkeypatch, "bright_one", code, brightness="method")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = [method.name for method in list_methods()]
    assert names[-1] == "brightness"
    assert len(names) == len(NAMES) + 1
    images = torch.rand(2, 3, 8, 8)
    found = explain(make_cnn(), images, "brightness", power=2.0)
    torch.testing.assert_close(found.raw, images.mean(1) ** 2)
    assert found.method == "brightness"
    with pytest.raises(FedgazeError, match=r"brightness has no option 'powr'; .*'power'"):
        explain(make_cnn(), images, "brightness", powr=2.0)
    with pytest.raises(FedgazeError, match="did you mean 'brightness'"):
        find_method("britness")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise OSError('no such disk')", "cannot be loaded: OSError: no such disk"),
        ("", "cannot be loaded: AttributeError: "),
        ("method = print", "is builtin_function_or_method; allowed is a fedgaze.xai.Method"),
    ],
)
def test_a_broken_package_is_named_and_takes_nothing_from_the_others(
    code: str,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    # A name of its own each time: Python keeps what was imported.
    package = f"broken_{request.node.callspec.indices['code']}"
    offer(tmp_path, monkeypatch, package, code, dim="method")
    where = rf"the entry point 'dim' of fedgaze.methods \({package}:method\) "
    with pytest.warns(RuntimeWarning, match=where + problem):
        names = {method.name for method in list_methods()}
    assert names == NAMES
    with pytest.raises(FedgazeError, match=where + problem):
        find_method("dim")
    # Said once; and who asks for something else hears nothing of it.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list_methods()
        with pytest.raises(FedgazeError, match="did you mean 'gradcam'"):
            find_method("gradcm")


def test_no_package_takes_a_name_of_fedgaze(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, monkeypatch, "greedy", BRIGHTNESS.format("gradcam"), gradcam="method")
    with pytest.warns(
        RuntimeWarning, match=r"'gradcam' of .* \(greedy:method\) is named 'gradcam'"
    ):
        names = [method.name for method in list_methods()]
    assert len(names) == len(NAMES)
    assert find_method("gradcam").kind == "weights"


def test_of_two_packages_with_one_name_the_first_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = BRIGHTNESS.format("glow") + "\nother = Method('glow', brightness, 'run', 'x', 'y')"
    offer(tmp_path, monkeypatch, "glowing", code, first="method", second="other")
    with pytest.warns(RuntimeWarning, match="'second' of .* is named 'glow', as another one is"):
        assert find_method("glow").paper == "nobody"


def test_methods_are_used_without_a_name_too(make_cnn: MakeCNN) -> None:
    mine = Method("mine", lambda activations, _: activations.mean(1), "map", "1", "me")
    found = explain(make_cnn(), torch.rand(2, 3, 8, 8), mine)
    assert found.method == "mine"
    assert mine not in list_methods()
