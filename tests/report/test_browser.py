"""The page in a browser: does it run under its own policy, and do its controls work?"""

from collections.abc import Callable
from typing import Any

import pytest
from tests.report.conftest import gated

MIDDLE_PIXEL = """async (picture) => {
    await picture.decode();
    const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    return [...context.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data].slice(0, 3);
}"""


def expect_colour(page: Any, round_: int, client: int, label: int) -> None:
    """The picture in a cell of the gallery is the one that was drawn for it."""
    row = page.locator("#gallery-rows tr").nth(client)
    seen = row.locator("img").nth(label).evaluate(MIDDLE_PIXEL)
    drawn = (40 * round_, 60 * client, 80 * label)
    assert all(abs(a - b) < 14 for a, b in zip(seen, drawn, strict=True)), (seen, drawn)


def test_slider_and_buttons_change_the_gallery(
    make_run: Callable[..., Any], visit: Callable[..., Any]
) -> None:
    run = make_run()
    entry = run.summary["rounds"][1]["clients"][1]["explanation"]
    del entry["folder"]
    entry["shared"] = "profile"
    page = visit(run.write())
    expect_colour(page, 3, 1, 2)
    slider = page.locator("#round")
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator("#round-shown").inner_text() == "1"
    assert slider.get_attribute("aria-valuetext") == "Round 1"
    for client, label in ((0, 0), (2, 1), (3, 2)):
        expect_colour(page, 1, client, label)
    page.keyboard.press("ArrowRight")
    expect_colour(page, 2, 3, 1)

    page.locator("#view input[value=marked]").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#view input:checked").get_attribute("value") == "own"
    assert "differ from client to client" in page.locator("#view-note").inner_text()
    assert "kept at the client" in page.locator("#gallery-rows tr").nth(1).inner_text()
    assert "90\N{NO-BREAK SPACE}%" in page.locator("#gallery-rows tr").nth(0).inner_text()


def test_charts_answer_keys_pointer_and_source(
    make_run: Callable[..., Any], visit: Callable[..., Any]
) -> None:
    run = make_run()
    page = visit(run.write())
    assert page.locator(".plot canvas").count() == page.locator(".plot").count() == 12
    figure = page.locator("figure[data-chart=mark_drop]")
    plot = figure.locator(".plot")
    plot.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    said = figure.locator(".spoken").inner_text().replace("\N{NO-BREAK SPACE}", " ")
    assert said.startswith("Round 2: Client 2 63.0 points, Client 3 2.3 points")

    plot.hover(position={"x": plot.bounding_box()["width"] - 12, "y": 60})
    tip = plot.locator(".tip").inner_text().replace("\N{NO-BREAK SPACE}", " ")
    assert tip.split("\n")[0] == "Round 3"
    assert "64.0 points" in tip

    page.locator("#source label", has_text="own").click()
    assert not plot.is_visible()
    assert figure.locator(".absent").is_visible()
    assert page.locator("figure[data-chart=entropy] .plot[data-source=own]").is_visible()
    # Charts that know only one source are not switched off with the others.
    assert page.locator("figure[data-chart=accuracy] .plot").is_visible()


def test_hostile_names_run_nothing(make_run: Callable[..., Any], visit: Callable[..., Any]) -> None:
    evil = "</script><img src=x onerror=\"document.body.dataset.evil='1'\">"
    run = make_run()
    run.summary["classes"][:] = [evil, evil, "emu"]
    run.summary["rounds"][0]["clients"][1]["explanation"] = {"failed": evil}
    page = visit(run.write())
    page.locator("#view label", has_text="Each client’s own").click()
    page.locator("#round").fill("0")
    assert evil in page.locator("#gallery-rows tr").nth(1).inner_text()
    assert page.evaluate("document.body.dataset.evil") is None
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone_in_both_schemes(
    make_run: Callable[..., Any], visit: Callable[..., Any], scheme: str
) -> None:
    size = {"width": 360, "height": 740}
    run = gated(make_run(), [{0: 0.3, 1: 0.1, 2: 0.9, 3: 0.05}] * 3)
    run.summary["rounds"][2]["gate"]["clients"][2]["reasons"] = ["heat" * 40, "heat " * 40]
    page = visit(run.write(), viewport=size, color_scheme=scheme)
    for each in page.locator("section:has(> #gate) summary").all():
        if each.is_visible():
            each.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    why = page.locator(".decided td.why").first
    assert why.locator(".apart").is_visible()
    assert why.bounding_box()["x"] + why.bounding_box()["width"] <= 360
    red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(red) < 60) == (scheme == "dark")


def test_one_round_and_no_pictures_still_run(
    make_run: Callable[..., Any], visit: Callable[..., Any]
) -> None:
    page = visit(make_run(drawn=False, rounds=1, planted=None).write())
    assert page.locator("#round").count() == 0
    assert page.locator(".plot canvas").count() == 12
    run = make_run(drawn=False)
    run.summary = {"status": "running", "task": {}, "rounds": []}
    assert visit(run.write()).locator("h1").inner_text() == "No round is finished yet."
