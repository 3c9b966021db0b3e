"""Is the first sentence what was measured, and no more?"""

from collections.abc import Callable
from typing import Any

import pytest

from fedgaze.report.federated.verdict import apart


@pytest.mark.parametrize(
    ("values", "client", "expected"),
    [
        ({0: 0.10, 1: 0.12, 2: 0.40}, 2, True),
        ({0: 0.10, 1: 0.30, 2: 0.40}, 2, False),  # the others differ as much among themselves
        ({0: 0.100, 1: 0.101, 2: 0.140}, 2, False),  # less than five points
        ({0: 0.1, 2: 0.9}, 2, False),  # of two, neither is the odd one out
        ({0: 0.80, 1: 0.82, 2: 0.50}, 2, True),
    ],
)
def test_apart(values: dict[Any, float], client: int, expected: bool) -> None:
    assert apart(values, client) is expected


def test_the_planted_client_is_singled_out(make_run: Callable[..., Any]) -> None:
    page = make_run(drawn=False).page()
    assert page.headings["verdict"] == "Client 2’s model looks at the lower right corner."
    assert "loses 64.0 points of probability at client 2; at the others 2.0 to 2.3." in page.words
    assert "mark in the data of client 2, on purpose: the measurements single" in page.words


def test_it_follows_the_numbers_and_not_the_plan(make_run: Callable[..., Any]) -> None:
    page = make_run(drawn=False, planted=1).page()
    assert page.headings["verdict"].startswith("Client 2’s")
    assert "data of client 1, on purpose; what stands apart in the measurements is client 2" in (
        page.words
    )


def test_alike_clients_are_not_accused(make_run: Callable[..., Any]) -> None:
    run = make_run(drawn=False)
    for entry in run.summary["rounds"]:
        for each in entry["clients"]:
            for name in ("mark_drop", "mark_mass"):
                each["server_explanation"][name] = 0.1 + 0.001 * each["client"]
    page = run.page()
    assert page.headings["verdict"] == "No client’s model stands apart from the others."
    assert "do not single it out" in page.words
    # The words of the rule stand in the explanation; the badge must not.
    assert "hot" not in " ".join(about.get("class") or "" for _, about in page.tags).split()


def test_own_images_are_named_as_such(make_run: Callable[..., Any]) -> None:
    run = make_run(drawn=False, planted=None)
    for entry in run.summary["rounds"]:
        for each in entry["clients"]:
            del each["server_explanation"]
            each["explanation"]["object_mass"] = 0.2 if each["client"] == 3 else 0.6
    page = run.page()
    assert page.headings["verdict"] == "Client 3’s model looks past the object."
    assert "each on images of its own" in page.words
    assert "on purpose" not in page.words


def test_two_clients_measured_are_not_compared(make_run: Callable[..., Any]) -> None:
    page = make_run(drawn=False, clients=2, planted=None).page()
    assert page.headings["verdict"] == "No client’s model stands apart from the others."
