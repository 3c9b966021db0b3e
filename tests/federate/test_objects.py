"""Where the object is, of probe sets whose images know it by a box."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.federate.conftest import merged

from fedgaze.config import parse_task
from fedgaze.federate.client import Client
from fedgaze.federate.look import look, make_probe
from fedgaze.federate.setup import setup_of


def test_a_scene_s_box_is_its_object_for_server_and_clients(
    small: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for plant in (None, {"clients": [0]}):
        changes = {"dataset": {"name": "scenes", "plant": plant}}
        setup = setup_of(parse_task(merged(small(), changes)))
        images, chosen = setup.server_probe
        client = Client(setup, 0, tmp_path)
        own = torch.arange(5)
        for probe, part, which in (
            (make_probe(setup, images, chosen), images, chosen),
            (client._probe(), client.validation, client._probe().samples),
            (make_probe(setup, client.training, own), client.training, own),
        ):
            boxes = part.boxes[which]  # type: ignore[attr-defined]
            assert probe.objects is not None
            assert probe.objects.sum((1, 2)).tolist() == [256] * len(which)
            for mask, (left, top, right, bottom) in zip(probe.objects, boxes.tolist(), strict=True):
                assert mask[top:bottom, left:right].all()
        seen = look(setup.new_learner(), probe)
        maps = seen.explanation.heatmaps
        inside = torch.stack(
            [each[mask].sum() for each, mask in zip(maps, probe.objects, strict=True)]
        )
        torch.testing.assert_close(
            seen.measures["object_mass"].float(), inside / maps.sum((1, 2)), rtol=1e-4, atol=1e-5
        )
