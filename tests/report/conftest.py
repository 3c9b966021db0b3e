"""Runs made by hand, and a reader of pages that shares nothing with the code that writes them."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedgaze.report import write_federated_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
CLASSES = ["cat", "dog", "emu"]
VOID = {"meta", "link", "img", "input", "br", "hr", "path", "rect"}


def colour(round_: int, client: int, label: int) -> tuple[int, int, int]:
    """The one colour of a made picture, so that a test can tell which one it sees."""
    return 40 * round_, 60 * client, 80 * label


def _explanation(round_: int, client: int, folder: str | None, shared: str) -> dict[str, Any]:
    means = {
        "entropy": 0.8 + 0.01 * client,
        "border_mass": 0.1 + 0.01 * round_,
        "object_mass": 0.6 - 0.01 * client,
        "agreement": 0.5 + 0.02 * round_,
    }
    named = {} if folder is None else {"folder": folder}
    return means | {"quartiles": {}, "n": dict.fromkeys(means, 3), "shared": shared} | named


def summary_of(rounds: int = 3, clients: int = 4, planted: int | None = 2) -> dict[str, Any]:
    """A record of a run in which client 2 hangs on a mark."""
    plant = {"plant": {"clients": [planted], "fraction": 1.0}} if planted is not None else {}
    record: dict[str, Any] = {
        "fedgaze": "0.1.0",
        "status": "complete",
        "task": {
            "task_id": "made",
            "num_rounds": rounds,
            "num_clients": clients,
            "dataset": {"name": "digits", **plant},
            "wandb": {"use": True, "key": "sekret-7"},
        },
        "classes": CLASSES,
        "initial": {"accuracy": 0.3041, "loss": 1.125},
        "rounds": [],
    }
    for r in range(1, rounds + 1):
        entries = []
        for c in range(clients):
            server = _explanation(r, c, f"heatmaps/round_{r}/server/client_{c}", "overlays")
            server["mark_drop"] = 0.61 + 0.01 * r if c == 2 else 0.02 + 0.001 * c
            server["mark_mass"] = 0.35 if c == 2 else 0.11 + 0.002 * c
            entries.append(
                {
                    "client": c,
                    "samples": 100 + c,
                    "train": {"accuracy": 0.7 + 0.01 * c, "loss": 0.5},
                    "validation": {"accuracy": 0.6 + 0.03 * r + 0.01 * c, "loss": 0.4 + 0.013 * c},
                    "explanation": _explanation(r, c, f"heatmaps/round_{r}/client_{c}", "overlays"),
                    "server_explanation": server,
                }
            )
        record["rounds"].append(
            {
                "round": r,
                "global": {"accuracy": 0.5 + 0.1 * r, "loss": 1 / r},
                "clients": entries,
                "failures": [],
                "seconds": 2.0,
            }
        )
    return record


REASONS = ["a small white square pulls it to class cat: 0.82, the others 0.01", "its heat: 0.3"]


def gated(
    run: "Run", suspicion: list[dict[int, float]], policy: str = "report", threshold: float = 0.5
) -> "Run":
    """Give a run a gate's record: the suspicion of each round's clients.

    Who is suspicious has reasons and stands apart; the policy says what became of the update.
    """
    run.summary["task"]["gate"] = {"policy": policy, "floor": 2, "threshold": threshold}
    for entry, values in zip(run.summary["rounds"], suspicion, strict=True):
        clients = []
        for client, value in values.items():
            over = value >= threshold
            factor = {"report": 1.0, "downweight": round(1 - value, 4), "reject": float(not over)}
            clients.append(
                {
                    "client": client,
                    "suspicion": value,
                    "evidence": 8 * value,
                    "factor": factor[policy],
                    "reasons": REASONS if over else [],
                    "spreads": {"loss": 1.25, "pull": 9.75, "third": 2.0} if over else {},
                }
            )
        entry["gate"] = {
            "policy": policy,
            "clients": clients,
            "spreads": {"pull": 0.05} if len(clients) > 2 else {},
            "cpu_seconds": 0.5,
        }
    return run


def _draw(folder: Path, round_: int, client: int, weights: list[str]) -> None:
    folder.mkdir(parents=True)
    maps = []
    for label, name in enumerate(CLASSES):
        for kind in weights:
            stem = f"gradcam_class_{label}" + ("" if kind == "trained" else f"_0_{kind}")
            tone = colour(round_, client, label)
            Image.new("RGB", (48, 48), tone).save(folder / f"{stem}.jpg", quality=95)
            raw = np.ones((6, 6), np.float32)
            raw[5, 5] = 100.0 if client == 2 else 1.0
            np.save(folder / f"{stem}.npy", raw)
            maps.append(
                {
                    "picture": f"{stem}.jpg",
                    "raw_map": f"{stem}.npy",
                    "weights": kind,
                    "class": label,
                    "class_name": name,
                    "predicted_name": "emu" if (client, label) == (1, 0) else name,
                    "probability": 0.9 - 0.1 * label,
                    "measures": {"mark_mass": 0.1 * client},
                }
            )
    (folder / "manifest.json").write_text(json.dumps({"maps": maps}))


@dataclass
class Run:
    """A made run: change ``summary``, then ask for the ``page``."""

    path: Path
    summary: dict[str, Any]

    def draw(self) -> None:
        for each in self.summary["rounds"]:
            for entry in each["clients"]:
                for key, kinds in (
                    ("explanation", ["trained", "received"]),
                    ("server_explanation", ["trained", "marked"]),
                ):
                    if folder := entry.get(key, {}).get("folder"):
                        _draw(self.path / folder, each["round"], entry["client"], kinds)

    def write(self) -> Path:
        (self.path / "summary.json").write_text(json.dumps(self.summary))
        return write_federated_report(self.path)

    def page(self) -> "Page":
        return read(self.write().read_text(encoding="utf-8"))


@dataclass
class Page(HTMLParser):
    """A page as text, tables and attributes."""

    html: str
    text: str = ""
    tables: list[list[list[str]]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    headings: dict[str, str] = field(default_factory=dict)
    scripts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[tuple[str, str | None]] = []
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        self.tags.append((tag, about))
        if tag not in VOID:
            self._open.append((tag, about.get("id")))
        if tag == "table":
            self.tables.append([])
            self.captions.append("")
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and tag not in VOID:
            if self._open.pop()[0] == tag:
                break

    def handle_data(self, data: str) -> None:
        names = [tag for tag, _ in self._open]
        if "script" in names or "style" in names:
            self.scripts[self._open[-1][1] or str(len(self.scripts))] = data
            return
        self.text += data
        if {"td", "th"} & set(names):
            self.tables[-1][-1][-1] += data
        elif "caption" in names:
            self.captions[-1] += data
        for tag, name in self._open:
            if tag in {"h1", "h2"} and name:
                self.headings[name] = self.headings.get(name, "") + data

    def table(self, caption: str) -> list[list[str]]:
        """The rows of the one table whose caption begins so, white space squeezed."""
        found = [
            rows
            for rows, words in zip(self.tables, self.captions, strict=True)
            if " ".join(words.split()).startswith(caption)
        ]
        assert len(found) == 1, (caption, self.captions)
        return [[" ".join(cell.split()) for cell in row] for row in found[0]]

    @property
    def words(self) -> str:
        """All visible text, white space squeezed."""
        return " ".join(self.text.split())

    def data(self, name: str) -> Any:
        """A JSON block of the page."""
        return json.loads(self.scripts[name])


def read(html: str) -> Page:
    return Page(html)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run; ``drawn=False`` leaves its pictures out."""

    def make(*, drawn: bool = True, **how: Any) -> Run:
        run = Run(tmp_path, deepcopy(summary_of(**how)))
        if drawn:
            run.draw()
        return run

    return make


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        reason = "no chromium on this machine"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; afterwards nothing may have been asked for or complained about."""
    troubles: list[str] = []
    pages = []

    def opened(file: Any, **how: Any) -> Any:
        page = browser.new_page(**how)
        pages.append(page)
        page.on("console", lambda each: troubles.append(each.text))
        page.on("pageerror", lambda each: troubles.append(str(each)))
        page.on(
            "request",
            lambda each: (
                None
                if each.url.startswith("data:") or each.url.split("#")[0] == file.as_uri()
                else troubles.append(each.url)
            ),
        )
        page.goto(file.as_uri())
        return page

    yield opened
    for page in pages:
        page.close()
    assert troubles == []
