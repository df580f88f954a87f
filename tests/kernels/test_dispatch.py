"""Only dispatch.py decides what runs, and tools that trace or count operations see PyTorch's own."""

import ast
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import xcit
from xcit import kernels
from xcit.errors import InputError
from xcit.kernels import dispatch
from xcit.kernels.cpu import library
from xcit.kernels.dispatch import backend_for
from xcit.models.fast.training import fuse_for_training
from xcit.models.layer import XCiTLayer

from ..conftest import ROOT
from ..models.examples import tiny
from .test_layers import tokens

ROOM = ROOT / "xcit" / "kernels"
FAST = ROOT / "xcit" / "models" / "fast"
DECISIVE = {
    "_are_functorch_transforms_active",
    "_get_current_function_mode_stack",
    "_get_tracing_state",
    "_has_storage",
    "_len_torch_dispatch_stack",
    "_len_torch_function_stack",
    "find_spec",
    "get_autocast_dtype",
    "get_cpu_capability",
    "is_autocast_enabled",
    "is_compiling",
    "is_cpu",
    "is_current_stream_capturing",
    "is_dynamo_compiling",
    "is_exporting",
    "is_fx_symbolic_tracing",
    "platform",
}
"""Names that a file uses to ask about devices, autocast, compilers, tracers, hooks or processors."""


def questions(source: str) -> set[str]:
    """What a file asks that dispatch.py should decide."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        # The name of an attribute or a variable, or a string that `getattr` may take.
        name = getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "value", None)
        name = name if isinstance(name, str) else None
        owner = getattr(node, "value", None)
        owned_by = getattr(owner, "attr", None) or getattr(owner, "id", None)
        if name in DECISIVE or (name and owned_by == "compiler"):
            found.add(name)
        elif name == "type" and owned_by == "device":
            found.add("device.type")
    return found


def comparisons(source: str) -> set[str]:
    """The comparisons of a file with a dtype or a device."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Compare)]
    compared = {ast.unparse(node): {getattr(part, "attr", None) for part in ast.walk(node)} for node in nodes}
    return {text for text, names in compared.items() if names & {"dtype", "device", "is_cuda"}}


@pytest.mark.parametrize("path", sorted(str(path.relative_to(ROOM)) for path in ROOM.rglob("*.py")))
def test_no_other_kernel_asks(path: str) -> None:
    found = questions((ROOM / path).read_text())
    if path == "dispatch.py":
        assert {"device.type", "is_compiling", "_get_tracing_state", "find_spec", "get_cpu_capability"} <= found
    elif path == "self_check.py":  # autocast for the device that it checks
        assert found <= {"device.type"}
    elif path == "cpu/library.py":  # compiled code calls operators in place of functions
        assert found == {"is_compiling"}
    else:
        assert not found


@pytest.mark.parametrize("path", sorted(FAST.glob("*.py")), ids=lambda path: path.name)
def test_no_fast_layer_asks(path: Path) -> None:
    source = path.read_text()
    assert not questions(source) | comparisons(source)


@pytest.mark.parametrize(
    ("line", "question"),
    [
        ("x.device.type == 'cpu'", "device.type"),
        ("torch.compiler.is_compiling()", "is_compiling"),
        ("torch.get_autocast_dtype('cpu')", "get_autocast_dtype"),
        ("torch._C._get_tracing_state()", "_get_tracing_state"),
        ("getattr(torch._C, '_get_tracing_state')()", "_get_tracing_state"),
        ("is_compiling()", "is_compiling"),
        ("importlib.util.find_spec('triton')", "find_spec"),
        ("torch.backends.cpu.get_cpu_capability()", "get_cpu_capability"),
    ],
)
def test_the_check_sees_a_question(line: str, question: str) -> None:
    assert questions(line) == {question}


def test_the_check_sees_a_comparison() -> None:
    assert comparisons("if x.dtype == torch.float16:\n    pass") == {"x.dtype == torch.float16"}
    assert comparisons("y = parameter.device.type == 'cuda' and z") == {"parameter.device.type == 'cuda'"}


def test_one_thread_does_not_force_another() -> None:
    """Checkpointing forces kernels in autograd's threads, whose contexts overlap in any order."""
    found, entered, left = [], threading.Event(), threading.Event()

    def run() -> None:
        with dispatch.forced_in_this_thread("plain"):
            entered.set()
            left.wait(10)
            found.append(dispatch.forced_kernels())
        found.append(dispatch.forced_kernels())

    other = threading.Thread(target=run)
    with dispatch.forced_in_this_thread("fast"):
        other.start()
        entered.wait(10)
        assert dispatch.forced_kernels() == "fast"
        with dispatch.forced("triton"):
            assert dispatch.forced_kernels() == "fast"
    assert dispatch.forced_kernels() == "auto"
    left.set()
    other.join()
    assert found == ["plain", "auto"]


