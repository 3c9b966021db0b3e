"""`fedgaze evaluate`: are these heatmaps any good?"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from fedgaze.cli.evaluated import print_change, print_tables
from fedgaze.cli.listing import print_metrics
from fedgaze.cli.options import (
    PICTURES,
    RUN,
    SHOWN,
    Checkpoint,
    ClassNames,
    Device,
    Json,
    Memory,
    MethodOptions,
    Model,
    ModelCode,
    Preparation,
    Quiet,
    Seed,
    TrackerName,
    Verbose,
    open_model,
    option,
    progress_bar,
    read_options,
    speak,
    words,
)
from fedgaze.errors import FedgazeError

if TYPE_CHECKING:
    from fedgaze.measure import Change
    from fedgaze.models import Classifier
    from fedgaze.report import Evaluation, Judge

__all__ = ["evaluate"]

MEASURED = "What is measured"
# Not average drop, which rewards maps that cover much, and not IoU, which depends on a threshold.
USUAL = ("deletion", "insertion", "road", "max_sensitivity", "random_logit", "entropy", "gini")
USUAL_PLACES = (
    "pointing_game",
    "energy_pointing_game",
    "relevance_rank_accuracy",
    "top_k_intersection",
)


def evaluate(  # noqa: PLR0913, PLR0917 - one argument an option
    directory: Annotated[
        Path,
        typer.Argument(help="A folder of pictures, and of folders of pictures.", metavar="DIR"),
    ],
    output: Annotated[
        Path,
        option(
            PICTURES,
            "Where results go. The same command again goes on where it was; a folder that holds "
            "something else is left alone.",
            metavar="DIR",
        ),
    ] = Path("evaluation"),
    boxes: Annotated[
        tuple[str, Path] | None,
        option(
            PICTURES,
            "Where objects are: `voc` and a folder of XML files, or `coco` and a JSON file.",
            metavar="FORMAT PATH",
        ),
    ] = None,
    box_classes: Annotated[
        Path | None,
        option(
            PICTURES,
            "Which classes boxes are of that are not called as they are: YAML or JSON such as "
            "`dog: [beagle, 208]`. Boxes of no class then count for none; without this, for "
            "whichever is explained.",
            metavar="FILE",
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        option(
            PICTURES,
            "Compare groups of pictures: a CSV file with the columns `file` and `group`.",
            metavar="FILE",
        ),
    ] = None,
    model: Model = None,
    checkpoint: Checkpoint = None,
    model_code: ModelCode = None,
    classes: ClassNames = None,
    preprocess: Preparation = None,
    device: Device = "auto",
    method: Annotated[
        str,
        option(SHOWN, "Methods separated by commas; see `explain --list-methods`."),
    ] = "gradcam",
    layer: Annotated[
        str | None,
        option(
            SHOWN,
            "A layer's name, a Conv2d index, or `first`, `middle`, `last`. By default the last "
            "layer that still has height and width.",
            metavar="LAYER",
        ),
    ] = None,
    target: Annotated[
        str,
        option(
            SHOWN,
            "The class to explain, by name or index, or one a picture: `predicted`, `folder` "
            "(called as its folder is), `box` (the likeliest that its boxes are of).",
            metavar="CLASS",
        ),
    ] = "predicted",
    options: MethodOptions = None,
    baselines: Annotated[
        bool,
        option(
            MEASURED,
            "Judge what knows nothing of the model, too: noise, edges, and the picture's centre.",
        ),
    ] = True,
    metrics: Annotated[
        str | None,
        option(
            MEASURED,
            "Metrics separated by commas, or all of an axis (`faithfulness`, `localisation`, "
            "`robustness`, `randomisation`, `complexity`), or `all`; see `--list-metrics`. By "
            "default a few of each axis.",
        ),
    ] = None,
    metric_option: Annotated[
        list[str] | None,
        option(
            MEASURED,
            "An option of a metric, such as `deletion.steps=100`; may be repeated.",
            metavar="METRIC.NAME=VALUE",
        ),
    ] = None,
    attack: Annotated[
        str | None,
        option(
            MEASURED,
            "Also explain pictures changed by `fgsm` or `pgd`, or by `noise`, `blur`, `jpeg` or "
            "`contrast`, and say of each how alike both heatmaps are. Without `--metrics`, only "
            "that.",
            metavar="HOW",
        ),
    ] = None,
    epsilon: Annotated[
        str,
        option(MEASURED, "How far an attack moves each number, of [0, 1].", metavar="E"),
    ] = "8/255",
    severity: Annotated[int, option(MEASURED, "Of noise, blur, jpeg, contrast.", min=1, max=5)] = 1,
    batch_size: Annotated[int, option(RUN, "How many pictures are judged at once.", min=1)] = 8,
    memory: Memory = None,
    tracker: TrackerName = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    list_metrics: Annotated[
        bool,
        typer.Option(
            "--list-metrics",
            help="List the metrics with their ranges, costs and options.",
            is_eager=True,
            callback=print_metrics,
        ),
    ] = False,
) -> None:
    """Measure whether heatmaps can be trusted.

    Every method is judged by every metric on every picture of a folder, beside heatmaps that know
    nothing of the model. Printed is a table an axis: means with 95 % intervals (bootstrap over
    pictures), the best in bold, ranks in brackets.

    The output folder gets `report.html`, `metrics.parquet` and `metrics.csv` (a row a picture,
    method and metric; where there is no value, the reason), and `summary.json`. A run that was
    interrupted goes on where it was when the same command is given again.

    **Example:** `fedgaze evaluate photos --boxes voc annotations --model resnet50 --method
    gradcam,layercam,eigencam`
    """
    del list_metrics
    speak(verbose)
    console = Console(highlight=False, soft_wrap=True, quiet=quiet or as_json)
    change = _change(attack, epsilon, severity, seed)
    chosen = _metrics(metrics, with_boxes=boxes is not None, with_change=change is not None)
    per_metric = _metric_options(metric_option or [])
    method_options = read_options(options)
    grouped = {} if groups is None else _groups(groups)

    from fedgaze.data import find_images, read_boxes
    from fedgaze.store import check_tracker

    if tracker is not None:
        check_tracker(tracker)
    files = find_images(directory)
    where = None if boxes is None else read_boxes(*boxes)
    if box_classes is not None and boxes is None:
        raise FedgazeError("--box-classes goes with --boxes")
    with console.status("Opening the model"):
        from fedgaze.report import Judge, open_evaluation, read_box_classes, write_evaluation

        classifier = open_model(model, checkpoint, model_code, classes, preprocess, device)
    judge = Judge(
        methods=words(method, "--method"),
        metrics=chosen,
        layer=layer,
        target=target,
        boxes=where,
        box_classes=(
            None if box_classes is None else read_box_classes(box_classes, classifier.classes)
        ),
        groups=grouped,
        change=_with_scale(change, classifier),
        baselines=baselines,
        options=method_options,
        metric_options=per_metric,
        batch_size=batch_size,
        memory=memory,
        seed=seed,
    )
    evaluation = open_evaluation(classifier, directory, files, output, judge)
    failed = _run(evaluation, console, judge)
    page = write_evaluation(evaluation.record)
    if tracker is not None:
        _track(tracker, evaluation, page)
    if as_json:
        typer.echo((output / "summary.json").read_text(encoding="utf-8").rstrip())
    else:
        print_tables(evaluation, console)
        console.print(f"report: {escape(str(page))}", style="bold")
    if failed:
        raise typer.Exit(1)


def _run(evaluation: "Evaluation", console: Console, judge: "Judge") -> int:
    """Judge the pictures, say of each what is asked for, and count those that cannot be read."""
    record = evaluation.record
    if record.lines:
        console.print(f"{len(record.lines)} of {len(evaluation.files)} pictures are done already")
    with progress_bar(console, "Judging", len(evaluation.files)) as advance:
        advance(len(record.lines))
        for lines in evaluation.run():
            advance(len(lines))
            for line in lines:
                if "error" in line:
                    typer.secho(f"fedgaze: {line['error']}", err=True, fg=typer.colors.RED)
                elif judge.change is not None:
                    print_change(line, judge.change.name, evaluation, console)
    return sum("error" in line for line in record.lines)


def _track(tracker: str, evaluation: "Evaluation", page: Path) -> None:
    """Hand the means, the tables and the report over to a tracker."""
    import math

    from fedgaze.store import open_tracker

    record = evaluation.record
    table = record.table()
    config = {key: record.asked[key] for key in ("model", "weights", "folder", "target", "seed")}
    sent = open_tracker(tracker, record.folder, config)
    try:
        sent.numbers(
            {
                f"{maker}/{column.name}": cell.summary.mean
                for maker in table.makers
                for column in table.columns
                if math.isfinite((cell := table.cells[maker, column.name]).summary.mean)
            }
        )
        for name in ("summary.json", "metrics.parquet"):
            sent.file(record.folder / name)
        sent.file(page)
    finally:
        sent.close()


def _metrics(given: str | None, *, with_boxes: bool, with_change: bool) -> list[str]:
    """The names of the metrics that are asked for, by name, by axis, or as usual."""
    from fedgaze.measure import find_metric, list_metrics

    if given is None:
        if with_change:
            return []
        return [*USUAL[:3], *(USUAL_PLACES if with_boxes else ()), *USUAL[3:]]
    axes = {each.axis for each in list_metrics()}
    found: list[str] = []
    for word in words(given, "--metrics"):
        if word == "all" or word in axes:
            found += [
                each.name
                for each in list_metrics()
                if word in ("all", each.axis) and (with_boxes or each.axis != "localisation")
            ]
        else:
            found.append(find_metric(word).name)
    found = list(dict.fromkeys(found))
    without = [each for each in found if find_metric(each).axis == "localisation"]
    if without and not with_boxes:
        raise FedgazeError(f"{without[0]} needs to know where objects are: add --boxes FORMAT PATH")
    if not found and not with_change:
        raise FedgazeError(f"--metrics {given!r} names no metric that can be measured here")
    return found


def _metric_options(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    from fedgaze.measure import find_metric

    found: dict[str, dict[str, Any]] = {}
    for word in given:
        metric, dot, rest = word.partition(".")
        if not dot:
            raise FedgazeError(
                f"--metric-option {word!r} should be METRIC.NAME=VALUE, such as deletion.steps=100"
            )
        find_metric(metric)
        found.setdefault(metric, {}).update(read_options([rest], "--metric-option"))
    return found


def _change(attack: str | None, epsilon: str, severity: int, seed: int) -> "Change | None":
    """What is done to pictures, checked before anything is opened."""
    if attack is None:
        return None
    from fedgaze.errors import nearest
    from fedgaze.measure import Change
    from fedgaze.measure.attacks import ATTACKS, CORRUPTIONS

    allowed = [*ATTACKS, *CORRUPTIONS]
    if attack not in allowed:
        raise FedgazeError(
            f"--attack is {attack!r}; allowed are {', '.join(allowed)}{nearest(attack, allowed)}"
        )
    try:
        size = float(Fraction(epsilon))
    except (ValueError, ZeroDivisionError) as error:
        raise FedgazeError(
            f"--epsilon is {epsilon!r}; allowed is a number or a fraction such as 8/255"
        ) from error
    if not 0 < size <= 1:
        raise FedgazeError(f"--epsilon is {epsilon}; allowed is above 0, up to 1")
    return Change(attack, epsilon=size, severity=severity, seed=seed)


def _with_scale(change: "Change | None", classifier: "Classifier") -> "Change | None":
    from dataclasses import replace

    if change is None:
        return None
    preprocess = classifier.preprocess
    return replace(change, mean=tuple(preprocess.mean), std=tuple(preprocess.std))


def _groups(path: Path) -> dict[str, str]:
    """Read which group each picture is of."""
    import csv

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            names = rows.fieldnames or []
            if not {"file", "group"} <= set(names):
                raise FedgazeError(
                    f"{path} has the columns {', '.join(names) or 'none'}; needed are file and "
                    "group"
                )
            found: dict[str, str] = {}
            for row in rows:
                if row["group"] and found.setdefault(row["file"], row["group"]) != row["group"]:
                    raise FedgazeError(
                        f"{path} puts {row['file']} into two groups, {found[row['file']]} and "
                        f"{row['group']}"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FedgazeError(f"the groups {path} cannot be read: {error}") from error
    if not found:
        raise FedgazeError(f"{path} puts no file into a group")
    return found
