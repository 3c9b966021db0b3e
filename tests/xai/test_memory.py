"""How much runs at once: batches, budgets in bytes, and memory that runs out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai import Explanation, Method, explain, find_method, list_methods
from fedgaze.xai.memory import Budget, Chunks, peak_bytes, read_bytes

METHODS = [method for method in list_methods() if method.kind != "attention"]
FEW: dict[str, dict[str, Any]] = {
    "rise": {"masks": 40},
    "occlusion": {"window": 4, "stride": 4},
    "sscam": {"samples": 2},
    "iscam": {"steps": 2},
    "smooth_gradcam++": {"samples": 2},
    "integrated_gradients": {"steps": 6},
    "smoothgrad": {"samples": 6},
    "vargrad": {"samples": 6},
}
each_method = pytest.mark.parametrize("method", METHODS, ids=[each.name for each in METHODS])


def network() -> nn.Sequential:
    torch.manual_seed(8)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()


def explained(model: nn.Module, images: Tensor, method: Method, **more: Any) -> Explanation:
    options = {k: v for k, v in FEW.get(method.name, {}).items() if k in method.options}
    if method.layers:
        options["layers"] = "3"
    targets = torch.tensor([[0, 2], [1, 3]]).repeat(-(-len(images) // 2), 1)[: len(images)]
    return explain(model, images, method, targets, **options, **more)


def same(found: Explanation, expected: Explanation) -> None:
    size = float(expected.raw.abs().max())
    torch.testing.assert_close(found.raw, expected.raw, rtol=1e-4, atol=1e-4 * size)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.targets, expected.targets)
    assert torch.equal(found.images, expected.images)
    assert found.flags == expected.flags


@each_method
def test_results_do_not_depend_on_how_much_runs_at_once(method: Method) -> None:
    model, images = network(), torch.rand(5, 3, 8, 8)
    expected = explained(model, images, method)
    for more in ({"batch_size": 1}, {"batch_size": 3}, {"memory": "40KB"}):
        same(explained(model, images, method, **more), expected)


@each_method
def test_where_memory_runs_out_it_halves_and_goes_on(method: Method) -> None:
    images, limit = torch.rand(5, 3, 8, 8), 2
    expected = explained(network(), images, method)
    model, sizes = network(), []

    def full(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model[2].register_forward_pre_hook(full)
    same(explained(model, images, method), expected)
    assert max(sizes) > limit
    # It does not try again and again what failed: each size that is too large once a loop.
    assert sum(size > limit for size in sizes) < len(sizes)


def test_where_one_image_is_too_much_it_says_so() -> None:
    model = network()

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model[2].register_forward_pre_hook(full)
    for method in METHODS:
        with pytest.raises(FedgazeError, match="not enough memory for a single image"):
            explained(model, torch.rand(3, 3, 12, 12), method)
    for name in ("gradcam", "scorecam"):
        with pytest.raises(FedgazeError, match="not enough memory for a single image"):
            explain(model, torch.rand(1, 3, 12, 12), name, layers="3")


def test_other_errors_of_a_model_are_its_own() -> None:
    model, calls = network(), []

    def broken(*_: Any) -> None:
        calls.append(1)
        raise RuntimeError("no such thing")

    model[2].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="no such thing"):
        explain(model, torch.rand(4, 3, 12, 12), layers="3")
    assert len(calls) == 1


def held(explanation: Explanation) -> int:
    """The bytes of what is returned."""
    tensors = [*vars(explanation).values(), *explanation.per_layer.values()]
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in tensors
        if isinstance(each, Tensor)
    }
    return sum(storages.values())


@each_method
def test_a_budget_in_bytes_is_kept_to(method: Method) -> None:
    if method.name == "kpcacam":
        pytest.skip("its matrix of positions by positions is larger than the budget for one image")
    model, images = network(), torch.rand(16, 3, 32, 32)
    budget = read_bytes("1MiB")
    explained(model, images[:1], method)  # what is made once
    results = []
    bounded = peak_bytes(lambda: results.append(explained(model, images, method, memory=budget)))
    # What is returned is not counted; it is there twice while it is put together.
    assert bounded - 2 * held(results[0]) < 1.1 * budget


@pytest.mark.parametrize("name", ["scorecam", "integrated_gradients", "rise"])
def test_without_a_budget_the_same_takes_more(name: str) -> None:
    model, images, method = network(), torch.rand(16, 3, 32, 32), find_method(name)
    results = []
    free = peak_bytes(lambda: results.append(explained(model, images, method)))
    assert free - 2 * held(results[0]) > 1.1 * read_bytes("1MiB")


@pytest.mark.parametrize(
    ("memory", "expected"), [(1000, 1000), ("1KB", 1000), ("2MiB", 2**21), ("1.5GB", 1500000000)]
)
def test_amounts_of_memory(memory: Any, expected: int) -> None:
    assert read_bytes(memory) == expected


@pytest.mark.parametrize("memory", [0, -5, "much", "", "12 apples", None])
def test_what_is_no_amount_of_memory(memory: Any) -> None:
    with pytest.raises(FedgazeError, match=r"memory is .*; allowed is a size such as '512MiB'"):
        read_bytes(memory)


def test_an_eighth_of_the_memory_is_left_to_libraries() -> None:
    sizes: list[int] = []

    def run(count: int) -> None:
        sizes.append(count)
        torch.empty(count * 1000, dtype=torch.uint8)

    assert Budget(memory=16_000).chunks(nn.Identity(), None, run).size == 14
    assert sizes == [1]


def test_of_variants_that_share_what_one_takes_more_are_run_to_see_it() -> None:
    sizes: list[int] = []

    def run(count: int) -> None:
        sizes.append(count)
        torch.empty(max(10_000, count * 100), dtype=torch.uint8)

    chunks = Budget(memory=80_000).chunks(nn.Identity(), None, run, most=10_000)
    assert chunks.size == 700
    assert sizes == [1, 7, 49, 343, 700]
    for count in sizes:
        assert max(10_000, count * 100) <= 70_000


def test_peaks_are_of_what_lives_at_one_time() -> None:
    kept = []

    def run() -> None:
        first = torch.ones(1000)  # 4000 bytes
        second = first + 1  # 8000
        del first
        kept.append(second.view(10, 100))  # a view costs nothing
        kept.append(second * 2)  # 8000
        second.add_(1)  # nor does what happens in place

    assert peak_bytes(run) == 8000


def test_chunks_cover_everything_once() -> None:
    done: list[tuple[int, int]] = []
    chunks = Chunks(5)

    def work(start: int, stop: int) -> int:
        if stop - start > 2:
            raise torch.OutOfMemoryError("out of memory")
        done.append((start, stop))
        return stop - start

    assert list(chunks.over(7, work)) == [2, 2, 2, 1]
    assert done == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert chunks.size == 2


def test_nothing_of_a_failed_pass_is_kept_while_it_is_tried_again() -> None:
    import weakref

    alive: list[Callable[[], Tensor | None]] = []

    def work(start: int, stop: int) -> int:
        assert [each() for each in alive] == [None] * len(alive)
        tensor = torch.ones(stop - start)
        alive.append(weakref.ref(tensor))
        if stop - start > 1:
            raise torch.OutOfMemoryError("out of memory")
        return 1

    assert sum(Chunks(4).over(4, work)) == 4


class Sized(nn.Sequential):
    seen: list[int] = []  # noqa: RUF012 - shared with copies on purpose

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return super().forward(x)


def sizes(images: Tensor, norm: nn.Module | None = None, **options: Any) -> list[int]:
    """How many images ran at once."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, stride=2), norm or nn.BatchNorm2d(8), nn.ReLU()]
    model = Sized(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    explain(model, images, layers="2", **options)  # a copy is made
    Sized.seen.clear()
    found = explain(model, images, layers="2", **options)
    seen = list(Sized.seen)
    assert found.precision == options.get("precision", "full")
    whole = explain(model, images, layers="2", **options | {"batch_size": len(images)})
    torch.testing.assert_close(found.raw, whole.raw)
    return seen


@pytest.mark.parametrize("precision", ["full", "fast"])
def test_a_cpu_takes_so_many_images_at_a_time_as_make_eight_photographs(precision: str) -> None:
    photographs, smaller = torch.rand(19, 3, 224, 224), torch.rand(40, 3, 112, 112)
    assert sizes(photographs, precision=precision) == [8, 8, 3]
    assert sizes(smaller, precision=precision) == [32, 8]
    assert sizes(photographs, precision=precision, batch_size=10) == [10, 9]
    assert sizes(torch.rand(9, 3, 336, 336), precision=precision) == [8, 1]


def test_a_cpu_takes_all_images_where_somebody_may_count_them() -> None:
    images = torch.rand(9, 3, 224, 224)
    rows = torch.arange(9)
    assert sizes(images, targets=lambda outputs: outputs[rows, rows % 5]) == [9]
    assert sizes(images, norm=nn.BatchNorm2d(8, track_running_stats=False)) == [9]
    assert sizes(images, differentiable=True) == [9]
