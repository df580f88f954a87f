"""Writes files atomically, reads them without running code, and loads state dicts exactly."""

import argparse
import csv
import io
import math
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .checksum import (
    DamagedFileError,
    seal_safetensors,
    seal_zip,
    verify_safetensors,
    verify_zip,
)
from .errors import InputError, WriteError


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write` fill a file beside `path`, flush it to disk and rename it: `path` is never half-written.

    Raises:
        WriteError: The file cannot be written.
    """
    aside = aside_of(path)
    try:
        try:
            with aside.open("w+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from None


def aside_of(path: Path) -> Path:
    """The temporary name beside a file. A run removes the ones that a killed process left (`.*.tmp`)."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def sync_folder(folder: Path) -> None:
    """Flush the renames in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def without_nan(value: Any) -> Any:
    """The value with None for numbers that are not finite, which JSON cannot hold, at any depth of dicts and lists."""
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV, with a column for each key that occurs."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """torch.save of nested plain data and tensors with a checksum, which `read_tensors` reads and verifies.

    Raises:
        WriteError: The file cannot be written.
    """

    def write(file: IO[bytes]) -> None:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:
            # torch's writer raises its own error on top of the one of the file, which says why.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        seal_zip(file)

    write_atomically(path, write)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors by name as a safetensors file with a checksum, which `read_tensors` reads and verifies."""
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    whole = safetensors.torch.save(contiguous, {"format": "pt"})  # which other libraries require
    sealed = seal_safetensors(whole)
    write_atomically(path, lambda file: file.write(sealed))


def read_tensors(path: str | Path) -> Mapping[str, Any]:
    """The mapping in a file of torch.save or safetensors, on the CPU. A file that carries code is refused.

    The content of our own files is verified by their checksum. Files of others are verified if they are zip archives,
    as torch.save writes them, by the CRCs in them.

    Raises:
        InputError: there is no such file, it is damaged, or it does not hold tensors and plain data.
    """
    path = Path(path)
    is_safetensors = path.suffix == ".safetensors"
    try:
        # Verify in a thread beside the load, which is then hardly slower. Damage explains any error of the load.
        with ThreadPoolExecutor(1) as pool:
            verified = pool.submit(verify_safetensors if is_safetensors else verify_zip, path)
            try:
                content = safetensors.torch.load_file(path) if is_safetensors else load_zip(path)
            finally:
                verified.result()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, not a file of weights") from None
    except DamagedFileError as error:
        raise InputError(f"{path}: damaged ({error})") from None
    except pickle.UnpicklingError:
        raise InputError(f"{path}: not a file of weights (tensors and plain data are read, code is not)") from None
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, SafetensorError) as error:
        # torch reports damage in many ways, depending on the place in the file.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise InputError(f"{path}: not a file of weights, or damaged ({reason})") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights")
    return content


def load_zip(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):  # plain data that training scripts save, too
        return torch.load(path, map_location="cpu", weights_only=True)


def load_exactly(module: nn.Module, state: Mapping[str, Any], origin: str) -> None:
    """Strict load_state_dict.

    Raises:
        InputError: the keys or shapes differ, and are listed, or a tensor holds NaN. The module is then unchanged.
    """
    own = module.state_dict()
    differences = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} ({shape_of(state[key])}, the model's is {shape_of(own[key])})"
            for key in own
            if key in state and shape_of(state[key]) != shape_of(own[key])
        ],
    }
    lines = [
        f"  {len(keys)} {kind}: {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''}"
        for kind, keys in differences.items()
        if keys
    ]
    if lines:
        raise InputError("\n".join([f"{origin}: belongs to another architecture", *lines]))
    broken = [key for key, value in state.items() if isinstance(value, Tensor) and value.isnan().any()]
    if broken:
        raise InputError(
            f"{origin}: {len(broken)} of its {len(state)} tensors hold NaN, {broken[0]} for example, because training "
            "diverged; take an earlier checkpoint, or train again with a lower optim.lr"
        )
    module.load_state_dict(dict(state))


def shape_of(value: object) -> str:
    return "×".join(map(str, value.shape)) or "scalar" if isinstance(value, Tensor) else type(value).__name__
