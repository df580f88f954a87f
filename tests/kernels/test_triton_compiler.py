"""Where the Triton kernels run, and that they compile, for which no GPU is needed.

The interpreter accepts code that the compiler refuses or gets wrong: this file finds it.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from xcit import kernels
from xcit.kernels import dispatch, self_check
from xcit.kernels.dispatch import backend_for
from xcit.models.fast import training

from ..models.examples import tiny
from .test_layers import tokens
from .test_triton import (
    LOCAL,
    Attention,
    Norm,
    NormDepthwise,
    triton,
    triton_cross_covariance,
    triton_depthwise,
    triton_gelu,
    triton_local_patch,
    triton_norms,
)


def runs_triton(x: Tensor) -> bool:
    return backend_for("attend", x) == "triton"


def test_where_triton_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        fp32, bf16, fp64, fp16 = (
            torch.empty(1, 2, 3, device="cuda", dtype=dtype)
            for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float16)
        )
    assert not any(map(runs_triton, (fp32, bf16)))  # fake tensors have no memory
    monkeypatch.setattr(dispatch, "is_ordinary", lambda x: True)
    for agrees, runs_by_itself in ((True, True), (False, False)):
        monkeypatch.setattr(dispatch, "triton_is_correct", {0: agrees})
        assert runs_triton(fp32) == runs_triton(bf16) == runs_by_itself
        with kernels.forced("triton"):
            assert runs_triton(fp32) and runs_triton(bf16)
            assert not any(map(runs_triton, (fp64, fp16, torch.empty(1, 2, 3))))
        for kind in ("plain", "fast"):
            with kernels.forced(kind):
                assert not runs_triton(fp32)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The GPUs that were checked, of two fake ones."""
    devices: list[torch.device] = []
    triton_is_correct: dict[int | None, bool] = {}
    monkeypatch.setattr(self_check, "agrees", lambda device: not devices.append(device))
    for module in (dispatch, self_check):
        monkeypatch.setattr(module, "triton_is_correct", triton_is_correct)
    monkeypatch.setattr(dispatch, "is_ordinary", lambda x: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return devices


def images(number: int, dtype: torch.dtype = torch.float32) -> Tensor:
    with FakeTensorMode():
        return torch.empty(1, 3, 8, 8, device=f"cuda:{number}", dtype=dtype)


def test_a_gpu_is_checked_once(tried: list[torch.device]) -> None:
    for number in (0, 0, 1):
        self_check.check_triton_kernels(images(number))
    assert tried == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert self_check.triton_is_correct == {0: True, 1: True}


def test_a_gpu_is_not_checked_where_triton_could_not_run(
    tried: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_after(call: Callable[[], object]) -> None:
        call()
        assert tried == []

    x = images(0)
    nothing_after(lambda: self_check.check_triton_kernels(torch.empty(1, 3, 8, 8)))
    nothing_after(lambda: self_check.check_triton_kernels(images(0, torch.float16)))
    for kind in ("plain", "fast", "triton"):
        with kernels.forced(kind):
            nothing_after(lambda: self_check.check_triton_kernels(x))
    nothing_after(lambda: torch.func.vmap(lambda y: self_check.check_triton_kernels(x) or y)(torch.ones(2)))
    nothing_after(
        lambda: torch.jit.trace(lambda y: self_check.check_triton_kernels(x) or y + 1, torch.ones(2), check_trace=False)
    )
    for module, name in ((torch.compiler, "is_compiling"), (torch.cuda, "is_current_stream_capturing")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda: True)
            nothing_after(lambda: self_check.check_triton_kernels(x))
    monkeypatch.setattr(dispatch, "is_ordinary", lambda x: False)
    nothing_after(lambda: self_check.check_triton_kernels(x))


def test_a_model_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []
    monkeypatch.setattr(training, "check_triton_kernels", asked.append)
    given = torch.randn(1, 3, 32, 32)
    tiny()(given)
    assert len(asked) == 1 and asked[0] is given


def test_every_kernel_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles for an NVIDIA GPU, which need not exist, with bf16 tokens and fp32 parameters."""
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton has no compiler for NVIDIA")
    compiled = set()

    def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, num_warps: int = 4) -> None:
        names = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
        signature, constants = {}, {}
        for parameter, value in zip(kernel.params, arguments, strict=True):
            if parameter.is_constexpr or value is None:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
            else:
                kinds = {int: "i32", float: "fp32"}
                signature[parameter.name] = names[value.dtype] if isinstance(value, Tensor) else kinds[type(value)]
        source = triton.compiler.ASTSource(kernel, signature, constants)
        target = triton.backends.compiler.GPUTarget("cuda", 80, 32)
        done = triton.compile(source, target=target, options={"num_warps": num_warps})
        assert done.metadata.shared < 164_000  # what the GPUs of data centers have since 2020
        missing = [here - there for here, there in zip(changed(kernel.fn), carried(done.asm["ttir"]), strict=True)]
        assert not any(missing), f"{kernel.fn.__name__}: {missing}"
        compiled.add(kernel.fn.__name__)

    monkeypatch.setattr(triton.JITFunction, "run", compile_only)
    for dtype in (torch.bfloat16, torch.float32):
        for module in (Attention(2), Attention(1), Norm(96), *(kind(96, (4, 5)) for kind in LOCAL)):
            x = tokens(2, 20, 288 if isinstance(module, Attention) else 96).to(dtype).requires_grad_()
            module(x, "triton").sum().backward()
        triton_gelu.gelu_backward(x, x)
        parts, weight = NormDepthwise(96, (4, 5)), (torch.ones(96, 1, 3, 3), torch.ones(96))
        triton_local_patch.folded_local_patch(
            x, parts.norm, weight, torch.ones(96), torch.ones(96), weight, (4, 5), x.dtype
        )
    every = {
        name
        for package in (triton_cross_covariance, triton_depthwise, triton_gelu, triton_norms)
        for name in vars(package)
        if name.endswith("_kernel")
    }
    assert compiled == every


def changed(kernel: Any) -> list[set[str]]:
    """The names that each loop of a kernel reads and changes, so that the next iteration reads another value."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kernel)))
    loops = sorted((node for node in ast.walk(tree) if isinstance(node, ast.For)), key=lambda loop: loop.lineno)
    return [
        read_before_written(loop.body) & {name.id for part in loop.body for name in names(part, ast.Store)}
        for loop in loops
    ]


def read_before_written(statements: list[ast.stmt]) -> set[str]:
    read: set[str] = set()
    written: set[str] = set()
    for statement in flat(statements):
        loaded = {name.id for name in names(statement, ast.Load)}
        if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            loaded.add(statement.target.id)
        read |= loaded - written
        written |= {name.id for name in names(statement, ast.Store)}
    return read


def flat(statements: list[ast.stmt]) -> Iterator[ast.AST]:
    """All statements, in order; of an if the condition, then its statements."""
    for statement in statements:
        if isinstance(statement, ast.If):
            yield statement.test
            yield from flat(statement.body + statement.orelse)
        else:
            yield statement


def names(node: ast.AST, context: type[ast.expr_context]) -> list[ast.Name]:
    return [part for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, context)]


def carried(ttir: str) -> list[set[str]]:
    """The names that each loop of a compiled kernel passes from one iteration to the next.

    A name whose change Triton misses keeps its first value, without an error: of two names that begin as one value,
    the one that is assigned the other's.
    """
    return [set(re.findall(r"%([a-z_]+?)[_.\d]* = ", loop)) for loop in re.findall(r"iter_args\((.*?)\) ->", ttir)]
