"""The pages of commands, in a browser: they run under their own policy, and ask for nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fedgaze.cli.app import app
from fedgaze.models import DigitsNet

SMALL = 5 * 2**20


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of digits in a folder a class, and a network with random weights."""
    from fedgaze.data import load_digits

    place = tmp_path_factory.mktemp("digits")
    held = load_digits().test
    for index in range(60):
        label = str(int(held.labels[index]))
        pixels = (held[torch.tensor([index])][0, 0] * 255).byte().numpy()
        (place / "set" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / "set" / label / f"{index:02d}.png")
    torch.manual_seed(0)
    torch.save(DigitsNet().state_dict(), place / "net.pt")
    (place / "names.txt").write_text("\n".join("0123456789"))
    return place


def run(place: Path, command: str, *words: object) -> None:
    model = ["--model", "fedgaze.models.DigitsNet", "--checkpoint", place / "net.pt"]
    every = [command, *words, *model, "--classes", place / "names.txt"]
    done = CliRunner().invoke(app, [str(each) for each in every])
    assert done.exit_code == 0, done.output


def test_evaluation(digits: Path, tmp_path: Path, visit: Callable[..., Any]) -> None:
    output = tmp_path / "out"
    words = ["--method", "gradcam,eigencam", "--metrics", "deletion,gini,entropy"]
    run(digits, "evaluate", digits / "set", "--target", "folder", *words, "--output", output)
    summary = json.loads((output / "summary.json").read_text())
    file = output / "report.html"
    assert file.stat().st_size < SMALL
    page = visit(file)
    assert page.locator("h1").inner_text() == summary["headline"]
    rows = page.locator(".measured tbody tr")
    assert rows.count() == 3
    first = rows.nth(0)
    assert first.locator("th").inner_text().split("\n")[0] == "deletion"
    shown = [each.split("\n")[0] for each in first.locator("td").all_inner_texts()]
    expected = [summary["table"][each]["deletion"]["mean"] for each in summary["table"]]
    assert [each[:5] for each in shown] == [f"{each:.3f}" for each in expected]
    # Each interval's drawing holds its mean.
    for cell in first.locator("td").all():
        span, tick = (cell.locator(f".{each}").bounding_box() for each in ("span", "tick"))
        assert span["x"] - 2 <= tick["x"] <= span["x"] + span["width"] + 2
    assert page.locator(".gallery img").count() == page.locator(".gallery img[alt]").count() > 30
    assert all(page.locator(".gallery img").evaluate_all("all => all.map(i => i.naturalWidth > 0)"))


def test_comparison(digits: Path, tmp_path: Path, visit: Callable[..., Any]) -> None:
    picture = next((digits / "set" / "3").iterdir())
    words = ["--method", "gradcam,eigencam,saliency", "--targets", "top2"]
    run(digits, "compare", picture, *words, "--output", tmp_path / "out")
    page = visit(tmp_path / "out" / "comparison.report.html")
    assert page.locator("h1").inner_text() == "1 model × 3 layers × 3 methods"
    assert page.locator(".gallery").count() == 2
    rows = page.locator(".gallery").nth(0).locator("tbody tr")
    assert [each.split("\n")[1] for each in rows.locator("th").all_inner_texts()] == [
        "conv1", "conv2", "conv3",
    ]  # fmt: skip
    assert rows.locator("img").count() == 7
    assert rows.nth(1).locator("td").nth(2).inner_text() == "explains no layer"


def test_embedding_shows_a_picture_where_somebody_points(
    digits: Path, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    output = tmp_path / "out"
    run(digits, "embed", digits / "set", "--neighbours", "3", "--output", output)
    file = output / "report.html"
    assert file.stat().st_size < SMALL
    page = visit(file, viewport={"width": 1280, "height": 1600})
    cloud = page.locator(".cloud").nth(1)
    spots = cloud.locator("svg > *")
    assert spots.count() == 60
    cloud.scroll_into_view_if_needed()
    spots.nth(17).hover(force=True)
    tip = cloud.locator(".tip")
    assert tip.is_visible()
    assert tip.locator("img").evaluate("i => i.naturalWidth") == 128
    chosen = cloud.locator(".chosen")
    assert chosen.count() == 1
    points = json.loads(page.locator("#points-data").inner_text(timeout=1000) or "[]")
    index = spots.evaluate_all("all => all.findIndex(s => s.classList.contains('chosen'))")
    assert points[index]["label"] in tip.inner_text()
    cloud.focus()
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    page.keyboard.press("ArrowRight")
    said = cloud.locator("xpath=following-sibling::p").inner_text()
    assert said.startswith(points[0]["label"])
    assert points[0]["name"] in said


def test_explanations(digits: Path, tmp_path: Path, visit: Callable[..., Any]) -> None:
    pictures = sorted((digits / "set" / "5").iterdir())[:2]
    words = ["--method", "gradcam,saliency", "--report", "--output", tmp_path / "out"]
    run(digits, "explain", *pictures, *words)
    page = visit(tmp_path / "out" / "explanations.report.html")
    assert page.locator("h2").all_inner_texts() == [each.name for each in pictures]
    figures = page.locator(".tiles").nth(0).locator("figure")
    assert figures.count() == 3
    # The overlay of the page is the one that was written.
    with Image.open(tmp_path / "out" / f"{pictures[0].stem}.gradcam.overlay.png") as overlay:
        expected = np.asarray(overlay.convert("RGB").resize((1, 1), Image.Resampling.BOX))
    seen = figures.nth(1).locator("img").evaluate(
        """async (picture) => {
            await picture.decode();
            const canvas = new OffscreenCanvas(1, 1);
            const context = canvas.getContext("2d");
            context.imageSmoothingQuality = "high";
            context.drawImage(picture, 0, 0, 1, 1);
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }"""
    )  # fmt: skip
    assert np.abs(np.array(seen) - expected[0, 0]).max() < 40


def test_hostile_names_run_nothing(digits: Path, tmp_path: Path, visit: Callable[..., Any]) -> None:
    evil = "<img src=x onerror=document.body.dataset.evil=1>"
    (tmp_path / "set" / evil).mkdir(parents=True)
    for number, picture in enumerate(sorted((digits / "set" / "5").iterdir())):
        (tmp_path / "set" / evil / f"{evil}{number}.png").write_bytes(picture.read_bytes())
    (tmp_path / "set" / "other").mkdir()
    for picture in (digits / "set" / "6").iterdir():
        (tmp_path / "set" / "other" / picture.name).write_bytes(picture.read_bytes())
    run(digits, "embed", tmp_path / "set", "--neighbours", "2", "--output", tmp_path / "e")
    run(digits, "evaluate", tmp_path / "set", "--metrics", "gini", "--output", tmp_path / "v")
    for file in (tmp_path / "e" / "report.html", tmp_path / "v" / "report.html"):
        page = visit(file)
        page.wait_for_timeout(50)
        assert page.evaluate("document.body.dataset.evil") is None
        assert page.locator("img[src=x]").count() == 0
