"""A task's own files: found, isolated from other tasks', and clear when they are wrong."""

import pickle
import sys
import threading
from pathlib import Path

import pytest

from fedgaze.errors import FedgazeError
from fedgaze.models import build_model, task_module, task_object

NET = "from torch import nn\nclass Net(nn.Module):\n    which = {which!r}\n"


def write(directory: Path, **files: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = directory / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def test_two_tasks_do_not_share_their_models(tmp_path: Path) -> None:
    before, path = set(sys.modules), list(sys.path)
    a = write(tmp_path / "a", models=NET.format(which="a"))
    b = write(tmp_path / "b", models=NET.format(which="b"))
    built = [build_model("models.Net", task_dir=each) for each in (a, b, a)]
    assert [model.which for model in built] == ["a", "b", "a"]
    assert type(built[0]) is type(built[2])
    assert not {"models", "layers"} & (set(sys.modules) - before)
    assert sys.path == path


def test_siblings_are_imported_however_they_are_written(tmp_path: Path) -> None:
    for which in ("a", "b"):
        write(
            tmp_path / which,
            **dict.fromkeys(("helpers", "parts/inner"), f"NAME = {which!r}\n"),
            models=(
                "import helpers\n"
                "import helpers as h\n"
                "import parts.inner\n"
                "import parts.inner as p\n"
                "from helpers import NAME\n"
                "from parts import inner\n"
                "from .helpers import NAME as relative\n"
                "import json, torch.nn as nn, os.path\n"
                "class Net(nn.Module):\n"
                "    def names(self):\n"
                "        import helpers as late\n"
                "        from helpers import NAME as later\n"
                "        return {helpers.NAME, h.NAME, parts.inner.NAME, p.NAME, NAME,\n"
                "                inner.NAME, relative, late.NAME, later}\n"
            ),
        )
    models = {w: build_model("models.Net", task_dir=tmp_path / w) for w in ("a", "b")}
    assert models["a"].names() == {"a"}
    assert models["b"].names() == {"b"}


def test_siblings_of_siblings_and_packages(tmp_path: Path) -> None:
    write(
        tmp_path,
        **{
            "nets/__init__": "from .small import Net, build\nfrom common import WIDTH\n",
            "nets/small": "from torch import nn\nimport common\nclass Net(nn.Module):\n"
            "    width = common.WIDTH\ndef build():\n    return Net()\n",
            "common": "WIDTH = 7\n",
        },
    )
    for target in ("nets.Net", "nets.build", "nets.small.Net"):
        assert build_model(target, task_dir=tmp_path).width == 7


def test_a_folder_of_data_hides_no_library(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "sqlite3").mkdir()
    write(tmp_path, models="import json, sqlite3\nOK = json.dumps({}) and sqlite3.version_info\n")
    assert task_object(tmp_path, "models.OK")


def test_objects_can_be_pickled_in_the_process(tmp_path: Path) -> None:
    write(tmp_path, models=NET.format(which="a"))
    model = build_model("models.Net", task_dir=tmp_path)
    assert type(pickle.loads(pickle.dumps(model))) is type(model)  # noqa: S301


def test_a_function_of_the_task(tmp_path: Path) -> None:
    write(tmp_path, data_preparation="def load(root, seed):\n    return root, seed\n")
    assert task_object(tmp_path, "data_preparation.load")("r", 1) == ("r", 1)
    with pytest.raises(FedgazeError, match="defines no 'laod'; did you mean 'load'"):
        task_object(tmp_path, "data_preparation.laod")
    with pytest.raises(FedgazeError, match="does not name a public object"):
        task_object(tmp_path, "load")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef f(:\n", r"models\.py, line 2, is not valid Python: invalid syntax"),
        (
            "import torch\n\nimport no_such_thing\n",
            r"line 3, could .*No module named 'no_such_thing'",
        ),
        ("def f():\n    return 1 / 0\n\nf()\n", r"line 2, could .* ZeroDivisionError: division"),
        ("import helper\n", r"helper\.py, line 1, could not be imported: NameError"),
        ("import sys\nsys.exit(3)\n", r"line 2, could not be imported: SystemExit: 3"),
        ("from models_ import x\n", r"line 1, could not be imported: ModuleNotFoundError"),
    ],
)
def test_errors_in_the_file_are_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, models=text, helper="nothing\n")
    with pytest.raises(FedgazeError, match=message) as caught:
        task_module(tmp_path, "models")
    assert "\n" not in str(caught.value)
    # A file that was mended is read again.
    write(tmp_path, models="VALUE = 1\n")
    assert task_module(tmp_path, "models").VALUE == 1


def test_errors_in_a_constructor_are_named_by_line(tmp_path: Path) -> None:
    text = (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        self.a.b\n"
    )
    write(tmp_path, models=text)
    with pytest.raises(
        FedgazeError, match=r"could not be built: AttributeError.*models\.py, line 4"
    ):
        build_model("models.Net", task_dir=tmp_path)


def test_threads_get_the_same_module(tmp_path: Path) -> None:
    write(
        tmp_path, models="import time\ntime.sleep(0.05)\nimport torch.nn as nn\nclass Net: pass\n"
    )
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(task_object(tmp_path, "models.Net")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(map(id, found))) == 1
