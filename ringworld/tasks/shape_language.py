"""What can be said about moving shapes, and the judges of what was said and drawn.

Words come from the scene, never from pixels, so captions and answers are exact. The judges go the
other way: `score_caption` reads a sentence back into facts, `score_clip` finds each asked thing in
pixels by its hue, compares its outline with the three shapes and follows its centre. A fact is a
triple (colour, shape, motion).
"""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from .shapes import COLOURS, MOTIONS, SHAPES, Scene, Thing, outline

Fact = tuple[str, str, str]
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
SENTENCE = re.compile(
    rf"\b({'|'.join(COLOURS)})\s+({'|'.join(SHAPES)})\b"
    r"(?:\s+(?:moves|is moving|moving)\s+(?:to the\s+)?(left|right|up|down)\b"
    r"|\s+(?:stays|is|staying)\s+(still)\b)?"
)
WHITE_FLOOR = 165
WHITE_CHROMA = 48
HUE_SLACK = 24.0
LEAST_AREA = 0.012
LEAST_TRAVEL = 0.12


def tell(thing: Thing, *, motion: bool = True) -> str:
    """One clause about one thing, such as "a red circle moves left", or only "a red circle"."""
    verb = " stays still" if thing.motion == "still" else f" moves {thing.motion}"
    return f"a {thing.colour} {thing.shape}{verb if motion else ''}"


def caption(scene: Scene, *, motion: bool = True) -> str:
    """The scene in words, no full stop, in the order of `COLOURS`; a still has no motion."""
    *first, last = [tell(thing, motion=motion) for thing in scene.things]
    return f"{', '.join(first)} and {last}" if first else last


def questions(scene: Scene, *, motion: bool = True) -> list[tuple[str, str]]:
    """Questions with their exact short answers: counts, colours, shapes, motions, yes and no.

    Every "yes" has a "no" beside it that differs in the shape only. A colour is asked for only
    where one thing has the shape; motions are asked for only where `motion` is true.
    """
    kinds = [thing.shape for thing in scene.things]
    pairs = [("how many shapes are there?", NUMBERS[len(kinds)])]
    for shape in SHAPES:
        pairs.append((f"how many {shape}s are there?", NUMBERS[kinds.count(shape)]))
    for thing in scene.things:
        colour, shape = thing.colour, thing.shape
        wrong = SHAPES[(SHAPES.index(shape) + 1) % len(SHAPES)]
        pairs.append((f"what shape is the {colour} one?", shape))
        pairs.append((f"is there a {colour} {shape}?", "yes"))
        pairs.append((f"is there a {colour} {wrong}?", "no"))
        if kinds.count(shape) == 1:
            pairs.append((f"what colour is the {shape}?", colour))
        if motion:
            pairs.append((f"how does the {colour} {shape} move?", thing.motion))
        if motion and kinds.count(shape) == 1:
            pairs.append((f"how does the {shape} move?", thing.motion))
    return pairs


def facts(scene: Scene) -> frozenset[Fact]:
    """The (colour, shape, motion) of every thing in the scene."""
    return frozenset((thing.colour, thing.shape, thing.motion) for thing in scene.things)


def parse_caption(text: str) -> frozenset[Fact]:
    """The facts that a sentence states, a motion it does not state being ""."""
    found = SENTENCE.findall(text.lower())
    return frozenset((colour, shape, moves or still) for colour, shape, moves, still in found)


def score_caption(text: str, scene: Scene, *, motion: bool = True) -> float:
    """F1 of the facts that a sentence states against the scene's: 1 is all and only the truth.

    Without `motion` only colours and shapes count.
    """
    said, true = parse_caption(text), facts(scene)
    if not motion:
        said, true = {fact[:2] for fact in said}, {fact[:2] for fact in true}
    return 2 * len(said & true) / (len(said) + len(true))


@dataclass(frozen=True, kw_only=True)
class ThingScore:
    """What was right about one asked thing; shape and motion count only where the colour is."""

    colour: bool
    shape: bool
    motion: bool


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """The score of each asked thing, in the scene's order, and how many colours nobody asked."""

    things: tuple[ThingScore, ...]
    strangers: int

    @property
    def colour(self) -> float:
        """Share of asked things whose colour is seen."""
        return sum(thing.colour for thing in self.things) / len(self.things)

    @property
    def shape(self) -> float:
        """Share of asked things whose shape is right."""
        return sum(thing.shape for thing in self.things) / len(self.things)

    @property
    def motion(self) -> float:
        """Share of asked things whose motion is right."""
        return sum(thing.motion for thing in self.things) / len(self.things)

    @property
    def whole(self) -> bool:
        """Whether every asked thing is right in all three and nothing else is there."""
        right = all(thing.colour and thing.shape and thing.motion for thing in self.things)
        return right and self.strangers == 0


