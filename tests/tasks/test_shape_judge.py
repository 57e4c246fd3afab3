"""The judge of drawn clips is right at every size, and says nothing where blur hides the shape."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from ringworld.tasks.shape_judge import (
    chance_of_exact,
    detect_things,
    outline,
    score_caption,
    score_clip,
)
from ringworld.tasks.shape_language import facts
from ringworld.tasks.shapes import GROUNDS, SHAPE_COLOURS, SHAPES, Scene, Thing, draw, sample_scene
from ringworld.weights.codecs import load_codec
from ringworld.weights.shipped import NANO, SHAPES_CODEC

FRAMES = 6
RED_LEFT = Thing(
    colour="red", shape="circle", motion="left", x=0.7, y=0.25, radius=0.15, travel=0.4
)
BLUE_STILL = Thing(
    colour="blue", shape="square", motion="still", x=0.3, y=0.7, radius=0.15, travel=0.0
)
SCENE = Scene(things=(BLUE_STILL, RED_LEFT), ground=40)


def scenes(count: int, *, max_things: int = 3) -> list[Scene]:
    """Some scenes, always the same."""
    rng = np.random.default_rng(7)
    return [sample_scene(rng, max_things=max_things) for _ in range(count)]


def blur(frames: np.ndarray, radius: float) -> np.ndarray:
    """Frames as through a soft lens."""
    lens = ImageFilter.GaussianBlur(radius)
    return np.stack([np.array(Image.fromarray(frame).filter(lens)) for frame in frames])


def coarsen(frames: np.ndarray, factor: int) -> np.ndarray:
    """Frames made smaller by a factor and large again."""
    size = frames.shape[1]
    small = [Image.fromarray(frame).resize((size // factor,) * 2) for frame in frames]
    return np.stack([np.array(image.resize((size, size))) for image in small])


def speckle(frames: np.ndarray, strength: float) -> np.ndarray:
    """Frames with noise of this standard deviation."""
    noise = np.random.default_rng(0).normal(0, strength, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("spoil", "least"),
    [
        (lambda frames: frames, 0.99),
        (lambda frames: blur(frames, 1.0), 0.97),
        (lambda frames: blur(frames, 2.0), 0.95),
        (lambda frames: coarsen(frames, 4), 0.9),
        (lambda frames: speckle(frames, 15.0), 0.97),
    ],
    ids=["clean", "blurred", "very-blurred", "coarse", "noisy"],
)
def test_the_judge_of_clips_is_right_about_drawn_scenes(spoil, least):
    cases = scenes(24)
    right = [score_clip(spoil(draw(scene, frames=FRAMES)), scene).exact for scene in cases]
    assert np.mean(right) >= least


def test_the_judge_of_clips_tells_right_from_wrong():
    frames = draw(SCENE, frames=FRAMES)
    assert score_clip(frames, SCENE).exact
    score = score_clip(frames[::-1], SCENE)
    assert (score.colour, score.shape, score.motion) == (1.0, 1.0, 0.5)
    alone = score_clip(frames, Scene(things=(RED_LEFT,), ground=0))
    assert alone.motion == 1.0
    assert alone.extra == 1
    assert not alone.exact
    nothing = score_clip(np.zeros_like(frames), SCENE)
    assert (nothing.colour, nothing.shape, nothing.motion) == (0.0, 0.0, 0.0)


def test_a_single_frame_is_judged_without_motion():
    assert score_clip(draw(SCENE, frames=1), SCENE).exact


@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_judge_works_at_every_size(size):
    right = [score_clip(draw(s, frames=4, size=size), s).exact for s in scenes(12)]
    assert np.mean(right) >= 0.9


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("A red circle is moving to the left. A blue square is still.", 1.0),
        ("a red circle moves left", 2 / 3),
        ("a red circle moves right and a blue square stays still", 0.5),
        ("a red circle and a blue square", 0.0),
        ("a red circle moves left, a green circle moves left and a blue square stays still", 0.8),
        ("", 0.0),
    ],
)
def test_the_judge_of_captions_counts_facts(text, score):
    assert score_caption(text, SCENE) == pytest.approx(score)


def still(shape: str, colour: str, radius: float, x: float, y: float, ground: int) -> np.ndarray:
    """One frame of one thing that does not move."""
    thing = Thing(colour=colour, shape=shape, motion="still", x=x, y=y, radius=radius, travel=0.0)
    return draw(Scene(things=(thing,), ground=ground), frames=1)


def stills(count: int) -> Iterator[tuple[str, str, float, np.ndarray]]:
    """Shape, colour, radius and frame: every shape as often, of every size, between pixels too."""
    rng = np.random.default_rng(11)
    for i in range(count):
        shape, colour = SHAPES[i % 3], str(rng.choice(list(SHAPE_COLOURS)))
        radius = float(rng.uniform(0.1, 0.25))
        x, y = rng.uniform(radius, 1 - radius, 2).tolist()
        yield shape, colour, radius, still(shape, colour, radius, x, y, int(rng.choice(GROUNDS)))


def shape_read(frames: np.ndarray, colour: str) -> str:
    """The shape that the judge reads, "" for none."""
    return detect_things(frames).get(colour, ("", ""))[0]


@pytest.mark.parametrize("pixels", [0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
def test_a_blurred_shape_is_never_read_as_another(pixels: float) -> None:
    for shape, colour, radius, frame in stills(60):
        read = shape_read(blur(frame, pixels), colour)
        clear = pixels <= 0.25 * radius * frame.shape[1]
        assert read == shape if clear else read in (shape, ""), (shape, colour, radius)


def diamonds(count: int) -> Iterator[tuple[str, float, np.ndarray]]:
    """Colour, half-width in pixels and frame of squares on their corners, of every size."""
    rng = np.random.default_rng(23)
    y, x = np.mgrid[:64, :64] + 0.5
    for _ in range(count):
        colour, half = str(rng.choice(list(SHAPE_COLOURS))), float(rng.uniform(8, 16))
        centre = rng.uniform(half, 64 - half, 2)
        away = outline("diamond", x - centre[0], y - centre[1], half)[..., None]
        ground = np.full((64, 64, 3), float(rng.choice(GROUNDS)))
        frame = ground + np.clip(0.5 - away, 0, 1) * (np.array(SHAPE_COLOURS[colour]) - ground)
        yield colour, half, np.rint(frame).astype(np.uint8)[None]


@pytest.mark.parametrize("pixels", [0.0, 1.0, 1.5, 2.0, 3.0])
def test_a_square_on_its_corner_is_no_circle_however_blurred(pixels: float) -> None:
    for colour, half, frame in diamonds(40):
        assert shape_read(blur(frame, pixels) if pixels else frame, colour) == "", (colour, half)


def test_the_judge_agrees_with_the_share_of_its_box_that_a_shape_fills() -> None:
    fills = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5}
    for _, colour, _, frame in stills(90):
        away = np.abs(frame[0].astype(int) - frame[0, 0, 0].astype(int)).max(-1)
        rows, columns = np.nonzero(away > away.max() / 2)
        fill = len(rows) / (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
        nearest = min(fills, key=lambda shape: abs(fills[shape] - fill))
        assert shape_read(frame, colour) == nearest


def test_the_codec_makes_no_shape_another_and_leaves_most_clips_right() -> None:
    codec, rng = load_codec(NANO / "codec"), np.random.default_rng(5)
    cases = [sample_scene(rng, max_things=1) for _ in range(60)]
    clips = np.concatenate([draw(scene, frames=FRAMES) for scene in cases])
    decoded = codec.decode(codec.encode(clips)).reshape(len(cases), FRAMES, 64, 64, 3)
    read: Counter[tuple[str, str]] = Counter()
    for scene, clip in zip(cases, decoded, strict=True):
        read[scene.things[0].shape, shape_read(clip, scene.things[0].colour)] += 1
    assert all(found in (shape, "") for shape, found in read)
    right = [score_clip(c, scene).exact for c, scene in zip(decoded, cases, strict=True)]
    assert np.mean(right) >= 0.93


def test_the_codec_of_shapes_leaves_more_clips_of_three_things_right() -> None:
    rng, cases = np.random.default_rng(88), list[Scene]()
    while len(cases) < 12:
        scene = sample_scene(rng)
        cases += [scene] if len(scene.things) == 3 else []
    clips = np.concatenate([draw(scene, frames=FRAMES) for scene in cases])

    def count(folder: Path) -> int:
        codec = load_codec(folder)
        decoded = codec.decode(codec.encode(clips)).reshape(len(cases), FRAMES, 64, 64, 3)
        return sum(score_clip(clip, s).exact for clip, s in zip(decoded, cases, strict=True))

    assert count(SHAPES_CODEC) > count(NANO / "codec")


@pytest.mark.parametrize(
    "points",
    [
        [(15, 20), (49, 20), (49, 44), (15, 44)],
        [(32, 50), (12, 14), (52, 14)],
        [(14, 14), (14, 50), (50, 50)],
        [(32, 10), (38, 26), (54, 32), (38, 38), (32, 54), (26, 38), (10, 32), (26, 26)],
        [(8, 24), (56, 24), (56, 40), (8, 40)],
    ],
    ids=["oblong", "upside down", "right angle", "star", "bar"],
)
def test_what_is_none_of_the_shapes_is_read_as_none(points: list[tuple[int, int]]) -> None:
    large = Image.new("RGB", (512, 512), (40, 40, 40))
    ImageDraw.Draw(large).polygon([(8 * x, 8 * y) for x, y in points], fill=SHAPE_COLOURS["red"])
    frames = np.array(large.resize((64, 64), Image.Resampling.BOX))[None]
    for spoiled in (frames, blur(frames, 1.0)):
        assert detect_things(spoiled) == {"red": ("", "still")}


def test_pixels_without_any_shape_are_judged_too() -> None:
    red = np.full((2, 64, 64, 3), SHAPE_COLOURS["red"], np.uint8)
    assert detect_things(red) == {"red": ("", "still")}
    half, stripe = red.copy(), red.copy()
    half[:, :, 32:] = 40
    stripe[:, :, 63:] = 40
    for frames in (half, stripe):
        assert detect_things(frames) == {"red": ("", "still")}
    noise = np.random.default_rng(0).integers(0, 256, red.shape, np.uint8)
    for frames in (noise, np.zeros_like(red)):
        assert detect_things(frames) == {}
    assert shape_read(np.full_like(red, 245), "white") == ""


def test_the_chance_of_a_guess_is_how_often_a_random_scene_is_as_asked() -> None:
    scene = Scene(things=(RED_LEFT,), ground=0)
    rng = np.random.default_rng(3)
    drawn = [facts(sample_scene(rng, max_things=2)) == facts(scene) for _ in range(6000)]
    chance = chance_of_exact(scene, max_things=2)
    assert chance == 1 / (2 * 6 * 15)
    assert np.mean(drawn) == pytest.approx(chance, abs=4 * np.sqrt(chance / len(drawn)))
    assert chance_of_exact(SCENE, max_things=2) == 1 / (2 * 15 * 15**2)
