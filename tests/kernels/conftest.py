from collections.abc import Iterator

import pytest
import torch

from xcit.kernels.cpu import library


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the C++ functions that are called."""
    names: list[str] = []
    loaded = library.LIBRARY

    class Recorder:
        def __getattr__(self, name: str) -> object:
            names.append(name)
            return getattr(loaded, name)

    monkeypatch.setattr(library, "LIBRARY", Recorder())
    return names


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one thread: the C++ kernel of attention needs at least one head for each thread."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
