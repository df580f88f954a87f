from collections.abc import Iterator

import pytest
import torch

from xcit.kernels.cpu import library


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passes in C++ that are called."""
    names: list[str] = []
    call = library.call
    monkeypatch.setattr(library, "call", lambda name, *arguments: names.append(name) or call(name, *arguments))
    return names


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention's pass wants a head for each thread, at least."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