def score_clip(frames: UInt8[np.ndarray, "Z Y X 3"], scene: Scene) -> ClipScore:
    """Judge drawn frames against the things of a scene (its places and ground are not used).

    A single frame shows no motion, so there every motion counts as right.
    """
    seen = see(frames)
    scores = []
    for thing in scene.things:
        shape, motion = seen.get(thing.colour, ("", ""))
        there = thing.colour in seen
        follows = there and (motion == thing.motion or len(frames) == 1)
        scores.append(ThingScore(colour=there, shape=shape == thing.shape, motion=follows))
    strangers = len(seen.keys() - {thing.colour for thing in scene.things})
    return ClipScore(things=tuple(scores), strangers=strangers)


def see(frames: UInt8[np.ndarray, "Z Y X 3"]) -> dict[str, tuple[str, str]]:
    """The (shape, motion) of every colour that at least half of the frames show a thing of."""
    seen = {}
    least = LEAST_AREA * frames[0, :, :, 0].size
    for colour in COLOURS:
        kept = [
            (z, patch)
            for z, mask in enumerate(find_colour(frames, colour))
            if mask.sum() >= least and (patch := largest_patch(mask)).sum() >= least
        ]
        if 2 * len(kept) >= len(frames):
            votes = sum(compare_shapes(patch) for _, patch in kept)
            seen[colour] = (SHAPES[int(np.argmax(votes))], follow(kept, len(frames)))
    return seen


def find_colour(frames: UInt8[np.ndarray, "Z Y X 3"], colour: str) -> Bool[np.ndarray, "Z Y X"]:
    """The pixels of a colour's hue, and at least half as strong as it: a blurred edge's middle.

    A blend of a pure colour with any grey keeps its hue, so grey grounds need not be known.
    """
    pixels = frames.astype(np.float64)
    hue, chroma = hue_and_chroma(pixels)
    if colour == "white":
        return (chroma < WHITE_CHROMA) & (pixels.min(-1) > WHITE_FLOOR)
    own_hue, own_chroma = hue_and_chroma(np.array([COLOURS[colour]], np.float64))
    away = np.abs((hue - own_hue + 180) % 360 - 180)
    return (away < HUE_SLACK) & (chroma > own_chroma / 2)


def hue_and_chroma(
    pixels: Float[np.ndarray, "... 3"],
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Hue in degrees (0 red, 120 green, 240 blue) and chroma, the distance from grey, 0 to 255."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    hue = np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue))
    return hue % 360, pixels.max(-1) - pixels.min(-1)


def spread(mask: Bool[np.ndarray, "Y X"]) -> Bool[np.ndarray, "Y X"]:
    """The mask grown by one pixel in the four directions."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def largest_patch(mask: Bool[np.ndarray, "Y X"]) -> Bool[np.ndarray, "Y X"]:
    """The connected part of a mask around its innermost pixels; rims of 1 or 2 are dropped."""
    core = ~spread(~mask)
    if not core.any():
        return core
    while (inner := ~spread(~core)).any():
        core = inner
    patch = np.zeros_like(mask)
    patch[np.unravel_index(np.argmax(core), core.shape)] = True
    while (grown := spread(patch) & mask).sum() > patch.sum():
        patch = grown
    return patch


def centre_of(patch: Bool[np.ndarray, "Y X"]) -> Float[np.ndarray, "2"]:
    """The mean (x, y) of a patch's pixels, in pixels."""
    return np.argwhere(patch)[:, ::-1].mean(axis=0) + 0.5


def compare_shapes(patch: Bool[np.ndarray, "Y X"]) -> Float[np.ndarray, "3"]:
    """How well each of `SHAPES`, drawn with the patch's area and centre, covers it (IoU)."""
    area = patch.sum()
    y, x = np.mgrid[: patch.shape[0], : patch.shape[1]] + 0.5
    x, y = x - centre_of(patch)[0], y - centre_of(patch)[1]
    radii = {
        "circle": np.sqrt(area / np.pi),
        "square": np.sqrt(area) / 2,
        "triangle": np.sqrt(area / 2),
    }
    fits = []
    for shape in SHAPES:
        drop = radii[shape] / 3 if shape == "triangle" else 0.0
        model = outline(shape, x, y + drop, float(radii[shape])) < 0
        fits.append((model & patch).sum() / (model | patch).sum())
    return np.array(fits)


def follow(patches: list[tuple[int, Bool[np.ndarray, "Y X"]]], frames: int) -> str:
    """The motion word of (frame, patch) pairs: the straight line through their centres."""
    if len(patches) < 2:
        return "still"
    moments = np.array([z for z, _ in patches], np.float64)
    centres = np.array([centre_of(patch) for _, patch in patches])
    dx, dy = np.polyfit(moments, centres, 1)[0] * (frames - 1) / patches[0][1].shape[0]
    if max(abs(dx), abs(dy)) < LEAST_TRAVEL:
        return "still"
    step = (int(np.sign(dx)), 0) if abs(dx) > abs(dy) else (0, int(np.sign(dy)))
    return next(word for word, way in MOTIONS.items() if way == step)
