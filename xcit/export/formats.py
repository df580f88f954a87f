"""The formats of exports: how a file is written, and how it is run."""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, choose
from .program import Exportable, Signature

Format = Literal["onnx", "torch", "aoti"]
Run = Callable[[Tensor], Tensor]
"""Runs an export: its input → its output."""


class FileFormat(NamedTuple):
    suffix: str
    require: Callable[[], None]
    """Raises an InputError if something is missing that the format needs."""
    write: Callable[[Exportable, Tensor, Signature, Path], None]
    """Writes the file, given an example of the input."""
    open: Callable[[Path], Run]
    packages: tuple[str, ...]
    """Whose versions are noted beside the file."""


def format_named(name: str) -> FileFormat:
    """The format of this name."""
    return choose(FORMATS, name, "format")


def write_onnx(exportable: Exportable, example: Tensor, signature: Signature, path: Path) -> None:
    """Write an ONNX file with the weights in it. The largest XCiT has 0.8 GB; ONNX allows 2 GB."""
    with quiet():
        program = torch.onnx.export(
            exportable,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[signature.input["name"]],
            output_names=[signature.output["name"]],
            dynamic_shapes=signature.dynamic,
        )
    assert program is not None
    program.save(str(path), external_data=False)


def open_onnx(path: Path) -> Run:
    """Run the file with ONNX Runtime on the CPU, with as many threads as torch has."""
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def exported(exportable: Exportable, example: Tensor, signature: Signature) -> torch.export.ExportedProgram:
    with quiet(), torch.no_grad():
        return torch.export.export(exportable, (example,), dynamic_shapes=signature.dynamic)


def write_torch(exportable: Exportable, example: Tensor, signature: Signature, path: Path) -> None:
    """Write a program of torch.export, which `torch.export.load` reads."""
    torch.export.save(exported(exportable, example, signature), path)


def open_torch(path: Path) -> Run:
    return torch.export.load(path).module()


def write_aoti(exportable: Exportable, example: Tensor, signature: Signature, path: Path) -> None:
    """Compile the model for this machine's CPU with AOTInductor.

    Freezing packs the weights in the layout of the CPU's library and folds the BatchNorms: twice as fast.
    """
    inductor, config = import_module("torch._inductor"), import_module("torch._inductor.config")
    program = exported(exportable, example, signature)
    with quiet(), torch.no_grad(), config.patch(freezing=True):
        inductor.aoti_compile_and_package(program, package_path=str(path))


def open_aoti(path: Path) -> Run:
    return import_module("torch._inductor").aoti_load_package(str(path))


def require_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needed(package)


def require_compiler() -> None:
    # As torch chooses it.
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise InputError(
            f"format=aoti: needs a C++ compiler, and there is no {compiler}; install one, or name it in "
            "the environment variable CXX"
        )


def needed(package: str) -> Any:
    """A package of the extra `export`."""
    try:
        return import_module(package)
    except ImportError:
        raise InputError(f"format=onnx: needs {package}; pip install 'xcit[export]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and the log lines of the exporters, which tell a user nothing that can be mended."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


FORMATS: dict[str, FileFormat] = {
    "onnx": FileFormat(".onnx", require_onnx, write_onnx, open_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torch": FileFormat(".pt2", lambda: None, write_torch, open_torch, ()),
    "aoti": FileFormat(".pt2", require_compiler, write_aoti, open_aoti, ()),
}
