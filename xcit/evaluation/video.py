"""Changes the frames of a video one by one, with PyAV, so that a long video needs no more memory than a short one."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from ..engine.progress import SILENT, Progress
from ..errors import InputError
from ..storage import write_atomically

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""The containers that are written, by suffix, with FFmpeg's names."""
VIDEOS = (*FORMATS, ".m4v", ".avi", ".webm", ".mpg", ".mpeg", ".wmv")
"""The suffixes of videos that are read."""


class Written(NamedTuple):
    frames: int
    width: int
    height: int


def change_video(
    source: Path, target: Path, change: Callable[[Tensor], Tensor], progress: Progress = SILENT
) -> Written:
    """Write a video with each of its frames changed. Their number, times and size stay. H.264, without the sound.

    Args:
        target: a file with a suffix of FORMATS.
        change: takes and returns the pixels of a frame, (H, W, 3), uint8.

    Raises:
        InputError: PyAV is missing, or the video cannot be decoded. Nothing is written.
        WriteError: The target cannot be written.
    """
    av = import_av()
    done: list[Written] = []
    try:
        with av.open(str(source)) as reader:
            if not reader.streams.video:
                raise InputError(f"{source}: has no pictures that can be decoded")
            write_atomically(target, lambda file: done.append(copy(av, reader, file, target, change, progress)))
    except av.error.FFmpegError as error:
        raise InputError(f"{source}: cannot be decoded ({error.strerror})") from None
    return done[0]


def copy(
    av: Any, reader: Any, file: IO[bytes], target: Path, change: Callable[[Tensor], Tensor], progress: Progress
) -> Written:
    stream = reader.streams.video[0]
    stream.thread_type = "AUTO"
    rate = stream.average_rate or Fraction(25)
    last: int | None = None
    step = progress.begin(str(target), stream.frames or None, "frames")
    with av.open(file, "w", format=FORMATS[target.suffix]) as writer:
        out = None
        for frame in reader.decode(stream):
            pixels = change(upright(frame))
            if out is None:
                out = writer.add_stream("libx264", rate=rate, options={"crf": "18"})
                out.height, out.width, _ = pixels.shape
                out.pix_fmt = "yuv444p" if out.height % 2 or out.width % 2 else "yuv420p"  # the latter halves the sides
                out.codec_context.time_base = stream.time_base
            changed = av.VideoFrame.from_ndarray(pixels.numpy(), "rgb24")
            # Some files have frames without a time, or two of the same time, which no encoder takes.
            time = round(step.done / rate / stream.time_base) if frame.pts is None else frame.pts
            last = time if last is None else max(time, last + 1)
            changed.pts, changed.time_base = last, stream.time_base
            writer.mux(out.encode(changed))
            step.advance()
        if out is None:
            raise InputError(f"{reader.name}: has no pictures that can be decoded")
        writer.mux(out.encode(None))
    progress.end()
    return Written(step.done, out.width, out.height)


def upright(frame: Any) -> Tensor:
    """The pixels of a frame, (H, W, 3), turned as the video says, because phones store them rotated."""
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).rot90(frame.rotation // 90).contiguous()


def import_av() -> Any:
    try:
        import av  # here, since only videos need it
    except ImportError:
        raise InputError("a video needs PyAV, which is not installed; pip install av") from None
    return av
