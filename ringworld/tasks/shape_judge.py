"""Judges of moving shapes: what a sentence states, and what the pixels of a clip show.

`score_caption` compares the facts of a sentence with those of a scene. `score_clip` compares what
`detect_things` finds in the pixels: each colour by its hue, the shape by the template that fits it
best, the motion by the path of its centre.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from jaxtyping import Bool, Float, UInt8

from ringworld.tasks.shape_language import facts, parse_caption
from ringworld.tasks.shapes import MOTIONS, SHAPE_COLOURS, SHAPES, Scene, shape_outline

# A pixel is white when its darkest channel is above the floor and its chroma is below the limit.
WHITE_FLOOR = 165
WHITE_CHROMA = 48
# Degrees of hue that a pixel of a colour may be away from it.
HUE_TOLERANCE = 24.0
# Fractions of the picture: the smallest area of a thing, the shortest path of a moving one.
MIN_AREA = 0.012
MIN_TRAVEL = 0.12
# The rim around a thing in which its blurred edge is compared.
RIM = 1 / 16
# What a patch is compared with: `SHAPES`, and a square on its corner, which a blurred circle is
# otherwise taken for.
OUTLINES = (*SHAPES, "diamond")
# Their radii of area 1.
UNIT_RADII = np.array([1 / np.sqrt(np.pi), 1 / 2, 1 / np.sqrt(2), 1 / np.sqrt(2)])
# Templates: radii over the radius that the area gives, and standard deviations of the blur over
# half the square root of the area. A blurred thing is smaller at half its strength, so most radii
# are above 1.
RADII = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.16, 1.24, 1.33)
BLURS = (0.03, 0.1, 0.17, 0.24, 0.32, 0.4, 0.5, 0.6, 0.7)
# The shares of variance that a template may leave, in all and over what the next shape leaves, and
# the share that the grid of templates leaves of a perfect shape.
MAX_RESIDUAL = 0.11
MAX_RATIO = 0.7
# What a circle may leave of what a diamond leaves. Of true circles, through the shipped codec or
# made four times coarser, 97 in 100 leave less than 0.51 of it; blurred diamonds leave several
# times as much. Of the diamonds that the codec itself makes round, half leave more than 0.6.
MAX_DIAMOND = 0.6
GRID_RESIDUAL = 0.002


def score_caption(text: str, scene: Scene, *, motion: bool = True) -> float:
    """F1 of the facts that a sentence states against those of the scene, from 0 to 1.

    Without `motion` only colours and shapes count.
    """
    stated, true = parse_caption(text), facts(scene)
    if not motion:
        stated, true = {fact[:2] for fact in stated}, {fact[:2] for fact in true}
    return 2 * len(stated & true) / (len(stated) + len(true))


@dataclass(frozen=True, kw_only=True)
class ThingScore:
    """What is right about one asked thing; shape and motion are wrong where the colour is."""

    colour: bool
    shape: bool
    motion: bool


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """The score of each asked thing in the scene's order, and the number of other colours found."""

    things: tuple[ThingScore, ...]
    extra: int

    @property
    def colour(self) -> float:
        """Share of asked things whose colour is found, from 0 to 1."""
        return sum(thing.colour for thing in self.things) / len(self.things)

    @property
    def shape(self) -> float:
        """Share of asked things whose shape is right, from 0 to 1."""
        return sum(thing.shape for thing in self.things) / len(self.things)

    @property
    def motion(self) -> float:
        """Share of asked things whose motion is right, from 0 to 1."""
        return sum(thing.motion for thing in self.things) / len(self.things)

    @property
    def exact(self) -> bool:
        """Whether every asked thing is right in all three and no other colour is found."""
        right = all(thing.colour and thing.shape and thing.motion for thing in self.things)
        return right and self.extra == 0


def chance_of_exact(scene: Scene, *, max_things: int) -> float:
    """The probability that a random scene of 1 to `max_things` things has the words of a scene."""
    count = len(scene.things)
    words = comb(len(SHAPE_COLOURS), count) * (len(SHAPES) * len(MOTIONS)) ** count
    return 1 / (max_things * words)


def score_clip(frames: UInt8[np.ndarray, "Z Y X 3"], scene: Scene) -> ClipScore:
    """Compare frames with the things of a scene; its positions and its ground are not used.

    A single frame shows no motion, so every motion counts as right there.
    """
    found = detect_things(frames)
    scores = []
    for thing in scene.things:
        shape, motion = found.get(thing.colour, ("", ""))
        there = thing.colour in found
        follows = there and (motion == thing.motion or len(frames) == 1)
        scores.append(ThingScore(colour=there, shape=shape == thing.shape, motion=follows))
    extra = len(found.keys() - {thing.colour for thing in scene.things})
    return ClipScore(things=tuple(scores), extra=extra)


