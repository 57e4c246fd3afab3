"""What a file says of its looks is applied: the pixels are those that a viewer shows."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from painted import numbers, paint
from PIL import Image, ImageCms, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from ringworld.media.clip import read_clip, read_image
from ringworld.media.sampling import FrameSampling

ODD = 0b0001_0011_0111_0010  # a number whose picture looks different from every side
SIDE = 64
ONE = FrameSampling(num_frames=1)


def picture(image: Image.Image, kind: str = "PNG", **how: object) -> np.ndarray:
    """The pixels of an image that was saved and read."""
    file = io.BytesIO()
    image.save(file, kind, **how)
    return read_image(file.getvalue(), size=image.height)


def hidden(kind: str) -> tuple[Image.Image, dict[str, object]]:
    """A red square on a transparent ground that hides black, and how it is saved."""
    alpha = np.zeros((16, 16), np.uint8)
    alpha[4:12, 4:12] = 255
    red = np.where(alpha[..., None], np.array([200, 0, 0], np.uint8), np.uint8(0))
    if kind == "LA":
        grey = Image.fromarray(red[..., 0])
        return Image.merge("LA", (grey, Image.fromarray(alpha))), {}
    if kind == "palette":
        image = Image.fromarray((alpha > 0).astype(np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 200, 0, 0])
        return image, {"transparency": 0}
    if kind in ("RGB key", "deep grey key"):
        deep = Image.fromarray(red[..., 0].astype(np.uint16) << 8)
        return (
            (Image.fromarray(red), {"transparency": (0, 0, 0)})
            if kind[0] == "R"
            else (
                deep,
                {"transparency": 0},
            )
        )
    return Image.fromarray(np.dstack([red, alpha])), {}


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "RGB key", "deep grey key"])
def test_a_transparent_picture_is_laid_over_white(kind):
    image, how = hidden(kind)
    found = picture(image, **how)
    inside = [200, 200, 200] if kind in ("LA", "deep grey key") else [200, 0, 0]
    assert found[0, 0].tolist() == [255] * 3 and found[8, 8].tolist() == inside
    if kind == "RGBA":
        half = Image.new("RGBA", (16, 16), (0, 0, 0, 128))
        assert picture(half)[8, 8].tolist() == [127] * 3
        assert picture(image, "WEBP", lossless=True)[[0, 8], [0, 8]].tolist() == [
            [255] * 3,
            [200, 0, 0],
        ]


def test_a_picture_of_16_bits_keeps_its_greys():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = picture(Image.fromarray(ramp))
    assert np.array_equal(found, (ramp >> 8).astype(np.uint8)[..., None].repeat(3, axis=-1))


def test_a_colour_profile_and_a_gamma_are_applied():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    image = Image.new("RGB", (8, 8), (120, 60, 30))
    assert picture(image, icc_profile=lab)[4, 4].tolist() == [120, 60, 30]  # of no RGB picture
    info = PngInfo()
    info.add(b"gAMA", (100_000).to_bytes(4))  # linear light
    found = picture(image, pnginfo=info)[4, 4] / 255
    light = np.array([120, 60, 30]) / 255
    assert found == pytest.approx(1.055 * light ** (1 / 2.4) - 0.055, abs=0.003)


def test_text_of_megabytes_does_not_hide_a_picture():
    info = PngInfo()
    info.add_text("workflow", "step " * 600_000, zip=True)
    assert len("step " * 600_000) > PngImagePlugin.MAX_TEXT_CHUNK
    assert numbers(picture(Image.fromarray(paint(ODD)), pnginfo=info)[None]) == [ODD]


def video(
    path: Path,
    frame: av.VideoFrame,
    codec: str,
    *,
    matrix: list[int] | None = None,
    shape: Fraction | None = None,
    coding: dict[str, str] | None = None,
) -> Path:
    """A film of one frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=2)
        stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, frame.format.name
        stream.options = coding or {}
        if shape is not None:
            stream.codec_context.sample_aspect_ratio = shape
        for name in ("colorspace", "color_range", "color_trc", "color_primaries"):
            setattr(stream.codec_context, name, getattr(frame, name))
        if matrix is not None:
            stream.set_display_matrix(matrix)
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("signs", "undo"),
    [
        ((1, 0, 0, 1), lambda x: x),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
        ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
        ((0, 1, -1, 0), lambda x: np.rot90(x, 1)),
        ((0, -1, 1, 0), lambda x: np.rot90(x, 3)),
    ],
)
def test_a_film_is_shown_through_its_display_matrix(tmp_path, signs, undo):
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(undo(paint(ODD))), format="rgb24")
    a, b, c, d = (sign << 16 for sign in signs)
    path = video(
        tmp_path / "film.mp4",
        frame.reformat(format="yuv420p"),
        "libx264",
        matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30],
    )
    assert numbers(read_clip(path, ONE, size=SIDE).frames) == [ODD]


