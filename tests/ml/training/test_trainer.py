"""The trainer runs in the precision of its device; too little memory is told from other errors."""

from threading import Event, Thread

import pytest
import torch

from ml.training.trainer import choose_precision, is_out_of_memory
from tests.training_fixtures import limit_address_space


def test_failed_thread_start_counts_as_out_of_memory() -> None:
    done = Event()

    def start_many() -> None:
        for _ in range(64):
            Thread(target=done.wait).start()

    try:
        with limit_address_space(64), pytest.raises(RuntimeError) as raised:
            start_many()
    finally:
        done.set()
    assert is_out_of_memory(raised.value)


def test_only_memory_errors_count_as_out_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_cpu_trains_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_precision() == "32-true"