def detect_things(frames: UInt8[np.ndarray, "Z Y X 3"]) -> dict[str, tuple[str, str]]:
    """The (shape, motion) of every colour that at least half of the frames show a thing of.

    The shape is "" where no template fits, or where two fit about as well: what is blurred beyond
    recognition is no shape.
    """
    found = {}
    for colour in SHAPE_COLOURS:
        patches = find_patches(frames, colour)
        if 2 * len(patches) >= len(frames):
            fits = [fit_shapes(frames[z], colour, patch) for z, patch in patches.items()]
            found[colour] = (choose_shape(fits), track_motion(patches, len(frames)))
    return found


def find_patches(
    frames: UInt8[np.ndarray, "Z Y X 3"], colour: str
) -> dict[int, Bool[np.ndarray, "Y X"]]:
    """The pixels of the thing of a colour in each frame that shows one, by the frame's number."""
    least = MIN_AREA * frames[0, :, :, 0].size
    return {
        z: patch
        for z, mask in enumerate(mask_colour(frames, colour))
        if mask.sum() >= least and (patch := largest_component(mask)).sum() >= least
    }


def mask_colour(frames: UInt8[np.ndarray, "Z Y X 3"], colour: str) -> Bool[np.ndarray, "Z Y X"]:
    """The pixels of a colour's hue, at least half as strong as it: an edge's middle if blurred.

    A blend of a pure colour with any grey keeps its hue, so grey grounds need not be known.
    """
    pixels = frames.astype(np.float64)
    hue, chroma = hue_and_chroma(pixels)
    if colour == "white":
        return (chroma < WHITE_CHROMA) & (pixels.min(-1) > WHITE_FLOOR)
    own_hue, own_chroma = hue_and_chroma(np.array([SHAPE_COLOURS[colour]], np.float64))
    return (distance_of_hues(hue, own_hue) < HUE_TOLERANCE) & (chroma > own_chroma / 2)


