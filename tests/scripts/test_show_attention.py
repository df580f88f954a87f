"""scripts/show_attention.py draws the maps of a model for an image, a folder or a video, at any resolution."""

import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
from PIL import Image

import xcit
from xcit.evaluation.video import change_video

from ..conftest import TINY, Result

Command = Callable[..., Result]
SCRIPT = "scripts/show_attention.py"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)).save(path)
    return path


def test_the_maps_of_a_run_at_its_own_and_another_resolution(command: Command, picture: Path, tmp_path: Path) -> None:
    assert command("train.py", *TINY, "run_dir=run").status == 0
    result = command(SCRIPT, "run", picture.name)
    assert (result.status, result.stdout) == (0, "attention.png: 4 maps of 2 × 2 patches\n"), result.stderr
    result = command(SCRIPT, "run", picture.name, "--resolution", "44", "--output", "finer.png")
    assert (result.status, result.stdout) == (0, "finer.png: 4 maps of 6 × 6 patches\n"), result.stderr
    assert Image.open(tmp_path / "finer.png").size == Image.open(tmp_path / "attention.png").size
    result = command(SCRIPT, "run", picture.name, "--resolution", "4")
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.endswith("error: image of 4×4 pixels: must hold one patch of 8×8\n")


def test_a_folder_is_drawn_but_for_what_cannot_be_read(command: Command, picture: Path, tmp_path: Path) -> None:
    """By a backbone without a classifier."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "b.jpg").write_bytes(b"no image")
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes(picture.read_bytes())
    backbone(tmp_path / "model")
    result = command(SCRIPT, "model", "photos", "--resolution", "32", "--mass", "0.6", "--output", "maps")
    assert (result.status, result.stdout) == (0, "maps: 2 of 3 files\n"), result.stderr
    assert result.stderr.splitlines()[-1] == "note: photos/b.jpg: cannot be decoded (unknown image format)"
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"a.png.png", "c.png.png"}
    for name in ("a.png", "c.png"):
        (folder / name).unlink()
    result = command(SCRIPT, "model", "photos", "--output", "maps")
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.endswith(
        "error: photos: holds no image that can be read; images in its subfolders are not drawn\n"
    )


@pytest.mark.parametrize(("size", "output"), [((64, 48), "out.mp4"), ((51, 33), "out.mkv")])
def test_a_video_keeps_its_frames_size_and_rate(
    size: tuple[int, int], output: str, command: Command, tmp_path: Path
) -> None:
    video = pytest.importorskip("av")
    write_video(video, tmp_path / "in.mp4", size, frames=5)
    backbone(tmp_path / "model")
    result = command(SCRIPT, "model", "in.mp4", "--resolution", "16", "--output", output)
    width, height = size
    assert (result.status, result.stdout) == (0, f"{output}: 5 frames of {width} × {height} pixels\n"), result.stderr
    (before, rate), (after, new_rate) = (read_video(video, tmp_path / name) for name in ("in.mp4", output))
    assert rate == new_rate == Fraction(30000, 1001)
    assert [time for time, _ in after] == pytest.approx([time for time, _ in before], abs=1e-3)
    assert all(frame.shape == (height, width, 3) for _, frame in after)
    assert not np.array_equal(after[0][1], after[4][1]), "each frame is drawn anew"


def test_a_video_of_a_phone_is_turned_upright(tmp_path: Path) -> None:
    """Its header says that the frames are shown turned clockwise by 90 degrees."""
    video = pytest.importorskip("av")
    write_video(video, tmp_path / "in.mp4", (64, 48), frames=1)
    content = bytearray((tmp_path / "in.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    seen = []
    written = change_video(tmp_path / "turned.mp4", tmp_path / "out.mp4", lambda frame: seen.append(frame) or frame)
    assert written == (1, 48, 64)
    [(_, stored)], _ = read_video(video, tmp_path / "in.mp4")
    assert np.array_equal(seen[0].numpy(), np.rot90(stored, -1))
    [(_, shown)], _ = read_video(video, tmp_path / "out.mp4")
    assert shown.shape == (64, 48, 3)


def test_a_video_that_cannot_be_decoded_leaves_nothing(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("av")
    backbone(tmp_path / "model")
    (tmp_path / "in.mp4").write_text("no video")
    result = command(SCRIPT, "model", "in.mp4", "--output", "out.mp4")
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.endswith("error: in.mp4: cannot be decoded (Invalid data found when processing input)\n")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "in.mp4"}


def test_without_pyav_a_line_says_how_to_install_it(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "in.mp4").touch()
    result = command(SCRIPT, "nowhere", "in.mp4")
    line = "error: a video needs PyAV, which is not installed; pip install av\n"
    assert (result.status, result.stdout, result.stderr) == (2, "", line)


def test_a_vit_of_timm_is_drawn(command: Command, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))  # untrained
    result = command(SCRIPT, "timm/vit_tiny_patch16_224", picture.name, "--resolution", "64")
    assert (result.status, result.stdout) == (0, "attention.png: 3 maps of 4 × 4 patches\n"), result.stderr


def backbone(path: Path) -> None:
    xcit.create_model("xcit_n12", patch_size=8, num_classes=0).save_pretrained(path)


def write_video(av: ModuleType, path: Path, size: tuple[int, int], frames: int) -> None:
    width, height = size
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(30000, 1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for number in range(frames):
            pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(stream.encode(None))


def read_video(av: ModuleType, path: Path) -> tuple[list[tuple[float, np.ndarray]], Fraction]:
    """The time and the pixels of each frame, and the frame rate."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in file.decode(stream)], stream.average_rate


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("nowhere", "photo.png"), "nowhere: "),
        (("nowhere", "none.png"), "none.png: cannot be read (No such file or directory)"),
        (("nowhere", "text.jpg"), "text.jpg: "),
        (("nowhere", "photo.png", "--output", "a/b.png"), "--output=a/b.png: its folder does not exist"),
        (("nowhere", "photo.png", "--output", "b.xyz"), "--output=b.xyz: must end in one of .png, .jpg, .pdf, .svg"),
        (("nowhere", "photo.png", "--resolution", "big"), "--resolution: invalid int value: 'big'"),
        (("nowhere", "photo.png", "--mass", "60"), "--mass=60.0: must be greater than 0 and less than 1"),
        (("nowhere", ".", "--output", "photo.png"), "--output=photo.png: is a file already"),
        (("nowhere", "a.mp4", "--output", "b.png"), "--output=b.png: must end in one of .mp4, .mov, .mkv"),
        (("nowhere", "a.mp4"), "a.mp4: cannot be read (No such file or directory)"),
    ],
)
def test_bad_input_is_one_line(
    command: Command, picture: Path, tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    result = command(SCRIPT, *arguments)
    assert (result.status, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
    assert result.stderr.startswith(f"error: {line}")
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "text.jpg"}
