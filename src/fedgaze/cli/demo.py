"""`fedgaze demo`: a federation on real digits in which one client looks at the wrong place."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

__all__ = ["demo"]


def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Overrule keys of its task: `gate.policy=reject` keeps out who is suspicious, "
            "`dataset.plant=null` plants nothing.",
            metavar="[KEY=VALUE]…",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            help="The run's folder. The demo's own earlier record there is replaced; anything else "
            "is left alone and `-2` is added.",
            metavar="DIR",
        ),
    ] = Path("runs/demo"),
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Everything random comes from it.")
    ] = 0,
) -> None:
    """See it work: four clients learn handwritten digits; one has a telltale mark in its data.

    In the corner of each image of client 2 is a small mark that gives the digit away. Its model
    learns the mark instead of the digit, scores well with it, and its heatmaps show it.
    """
    from fedgaze.cli.run import carry_out, how_to_go_on
    from fedgaze.federate import demo_task, start

    console = Console(highlight=False)
    task = demo_task(seed, overrides or [])
    done = carry_out(
        console,
        lambda watch: start(task, output, watch, demo=True),
        how_to_go_on(output),
        threshold=task.gate.threshold,
    )
    console.print()
    _last_words(console, done.summary)


def _last_words(console: Console, summary: dict[str, Any]) -> None:
    """What the last round showed: by the gate first, then by what was measured."""
    from fedgaze.cli.watch import ADDS_UP, suspicious, threshold_of

    last = summary["rounds"][-1]
    gate = last.get("gate", {})
    found = suspicious(gate, threshold_of(summary))
    for each in found:
        console.print(
            f"The gate finds client {each['client']} suspicious ({each['suspicion']:.2f}):"
        )
        for reason in each["reasons"] or [ADDS_UP]:
            console.print(Text(f"  {reason}"), soft_wrap=True)
    if not found and "clients" in gate:
        console.print("The gate finds no client suspicious.")
    if plant := summary["task"]["dataset"]["plant"]:
        _truth(console, last, plant["clients"][0])


def _truth(console: Console, last: dict[str, Any], planted: int) -> None:
    """What the measures say that know where the mark is."""
    looks = {
        each["client"]: look
        for each in last["clients"]
        if "mark_drop" in (look := each.get("server_explanation", {}))
    }
    if not looks:
        return
    least = min(looks, key=lambda client: looks[client]["object_mass"])
    most = max(looks, key=lambda client: looks[client]["mark_drop"])
    console.print(
        f"On the same images, client {least} looks least at the strokes, and client {most} loses "
        f"most when the mark is taken away ({looks[most]['mark_drop']:.2f} of its probability).\n"
        f"The mark was planted in the data of client {planted}."
    )
