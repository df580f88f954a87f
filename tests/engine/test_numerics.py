"""Numerics: a precision that is slow on the device is told of, and determinism that a task cannot have is refused."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import xcit
from xcit.engine.numerics import require_determinism, warn_of_slow_precision
from xcit.tasks import TASKS

from ..conftest import Result

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("device", "precision"), [(CPU, "fp32"), (CPU, "bf16"), (GPU, "fp16")])
def test_other_precisions_need_no_note(device: torch.device, precision: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_slow_precision(device, precision, "precision")


@pytest.fixture
def _as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_as_before")
def test_determinism_is_refused_at_the_start_where_a_task_cannot_have_it() -> None:
    operation = TASKS["segment"].nondeterministic
    with pytest.raises(
        xcit.InputError,
        match=r"^deterministic=true: task=segment needs the cross-entropy of images \(NLLLoss\), which has no",
    ):
        require_determinism(True, GPU, operation)
    require_determinism(False, GPU, operation)
    assert not torch.are_deterministic_algorithms_enabled()
    for device, other in ((CPU, operation), (GPU, TASKS["classify"].nondeterministic)):
        require_determinism(True, device, other)
        assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(torch.cuda.is_available(), reason="commands use the GPU, where fp16 is fast")
def test_both_commands_say_that_fp16_is_slow_on_a_cpu(command: Callable[..., Result], tmp_path: Path) -> None:
    """The missing data end the commands early."""
    torch.save(xcit.create_model("xcit_n12", num_classes=10).state_dict(), tmp_path / "n12.pth")
    bare = ("checkpoint=n12.pth", "model=xcit_n12")
    for script, key, more in (("train.py", "train.precision", ()), ("eval.py", "precision", bare)):
        result = command(script, f"{key}=fp16", "data=folder", "data.root=nowhere", *more)
        note, error = result.stderr.splitlines()
        assert note.startswith(f"note: {key}=fp16: is several times slower than fp32 on a CPU")
        assert error == "error: nowhere: no such folder (data.root)"
