"""A film read back is the film that was written; a failed one leaves no trace."""

import sys

import numpy as np
import pytest
from PIL import Image

from learned_opt.errors import LearnedOptError
from learned_opt.rl.video import write_video


def moving_bar(num_frames, *, height=20, width=30):
    frames = [np.full((height, width, 3), 250, np.uint8) for _ in range(num_frames)]
    for i, frame in enumerate(frames):
        frame[:, i : i + 3] = (200, 30, 60)
    return frames


def read(path):
    """Frames and their durations in milliseconds."""
    with Image.open(path) as film:
        frames, durations = [], []
        for i in range(film.n_frames):
            film.seek(i)
            frames.append(np.asarray(film.convert("RGB")))
            durations.append(film.info["duration"])
        return frames, durations, film.info["loop"]


@pytest.mark.parametrize(("num_frames", "fps"), [(1, 15), (12, 15), (12, 7.5), (20, 50)])
def test_a_gif_read_back_has_every_frame_for_its_time_and_loops(tmp_path, num_frames, fps):
    frames = moving_bar(num_frames)
    path = write_video(frames, tmp_path / "films" / "bar.gif", fps=fps)
    assert path == tmp_path / "films" / "bar.gif"
    found, durations, loop = read(path)
    assert len(found) == num_frames
    for frame, written in zip(found, frames, strict=True):
        np.testing.assert_array_equal(frame, written)
    assert sum(durations) == 10 * round(100 * num_frames / fps)
    assert all(abs(duration - 1000 / fps) <= 10 for duration in durations)
    assert loop == 0


def test_repeated_frames_keep_their_time(tmp_path):
    still, moved = moving_bar(2)
    _, durations, _ = read(write_video([still] * 9 + [moved], tmp_path / "still.gif", fps=10))
    assert durations == [900, 100]


def test_many_colours_are_kept_within_a_palette(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    frame = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(128)), axis=-1)
    (found,), _, _ = read(write_video([frame], tmp_path / "ramp.gif"))
    assert np.abs(found.astype(int) - frame).mean() < 8


@pytest.mark.parametrize(
    ("frames", "name", "fps", "message"),
    [
        ([], "a.gif", 15, "a video needs at least one frame, got none for 'a.gif'"),
        (moving_bar(2), "a.avi", 15, "a video must end in .gif or .mp4, got 'a.avi'"),
        (moving_bar(2), "a.gif", 0, r"fps must lie in \(0, 50\], got 0"),
        (moving_bar(2), "a.gif", 100, r"fps must lie in \(0, 50\], got 100"),
        ([np.zeros((4, 4), np.uint8)], "a.gif", 15, r"shape \[H, W, 3\], got \[4, 4\]"),
        ([*moving_bar(1), *moving_bar(1, width=9)], "a.gif", 15, r"got uint8 of \[20, 9, 3\] at 1"),
        ([np.zeros((4, 4, 3))], "a.gif", 15, r"got float64 of \[4, 4, 3\] at 0"),
    ],
)
def test_what_is_no_film_is_refused_and_nothing_written(tmp_path, frames, name, fps, message):
    with pytest.raises(LearnedOptError, match=message):
        write_video(frames, tmp_path / name, fps=fps)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a stand-in for ffmpeg on the PATH, the only program there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(body):
        script = folder / "ffmpeg"
        script.write_text(f"#!{sys.executable}\nimport sys, pathlib\n{body}\n")
        script.chmod(0o755)

    return install


def test_an_mp4_is_made_by_ffmpeg_from_all_pixels(tmp_path, program):
    program(
        "data = sys.stdin.buffer.read()\n"
        "said = ' '.join(sys.argv[1:-1]).encode()\n"
        "pathlib.Path(sys.argv[-1]).write_bytes(said + b'|' + data)"
    )
    frames = moving_bar(5)
    film = write_video(frames, tmp_path / "bar.mp4", fps=12).read_bytes()
    said, _, data = film.partition(b"|")
    assert data == np.stack(frames).tobytes()
    assert b"-f rawvideo -pix_fmt rgb24 -s 30x20 -r 12 -i -" in said
    assert said.endswith(b"-f mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bar.mp4", "bin"]


def test_a_failing_ffmpeg_is_quoted_and_leaves_the_old_film(tmp_path, program):
    (tmp_path / "bar.mp4").write_bytes(b"old")
    # It closes its input at once: frames larger than a pipe find no reader.
    program(
        "pathlib.Path(sys.argv[-1]).write_bytes(b'half')\n"
        "sys.stderr.write('first\\nno such codec\\n')\nsys.exit(1)"
    )
    with pytest.raises(LearnedOptError, match=r"could not write the video: no such codec$"):
        write_video(moving_bar(60, height=100, width=100), tmp_path / "bar.mp4")
    assert (tmp_path / "bar.mp4").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bar.mp4", "bin"]


@pytest.mark.usefixtures("program")
def test_a_missing_ffmpeg_is_said(tmp_path):
    with pytest.raises(LearnedOptError, match="writing MP4 needs the program ffmpeg on the PATH"):
        write_video(moving_bar(2), tmp_path / "bar.mp4")
    assert not (tmp_path / "bar.mp4").exists()
