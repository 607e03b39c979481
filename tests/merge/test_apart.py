"""Items that are made on a thread of their own are the same items, and what goes wrong there is told here."""

import signal
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from dimat.errors import UsageError
from dimat.merge import make_fold, stream
from dimat.merge.apart import computed_apart
from dimat.merge.stream import merge_files
from dimat.modelfile import open_model, write_model


def numbers(stop: int, log: list[str]) -> Generator[int]:
    try:
        for number in range(stop):
            log.append(threading.current_thread().name)
            yield number
    finally:
        log.append("closed")


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("stop", [0, 1, 20])
def test_all_items_come_in_their_order(most: int, stop: int) -> None:
    log: list[str] = []
    assert list(computed_apart(numbers(stop, log), most)) == list(range(stop))
    assert log == ["compute apart"] * stop + ["closed"]


def test_a_failure_comes_where_its_item_would_have() -> None:
    def fails() -> Generator[int]:
        yield 1
        raise ValueError("no second one")

    items = computed_apart(fails(), 4)
    assert next(items) == 1
    with pytest.raises(ValueError, match="no second one"):
        next(items)


def test_what_is_not_wanted_any_more_is_not_made() -> None:
    log: list[str] = []
    items = computed_apart(numbers(1000, log), 2)
    assert next(items) == 0
    items.close()
    assert log[-1] == "closed" and len(log) < 10
    assert all(thread.name != "compute apart" for thread in threading.enumerate())


def test_no_more_are_ready_than_asked_for() -> None:
    made = 0
    more = threading.Event()

    def counted() -> Generator[int]:
        nonlocal made
        for number in range(50):
            made += 1
            more.set()
            yield number

    items = computed_apart(counted(), 3)
    for taken in range(1, 40):
        next(items)
        assert made <= taken + 3 + 2  # ready, the one that waits for room, and the one in the making


def test_it_computes_with_as_many_threads_as_its_caller() -> None:
    def asks() -> Generator[int]:
        yield torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert list(computed_apart(asks(), 1)) == [1]
    finally:
        torch.set_num_threads(before)


def test_a_merge_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    write_model(tmp_path / "a.safetensors", {"w": torch.ones(3 << 18), "z": torch.ones(2)})
    write_model(tmp_path / "b.safetensors", {"w": torch.ones(3 << 18), "z": torch.tensor([1.0, torch.nan])})
    models = [open_model(tmp_path / f"{name}.safetensors") for name in "ab"]
    with pytest.raises(UsageError, match=r"tensor 'z' of .* holds NaN"):
        merge_files(make_fold("mean"), models, tmp_path / "out.safetensors")
    assert {thread.name for thread in threading.enumerate()}.isdisjoint({"compute apart", "read ahead", "flush"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_merge_that_is_stopped_ends_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a pass over all models that comes before the first merged entry."""
    generator = torch.Generator().manual_seed(0)
    for name in "abc":
        tensors = {str(i): torch.randn(1000, generator=generator) for i in range(300)}
        write_model(tmp_path / f"{name}.safetensors", tensors)
    base, *models = [open_model(tmp_path / f"{name}.safetensors") for name in "abc"]
    num_steps = 0
    real = stream.fold_step

    def slow(*given: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        time.sleep(0.01)
        return real(*given)

    monkeypatch.setattr(stream, "fold_step", slow)
    monkeypatch.setattr(stream, "write_streamed", lambda *given, **named: _stop_after(given[2]))
    with pytest.raises(KeyboardInterrupt):
        merge_files(make_fold("ties"), models, tmp_path / "out.safetensors", base=base)
    assert num_steps < 250


def _stop_after(pieces: Any) -> None:
    """Ctrl-C while the first piece is waited for."""
    timer = threading.Timer(0.2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.start()
    next(pieces)