@pytest.mark.parametrize(("codec", "name"), [("libvpx-vp9", "f.webm"), ("qtrle", "f.mov")])
def test_a_transparent_film_is_laid_over_white(tmp_path, codec, name):
    alpha = np.zeros((64, 64), np.uint8)
    alpha[16:48, 16:48] = 255
    rgba = np.dstack([np.zeros((64, 64, 3), np.uint8), alpha])
    frame = av.VideoFrame.from_ndarray(rgba, format="rgba")
    frame = frame.reformat(format="argb" if codec == "qtrle" else "yuva420p")
    found = read_clip(video(tmp_path / name, frame, codec), ONE, size=64).frames[0]
    assert found[4, 4].min() > 245 and found[32, 32].max() < 10


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    stretched = np.asarray(Image.fromarray(paint(ODD)).resize((32, 64), Image.Resampling.NEAREST))
    frame = av.VideoFrame.from_ndarray(stretched, format="rgb24").reformat(format="yuv420p")
    path = video(tmp_path / "film.mp4", frame, "libx264", shape=Fraction(2))
    assert numbers(read_clip(path, ONE, size=SIDE).frames) == [ODD]


def pq(nits: float) -> float:
    """The coded value of a luminance by SMPTE ST 2084."""
    root = (nits / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * root) / (1 + 2392 / 128 * root)) ** (2523 / 32)


@pytest.mark.parametrize(
    ("transfer", "coded", "shown"),
    [
        # 203 cd/m2 is white; the rest by the curve of sRGB from a share of it.
        (16, pq(203.0), 255),
        (16, pq(50.0), 136),
        (16, pq(1.0), 15),
        (18, 0.5, 137),
        (18, 0.3, 77),
    ],
)
def test_a_film_of_high_dynamic_range_is_shown_as_on_a_standard_screen(
    tmp_path, transfer, coded, shown
):
    frame = av.VideoFrame(64, 64, "yuv420p10le")
    for plane, value in zip(frame.planes, (876 * coded + 64, 512, 512), strict=True):
        plane.update(np.full(plane.buffer_size // 2, round(value), np.uint16).tobytes())
    frame.colorspace, frame.color_range = 9, 1
    frame.color_trc, frame.color_primaries = transfer, 9
    path = video(tmp_path / "film.mkv", frame, "ffv1")
    assert read_clip(path, ONE, size=32).frames[0, 16, 16].astype(int) == pytest.approx(
        [shown] * 3, abs=2
    )


@pytest.mark.parametrize(("matrix", "full"), [(1, 1), (1, 2), (5, 1), (5, 2), (9, 1)])
def test_the_colour_matrix_and_the_range_of_a_film_are_applied(tmp_path, matrix, full):
    red, blue = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}[matrix]
    r, g, b = 0.8, 0.3, 0.2
    y = red * r + (1 - red - blue) * g + blue * b
    cb, cr = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    low, span, chroma = (0, 255, 255) if full == 2 else (16, 219, 224)
    frame = av.VideoFrame(64, 64, "yuv444p")
    values = (low + span * y, 128 + chroma * cb, 128 + chroma * cr)
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(bytes([round(value)]) * plane.buffer_size)
    frame.colorspace, frame.color_range = matrix, full
    found = read_clip(video(tmp_path / "film.mkv", frame, "ffv1"), ONE, size=32).frames[0, 16, 16]
    assert found.astype(int) == pytest.approx([204, 76.5, 51], abs=3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animated_picture_is_a_film(kind):
    frames = [Image.fromarray(paint(k)) for k in (1, 2, 3)]
    file = io.BytesIO()
    frames[0].save(
        file, kind, save_all=True, append_images=frames[1:], duration=500, **{"lossless": True}
    )
    clip = read_clip(file.getvalue(), FrameSampling(fps=2.0), size=SIDE)
    assert numbers(clip.frames) == [1, 2, 3] and clip.seconds.tolist() == [0, 0.5, 1.0]
    assert numbers(read_clip(file.getvalue(), ONE, size=SIDE).frames) == [1]
    assert numbers(read_image(file.getvalue(), size=SIDE)[None]) == [1]
