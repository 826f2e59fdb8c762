"""Frames to a film: GIF without further programs, MP4 where ffmpeg is installed."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from learned_opt.errors import LearnedOptError, require

Frames = Sequence[NDArray[np.uint8]]

# A GIF counts time in hundredths of a second, and browsers slow down frames shown for only one.
_MAX_FPS = 50.0
_NUM_COLOURS = 128


def write_video(frames: Frames, path: Path | str, *, fps: float = 15) -> Path:
    """Write frames as a film, whole or not at all.

    Args:
        frames: ``[H, W, 3]`` pictures of one size.
        path: the file, ``.gif`` or ``.mp4``; its folder is made. A GIF loops, and shows frames that
            repeat as one for longer; an MP4 of odd size gains a black row or column.
        fps: frames per second, above 0 and at most 50.

    Returns:
        Where the film is.

    Raises:
        LearnedOptError: if there are no frames, or not of one size, if the suffix is another one,
            or if ffmpeg is missing or fails.
    """
    path = Path(path)
    writers: dict[str, Callable[[Frames, Path, float], None]] = {
        ".gif": _write_gif,
        ".mp4": _write_mp4,
    }
    require(
        path.suffix.lower() in writers,
        f"a video must end in {' or '.join(writers)}, got '{path.name}'",
    )
    require(len(frames) > 0, f"a video needs at least one frame, got none for '{path.name}'")
    require(0 < fps <= _MAX_FPS, f"fps must lie in (0, {_MAX_FPS:g}], got {fps}")
    shape = frames[0].shape
    require(
        len(shape) == 3 and shape[2] == 3,
        f"a frame must be of shape [H, W, 3], got {list(shape)}",
    )
    for i, frame in enumerate(frames):
        require(
            frame.shape == shape and frame.dtype == np.uint8,
            f"frames must be uint8 of one shape {list(shape)}, "
            f"got {frame.dtype} of {list(frame.shape)} at {i}",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        writers[path.suffix.lower()](frames, unfinished, fps)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _write_gif(frames: Frames, path: Path, fps: float) -> None:
    from PIL import Image

    # A palette of its own keeps each frame's colours; without dithering, still areas stay still.
    images = [
        Image.fromarray(frame).quantize(_NUM_COLOURS, dither=Image.Dither.NONE) for frame in frames
    ]
    # Rounding the times of change, not the times between, keeps the whole film on time.
    changes = np.round(100 / fps * np.arange(len(frames) + 1)).astype(int)
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=(10 * np.diff(changes)).tolist(),
        loop=0,
    )


def _write_mp4(frames: Frames, path: Path, fps: float) -> None:
    program = shutil.which("ffmpeg")
    if program is None:
        raise LearnedOptError(
            "writing MP4 needs the program ffmpeg on the PATH; write a .gif instead"
        )
    height, width, _ = frames[0].shape
    command = [program, "-y", "-loglevel", "error"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}"]
    # Players expect colours at half resolution, which takes even sizes.
    even = "pad=ceil(iw/2)*2:ceil(ih/2)*2"
    command += ["-i", "-", "-vf", even, "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    command += ["-f", "mp4", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        # A program that gives up closes the pipe; what it says then is the better message.
        with contextlib.suppress(BrokenPipeError):
            for frame in frames:
                process.stdin.write(np.ascontiguousarray(frame).tobytes())
        said = process.communicate()[1].decode(errors="replace").strip().splitlines()
    require(
        process.returncode == 0,
        f"ffmpeg could not write the video: {said[-1] if said else 'no reason given'}",
    )
