"""One file, nothing fetched, nothing run that is not ours, whatever a record says."""

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

HOSTILE = "</script><img src=x onerror=document.title='pwned'><!--<script>'\"&"


def hostile(run: Any) -> Any:
    run.summary["classes"][0] = HOSTILE
    run.summary["task"]["task_id"] = HOSTILE
    run.summary["fedgaze"] = HOSTILE
    run.summary["task"][HOSTILE] = HOSTILE
    last = run.summary["rounds"][-1]
    last["not_merged"] = HOSTILE
    last["failures"] = [{"client": HOSTILE, "reason": HOSTILE}]
    last["clients"][1]["explanation"] = {"failed": HOSTILE}
    return run


def test_nothing_in_a_record_becomes_markup(make_run: Callable[..., Any]) -> None:
    page = hostile(make_run()).page()
    assert [about for tag, about in page.tags if "onerror" in about] == []
    assert {about["src"][:10] for tag, about in page.tags if tag == "img"} == {"data:image"}
    assert page.text.count(HOSTILE) >= 5
    assert page.data("gallery-data")["table"]["own"]["3"][1]["reason"] == f"failed: {HOSTILE}"
    assert "<!--" not in page.html


def test_no_address_leads_outside(make_run: Callable[..., Any]) -> None:
    page = make_run().page()
    links = [
        about[name]
        for _, about in page.tags
        for name in ("src", "href", "action", "data", "srcset", "poster")
        if about.get(name) is not None
    ]
    assert links
    assert all(re.match(r"#|data:image/webp;", each) for each in links)
    assert "url(" not in page.html
    assert "@import" not in page.html


def test_the_policy_names_every_block_and_nothing_else(make_run: Callable[..., Any]) -> None:
    page = make_run().page()
    policy = next(
        about["content"]
        for _, about in page.tags
        if about.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(each.strip().split(" ", 1) for each in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"

    def hashes(pattern: str) -> set[str]:
        blocks = re.findall(pattern, page.html, re.DOTALL)
        digests = [hashlib.sha256(each.encode()).digest() for each in blocks]
        return {f"'sha256-{base64.b64encode(each).decode()}'" for each in digests}

    assert set(rules["script-src"].split()) == hashes(r"<script>(.*?)</script>")
    assert set(rules["style-src"].split()) == hashes(r"<style>(.*?)</style>")
    # Such a policy blocks inline styles and handlers: the page must not count on them.
    assert not [name for _, about in page.tags for name in about if name == "style"]
    assert not [name for _, about in page.tags for name in about if name.startswith("on")]


def test_secrets_stay_out(make_run: Callable[..., Any]) -> None:
    page = make_run(drawn=False).page()
    assert "wandb.use" in page.html
    assert "sekret-7" not in page.html


def test_a_long_run_stays_small(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(rounds=9)
    whole = run.page().data("gallery-data")
    assert whole["rounds"] == list(range(1, 10))
    monkeypatch.setattr(
        "fedgaze.report.federated.gallery.BUDGET", sum(map(len, whole["pictures"])) // 3
    )
    page = run.page()
    rounds = page.data("gallery-data")["rounds"]
    assert 3 <= len(rounds) <= 4
    assert {1, 5, 9} <= set(rounds)
    assert f"{9 - len(rounds)} rounds are left out" in page.words
    assert 'max="' + str(len(rounds) - 1) + '"' in page.html


def test_every_chart_has_its_table_and_every_picture_its_words(
    make_run: Callable[..., Any],
) -> None:
    page = make_run().page()
    charts = [about for _, about in page.tags if about.get("role") == "img"]
    assert len(charts) == 2 + 6 + 4
    assert all(about["aria-label"] and about["tabindex"] == "0" for about in charts)
    assert all(about.get("alt") for tag, about in page.tags if tag == "img")
    assert isinstance(page, HTMLParser)


def test_written_anew_and_whole(make_run: Callable[..., Any]) -> None:
    run = make_run(drawn=False)
    first = run.write()
    first.write_text("old")
    assert run.write() == first
    assert first.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [each.name for each in run.path.iterdir() if each.name.startswith(".")] == []
