"""Where Triton's kernels run, and what its compiler makes of them: for the latter no GPU is needed.

What the interpreter lets pass and the compiler would not, is found here.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from xcit import kernels
from xcit.kernels import choice
from xcit.kernels.choice import by_triton
from xcit.models import xcit as xcit_module

from ..models.examples import tiny
from .test_layers import tokens

triton = pytest.importorskip("triton")
from xcit.kernels import (  # noqa: E402
    triton_check,
    triton_cross_covariance,
    triton_depthwise,
    triton_gelu,
    triton_norms,
)

from .test_triton import LOCAL, Attention, Norm  # noqa: E402


def test_where_triton_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        fp32, bf16, fp64, fp16 = (
            torch.empty(1, 2, 3, device="cuda", dtype=dtype)
            for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float16)
        )
    assert not any(map(by_triton, (fp32, bf16)))  # stand-ins have no memory
    monkeypatch.setattr(choice, "is_ordinary", lambda x: True)
    for agrees, runs_by_itself in ((True, True), (False, False)):
        monkeypatch.setattr(choice, "verdicts", {0: agrees})
        assert by_triton(fp32) == by_triton(bf16) == runs_by_itself
        with kernels.forced("triton"):
            assert by_triton(fp32) and by_triton(bf16)
            assert not any(map(by_triton, (fp64, fp16, torch.empty(1, 2, 3))))
        for kind in ("plain", "fast"):
            with kernels.forced(kind):
                assert not by_triton(fp32)


def test_a_gpu_is_tried_out_once_and_not_while_something_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[torch.device] = []
    verdicts: dict[int | None, bool] = {}
    monkeypatch.setattr(triton_check, "agrees", lambda device: not tried.append(device))
    monkeypatch.setattr(triton_check, "verdicts", verdicts)
    one, other = torch.device("cuda", 0), torch.device("cuda", 1)
    torch.compile(lambda: triton_check.try_out(one), backend="eager")()
    triton_check.try_out(torch.device("cpu"))
    assert tried == []
    for device in (one, one, other):
        triton_check.try_out(device)
    assert tried == [one, other] and verdicts == {0: True, 1: True}


def test_a_model_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(xcit_module, "try_out", asked.append)
    tiny()(torch.randn(1, 3, 32, 32))
    assert asked == [torch.device("cpu")]


def test_every_kernel_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """For an NVIDIA GPU that need not be there, as it is called for bf16 tokens and fp32 parameters."""
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
        assert done.metadata.shared < 100_000  # what any GPU since 2020 has
        missing = [here - there for here, there in zip(changed(kernel.fn), carried(done.asm["ttir"]), strict=True)]
        assert not any(missing), f"{kernel.fn.__name__}: {missing}"
        compiled.add(kernel.fn.__name__)

    monkeypatch.setattr(triton.JITFunction, "run", compile_only)
    modules = [Attention(2), Norm(96), *(kind(96, (4, 5)) for kind in LOCAL)]
    for module in modules:
        x = tokens(2, 20, 288 if isinstance(module, Attention) else 96).bfloat16().requires_grad_()
        module(x, module.triton).sum().backward()
    triton_gelu.gelu_backward(x, x)
    every = {
        name
        for package in (triton_cross_covariance, triton_depthwise, triton_gelu, triton_norms)
        for name in vars(package)
        if name.endswith("_kernel")
    }
    assert compiled == every


def changed(kernel: Any) -> list[set[str]]:
    """The names that each loop of a kernel reads and changes, so that the next turn reads another value."""
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
    """Each statement, and what stands under an if after its condition."""
    for statement in statements:
        if isinstance(statement, ast.If):
            yield statement.test
            yield from flat(statement.body + statement.orelse)
        else:
            yield statement


def names(node: ast.AST, context: type[ast.expr_context]) -> list[ast.Name]:
    return [part for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, context)]


def carried(ttir: str) -> list[set[str]]:
    """The names that each loop of a compiled kernel hands from one turn to the next.

    What Triton does not see changing stays as it was, without a word: of two names that begin as one value, the one
    that is given the other's.
    """
    return [set(re.findall(r"%([a-z_]+?)[_.\d]* = ", loop)) for loop in re.findall(r"iter_args\((.*?)\) ->", ttir)]