def flops(model: nn.Module, *inputs: object) -> int:
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("N", [20, 80])  # for 80 tokens the covariance form is cheaper
def test_flops_of_a_layer_are_those_of_the_plain_form(N: int) -> None:  # noqa: N803
    layer, inputs = fuse_for_training(XCiTLayer(16, 2, 1.0)), (tokens(2, N, 16), (4, N // 4))
    found = flops(layer, *inputs)
    with kernels.forced("plain"):
        assert found == flops(layer, *inputs) > 0


def test_flops_of_a_folded_copy_are_those_of_the_model() -> None:
    model, images = tiny(depth=2).eval(), torch.randn(2, 3, 32, 24)
    folded = xcit.fuse_for_inference(model)
    with torch.no_grad():
        found = flops(folded, images)
        with kernels.forced("plain"):
            assert found == flops(model, images) > 0


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(library.LIBRARY is None, reason="nothing was compiled for this CPU")
def test_a_dispatch_mode_sees_torchs_operations(calls: list[str]) -> None:
    """Forward and backward. This mode has no hooks; those of FlopCounterMode would be enough for the plain form."""
    layer, x = fuse_for_training(XCiTLayer(32, 2, 1.0)), tokens(2, 6, 32)
    with Recorder() as mode:
        layer(x, (2, 3)).sum().backward()
    assert calls == []
    assert {"aten.gelu.default", "aten._softmax.default", "aten.native_batch_norm.default"} & mode.names
    assert not [name for name in mode.names if name.startswith(("mkldnn", "xcit"))]
    layer(x, (2, 3)).sum().backward()
    assert calls


def test_a_fake_layer_runs() -> None:
    with FakeTensorMode():
        layer, x = fuse_for_training(XCiTLayer(32, 2, 1.0)), torch.empty(2, 6, 32)
        y = layer(x, (2, 3))
        y.sum().backward()
    assert y.shape == (2, 6, 32)


def test_in_code_compiled_for_a_gpu_the_plain_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fuse_for_training(XCiTLayer(32, 2, 1.0))
    with FakeTensorMode():
        on_gpu = torch.empty(2, 6, 32, device="cuda")
    on_cpu = tokens(2, 6, 32)
    monkeypatch.setattr(dispatch, "is_ordinary", lambda x: True)
    for kind in ("auto", "fast", "triton"):
        with kernels.forced(kind):
            assert kernels.runs_fast_form(layer, on_gpu) and kernels.runs_fast_form(layer, on_cpu)
            with monkeypatch.context() as patch:
                patch.setattr(torch.compiler, "is_compiling", lambda: True)
                assert not kernels.runs_fast_form(layer, on_gpu) and kernels.runs_fast_form(layer, on_cpu)
                assert backend_for("attend", on_gpu) == "torch"


@pytest.mark.skipif(library.LIBRARY is None, reason="nothing was compiled for this CPU")
@pytest.mark.usefixtures("one_thread")
def test_an_operation_can_be_left_to_torch(calls: list[str]) -> None:
    layer, x = fuse_for_training(XCiTLayer(32, 2, 1.0)), tokens(2, 6, 32)
    layer(x, (2, 3))
    assert calls == ["attend", "norm_depthwise", "gelu_affine_depthwise", "gelu"]
    calls.clear()
    with dispatch.without("attend", "gelu"):
        layer(x, (2, 3))
    assert calls == ["norm_depthwise", "gelu_affine_depthwise"]
    with pytest.raises(InputError, match="gelo: must be of"), dispatch.without("gelo"):
        pass


def test_every_operation_is_asked_for_by_a_file() -> None:
    """The tables of dispatch.py contain exactly the operations for which backend_for is called."""
    asked: set[str] = set()
    for path in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("backend_for", "runs_on_cpu"):
                asked |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    assert asked == dispatch.OPERATIONS - {"covariance"}


def test_every_kernel_is_in_the_table() -> None:
    """docs/kernels.md has a row for each operation and backend."""
    table = (ROOT / "docs" / "kernels.md").read_text()
    rows = {tuple(cell.strip(" `") for cell in line.split("|")[1:3]) for line in table.splitlines() if "|" in line}
    on_cpu = dispatch.CPP | dispatch.ONEDNN_OPERATIONS | {"grad_bias"}
    expected = {(name, "cpu") for name in on_cpu} | {(name, "triton") for name in dispatch.TRITON}
    assert expected | {("covariance", "torch")} <= rows