def hue_and_chroma(
    pixels: Float[np.ndarray, "... 3"],
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Hue in degrees (0 red, 120 green, 240 blue) and chroma, the distance from grey, 0 to 255."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    hue = np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue))
    return hue % 360, pixels.max(-1) - pixels.min(-1)


def distance_of_hues(
    hue: Float[np.ndarray, "..."], other: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """The angle between hues, from 0 to 180 degrees."""
    return np.abs((hue - other + 180) % 360 - 180)


def dilate(mask: Bool[np.ndarray, "Y X"]) -> Bool[np.ndarray, "Y X"]:
    """The mask grown by one pixel in the four directions."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def largest_component(mask: Bool[np.ndarray, "Y X"]) -> Bool[np.ndarray, "Y X"]:
    """The connected part of a mask around its innermost pixels; empty if it is a rim of 1 or 2."""
    core = ~dilate(~mask)
    if mask.all() or not core.any():
        return core
    while (inner := ~dilate(~core)).any():
        core = inner
    patch = np.zeros_like(mask)
    patch[np.unravel_index(np.argmax(core), core.shape)] = True
    while (grown := dilate(patch) & mask).sum() > patch.sum():
        patch = grown
    return patch


def centroid(weights: np.ndarray) -> Float[np.ndarray, "2"]:
    """The mean (x, y) of the pixels of an array [Y, X] by their weights, in pixels."""
    y, x = np.indices(weights.shape) + 0.5
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


def fit_shapes(
    frame: UInt8[np.ndarray, "Y X 3"], colour: str, patch: Bool[np.ndarray, "Y X"]
) -> Float[np.ndarray, "4"]:
    """The share of the variance around a patch that the best template of each outline leaves.

    A template is the shape, blurred, over a plain ground. Its radius and blur are searched, its
    strength and that of the ground are fitted. Without a ground around the patch nothing fits.
    """
    level, counted = measure_strength(frame, colour, patch)
    if not (counted & ~patch).any():
        return np.ones(len(OUTLINES))
    rows, columns = np.nonzero(counted)
    window = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    level, patch, weights = level[window], patch[window], counted[window] / counted.sum()
    ground = np.percentile(level[(weights > 0) & ~patch], 25)
    contrast = max(np.percentile(level[patch], 75) - ground, 1.0)
    centre = centroid(np.clip((level - ground) / contrast, 0, 1) * weights)
    y, x = np.indices(level.shape) + 0.5
    level = level - (weights * level).sum()
    side = np.sqrt(patch.sum())
    down, across = (
        np.stack([blur_matrix(n, blur * side / 2) for blur in BLURS])[:, None] for n in level.shape
    )
    residuals = []
    for shape, radius in zip(OUTLINES, side * UNIT_RADII, strict=True):
        drop = radius / 3 if shape == "triangle" else 0.0  # from the box's middle to the centroid
        distances = [
            outline(shape, x - centre[0], y - centre[1] + drop * scale, radius * scale)
            for scale in RADII
        ]
        templates = down @ np.clip(0.5 - np.stack(distances), 0, 1) @ across.swapaxes(-1, -2)
        templates -= (weights * templates).sum((-1, -2), keepdims=True)
        covariance = (weights * templates * level).sum((-1, -2))
        variance = np.maximum((weights * templates**2).sum((-1, -2)), 1e-12)
        residuals.append(1 - (covariance**2 / variance).max() / (weights * level**2).sum())
    return np.array(residuals)


def outline(
    shape: str, dx: Float[np.ndarray, "..."], dy: Float[np.ndarray, "..."], radius: float
) -> Float[np.ndarray, "..."]:
    """Signed distance (negative inside) of points (dx, dy) from one of `OUTLINES`."""
    if shape == "diamond":
        return (np.abs(dx) + np.abs(dy) - radius) / np.sqrt(2)
    return shape_outline(shape, dx, dy, radius)


def measure_strength(
    frame: UInt8[np.ndarray, "Y X 3"], colour: str, patch: Bool[np.ndarray, "Y X"]
) -> tuple[Float[np.ndarray, "Y X"], Bool[np.ndarray, "Y X"]]:
    """The strength of a colour in each pixel, and the pixels in and around a patch that count.

    The strength is linear in the pixels, so the blur of a picture is the blur of its strength.
    Pixels of another colour do not count.
    """
    pixels, own = frame.astype(np.float64), np.array(SHAPE_COLOURS[colour], np.float64)
    near = patch
    for _ in range(max(3, round(RIM * len(frame)))):
        near = dilate(near)
    hue, chroma = hue_and_chroma(pixels)
    other = chroma > WHITE_CHROMA
    if colour == "white":
        return pixels.sum(-1), near & ~other
    own_hue, _ = hue_and_chroma(own[None])
    other &= distance_of_hues(hue, own_hue) > 2 * HUE_TOLERANCE
    return pixels @ (own - own.mean()), near & ~other


def blur_matrix(n: int, deviation: float) -> Float[np.ndarray, "n n"]:
    """The Gaussian blur of `n` pixels with zeros around them; `deviation` is in pixels."""
    kernel = np.exp(-((np.arange(-n, n + 1) / deviation) ** 2) / 2)
    kernel /= kernel.sum()
    return kernel[np.subtract.outer(np.arange(n), np.arange(n)) + n]


def choose_shape(residuals: Sequence[Float[np.ndarray, "4"]]) -> str:
    """The shape that leaves least over all frames, "" where no shape fits or two fit alike.

    A circle must fit much better than a diamond.
    """
    *mean, diamond = np.mean(residuals, axis=0) + GRID_RESIDUAL
    best, second = np.sort(mean)[:2]
    shape = SHAPES[int(np.argmin(mean))]
    fits = best <= MAX_RESIDUAL and best <= MAX_RATIO * second
    return shape if fits and (shape != "circle" or best <= MAX_DIAMOND * diamond) else ""


def track_motion(patches: dict[int, Bool[np.ndarray, "Y X"]], frames: int) -> str:
    """The motion word of patches by frame: the straight line through their centroids."""
    if len(patches) < 2:
        return "still"
    moments = np.array(list(patches), np.float64)
    centres = np.array([centroid(patch) for patch in patches.values()])
    side = next(iter(patches.values())).shape[0]
    dx, dy = np.polyfit(moments, centres, 1)[0] * (frames - 1) / side
    if max(abs(dx), abs(dy)) < MIN_TRAVEL:
        return "still"
    step = (int(np.sign(dx)), 0) if abs(dx) > abs(dy) else (0, int(np.sign(dy)))
    return next(word for word, way in MOTIONS.items() if way == step)
