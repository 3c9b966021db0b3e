"""Ask connected clients where their models look: what they may say, and that it is true."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.federate.deployment.conftest import Farm, wait_for

from fedgaze import explain
from fedgaze.data import fit_picture, load_digits
from fedgaze.models import DigitsNet
from fedgaze.store import load_tensors


def expected(weights: Path, picture: Path, target: int) -> np.ndarray:
    """The map of a model that lies on the disk, by another way."""
    model = DigitsNet()
    model.load_state_dict(load_tensors(weights))
    with Image.open(picture) as opened:
        image = fit_picture(opened.convert("RGB"), (24, 24), 1)[None]
    made = explain(model.eval(), image, "gradcam", [target], "conv3", relu=True)
    return made.heatmaps[0].numpy()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_within_what_a_client_agreed_to_share(farm: Farm) -> None:
    digit = (load_digits().train[torch.tensor([5])][0, 0] * 255).byte().numpy()
    picture = farm.folder / "digit.png"
    Image.fromarray(digit).resize((96, 96)).save(picture)
    task = farm.task(
        task_id="asked",
        model={"_target_": "fedgaze.models.DigitsNet"},
        dataset={"name": "digits", "partition": "iid"},
        learning_rate=3e-3,
        num_clients=3,
        num_rounds=2,
        xai={"layer": "conv3", "samples_per_class": 1, "share": "maps"},
    )
    farm.start("--task", task)
    farm.join("open")
    farm.join("numbers", "--share", "profile")
    farm.join("closed", "--share", "none")
    wait_for(lambda: farm.record("asked")["status"] == "complete", 250, "the end")
    [last] = [each for each in farm.record("asked")["rounds"] if each["round"] == 2]
    shared = [entry["explanation"]["shared"] for entry in last["clients"]]
    assert shared == ["maps", "profile", "none"], "each as it agreed, whatever the task says"

    asked = ["ask", "--image", "digit.png", "--target", "3", "--output"]
    farm.call(*asked, "a", "--client", "open")
    facts = json.loads((farm.folder / "a" / "digit.json").read_text())
    [home] = farm.client("open").glob("runs/asked-*/clients/client_0/local_model/asked")
    weights = home / "DigitsNet_local_model_V2.safetensors"
    heatmap = np.load(farm.folder / "a" / "digit.heatmap.npy")
    np.testing.assert_allclose(heatmap, expected(weights, picture, 3), atol=1e-5)
    assert facts["explained"] == 3
    assert facts["shared"] == "maps"
    with Image.open(farm.folder / "a" / "digit.overlay.png") as overlay:
        assert overlay.size == (384, 384)

    said = farm.call(*asked, "b", "--client", "1")
    assert "its heatmap is kept at the client" in said
    assert [path.name for path in (farm.folder / "b").iterdir()] == ["digit.json"]
    said = farm.call(*asked, "c", "--client", "closed", fails=True)
    assert "this client shares nothing (xai.share=none)" in said
    assert not (farm.folder / "c").exists()
    said = farm.call(*asked, "d", "--client", "opne", fails=True)
    assert "there is no such client; there are open (0), numbers (1), closed (2)" in said
    assert "did you mean 'open'?" in said
    said = farm.call(*asked, "e", "--client", "open", "--round", "9", fails=True)
    assert "no model of round 9; it has 1, 2" in said

    farm.call(*asked, "merged", "--round", "1")
    heatmap = np.load(farm.folder / "merged" / "digit.heatmap.npy")
    weights = farm.folder / "runs" / "asked" / "checkpoints" / "round_1.safetensors"
    np.testing.assert_allclose(heatmap, expected(weights, picture, 3), atol=1e-5)

    farm.call("client", "stop", "open")
    said = farm.call(*asked, "f", "--client", "open", fails=True)
    assert "open (0) is not connected" in said
