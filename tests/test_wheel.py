"""The wheel contains only xcit, and the library imports no package that only training needs."""

import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT

X86 = platform.machine() == "x86_64"

BUILD_A_MODEL = """
import os
import sys
before = {name: value for name, value in os.environ.items() if "OMP" in name}
sys.path.insert(0, sys.argv[1])
import xcit
assert xcit.__file__.startswith(sys.argv[1]), xcit.__file__
model = xcit.create_model("xcit_n12", num_classes=3)
import torch
assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
from xcit.preprocessing import Preprocessing
preprocessing = Preprocessing.of_model(model).at(32)
assert preprocessing([torch.zeros(40, 50, 3, dtype=torch.uint8)]).shape == (1, 3, 32, 32)
assert preprocessing.normalize(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape == (2, 3, 32, 32)
assert before == {name: value for name, value in os.environ.items() if "OMP" in name}
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""

PREDICT = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import xcit
xcit.create_model("xcit_n12", num_classes=3).save_pretrained("saved")
answer, = xcit.Classifier("saved", device="cpu")(np.zeros((40, 50, 3), np.uint8))
assert sorted(answer.names) == ["0", "1", "2"]
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel from a copy, so that it leaves no files in the checkout and uses no earlier build."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("xcit", "data", "scripts", "tests", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "train.py", "eval.py"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_contains_only_xcit(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    shipped = {name for name in names if ".dist-info/" not in name}
    compiled = {name for name in shipped if name.startswith("xcit/kernels/cpu/_kernels_avx")}
    assert len(compiled) == (2 if X86 and shutil.which("c++") else 0)
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "xcit").rglob("*")
        if path.suffix in (".py", ".typed", ".cpp", ".h")
    }
    assert shipped - compiled == sources
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert [line.split(">=")[0] for line in required] == [
        f"Requires-Dist: {name}" for name in ("huggingface_hub", "safetensors", "torch", "tqdm", "xxhash")
    ]


@pytest.mark.parametrize(("program", "images"), [(BUILD_A_MODEL, False), (PREDICT, True)])
def test_the_library_imports_nothing_that_only_training_needs(
    wheel: Path, tmp_path: Path, program: str, images: bool
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    unwanted = {"hydra", "omegaconf", "wandb", "timm", "torchvision", "pydantic", "rich", "matplotlib", "sklearn"}
    assert not loaded & (unwanted | {"torchmetrics", "tensorboard", "data"})
    assert ("PIL" in loaded) == images
