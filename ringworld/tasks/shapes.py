"""A small world with exact truth: coloured shapes that move over a plain ground or a film frame.

One to three shapes, never two of one colour, each keeping one straight motion for the whole clip.
Lengths are fractions of the picture's side, so a scene can be drawn at any size and in any number
of frames. The same random generator gives the same scene, and a scene always the same pixels.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, UInt8

from ringworld.errors import InputError

SHAPE_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (224, 40, 40),
    "green": (40, 184, 60),
    "blue": (48, 84, 224),
    "yellow": (240, 214, 40),
    "white": (245, 245, 245),
    "purple": (168, 48, 200),
}
SHAPES = ("circle", "square", "triangle")
MOTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "still": (0, 0),
}
GROUNDS = (16, 40, 64, 88)
RADIUS = (0.125, 0.20)
TRAVEL = (0.32, 0.50)
GAP = 0.02
TRIES = 30
PLACEMENT_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One shape: its words, its centre in the first frame, its half-width and its whole travel.

    `x` grows to the right and `y` downwards; `travel` is the distance between the first frame and
    the last. All four are fractions of the picture's side.
    """

    colour: str
    shape: str
    motion: str
    x: float
    y: float
    radius: float
    travel: float

    def __post_init__(self) -> None:
        """Refuse words that this world does not have."""
        for word, known in (
            (self.colour, SHAPE_COLOURS),
            (self.shape, SHAPES),
            (self.motion, MOTIONS),
        ):
            if word not in known:
                raise InputError(f"{word!r} is none of {', '.join(known)}: choose one of these.")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Things in the order of `SHAPE_COLOURS`, over a grey `ground` (0 to 255) or a film frame."""

    things: tuple[Thing, ...]
    ground: int
    film: UInt8[np.ndarray, "Y X 3"] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse two things of one colour, and put the things in order."""
        if len({thing.colour for thing in self.things}) < len(self.things):
            raise InputError("A scene holds one thing of each colour at most: change a colour.")
        order = list(SHAPE_COLOURS)
        things = sorted(self.things, key=lambda thing: order.index(thing.colour))
        object.__setattr__(self, "things", tuple(things))


def sample_scene(
    rng: np.random.Generator,
    *,
    max_things: int = 3,
    film: UInt8[np.ndarray, "Y X 3"] | None = None,
) -> Scene:
    """A random scene of 1 to `max_things` things, every combination of words equally likely.

    Places are drawn again, with ever smaller shapes, until no two come near each other in any
    frame; if that never happens the arrangement that overlaps least is kept.
    """
    if not 1 <= max_things <= len(SHAPE_COLOURS):
        raise InputError(f"A scene holds from 1 to {len(SHAPE_COLOURS)} things, not {max_things}.")
    count = int(rng.integers(1, max_things + 1))
    colours = rng.choice(list(SHAPE_COLOURS), count, replace=False)
    words = [(str(c), str(rng.choice(SHAPES)), str(rng.choice(list(MOTIONS)))) for c in colours]
    ground = int(rng.choice(GROUNDS))
    best, least = arrange(rng, words, largest=RADIUS[1])
    for turn in range(1, TRIES):
        if least == 0:
            break
        largest = RADIUS[1] - (RADIUS[1] - RADIUS[0]) * turn / TRIES
        things, clash = arrange(rng, words, largest=largest)
        if clash < least:
            best, least = things, clash
    return Scene(things=best, ground=ground, film=film)


def arrange(
    rng: np.random.Generator, words: list[tuple[str, str, str]], *, largest: float
) -> tuple[tuple[Thing, ...], float]:
    """Things with these words, one placed after the other, and how much they overlap."""
    things: tuple[Thing, ...] = ()
    total = 0.0
    for word in words:
        drawn = []
        for _ in range(PLACEMENT_TRIES):
            thing = place_thing(rng, *word, largest=largest)
            clash = sum(overlap(thing, other) for other in things)
            drawn.append((clash, thing))
            if clash == 0:
                break
        clash, thing = min(drawn, key=lambda pair: pair[0])
        things, total = (*things, thing), total + clash
    return things, total


def place_thing(
    rng: np.random.Generator, colour: str, shape: str, motion: str, *, largest: float
) -> Thing:
    """A thing with these words, `largest` in half-width at most, that never leaves the picture."""
    radius = float(rng.uniform(RADIUS[0], largest))
    travel = float(rng.uniform(*TRAVEL)) if motion != "still" else 0.0
    corner = []
    for step in MOTIONS[motion]:
        low = radius + travel * (step < 0)
        high = 1 - radius - travel * (step > 0)
        corner.append(float(rng.uniform(low, high)))
    return Thing(
        colour=colour,
        shape=shape,
        motion=motion,
        x=corner[0],
        y=corner[1],
        radius=radius,
        travel=travel,
    )


def overlap(one: Thing, other: Thing) -> float:
    """How deep the boxes of two things (and a small gap) come into each other, 0 if never."""
    apart = np.abs(path(one, 9) - path(other, 9)).max(axis=1)
    return float(np.maximum(one.radius + other.radius + GAP - apart, 0).max())


def path(thing: Thing, frames: int) -> Float[np.ndarray, "Z 2"]:
    """The centre (x, y) of a thing in each frame, as fractions of the side."""
    share = np.arange(frames) / max(frames - 1, 1)
    step = np.array(MOTIONS[thing.motion], np.float64)
    return np.array([thing.x, thing.y]) + share[:, None] * thing.travel * step


def reverse_scene(scene: Scene) -> Scene:
    """The scene in reverse: its frames are those of the scene, last first."""
    way = {step: word for word, step in MOTIONS.items()}
    things = []
    for thing in scene.things:
        right, down = MOTIONS[thing.motion]
        x, y = thing.x + right * thing.travel, thing.y + down * thing.travel
        things.append(replace(thing, motion=way[-right, -down], x=x, y=y))
    return replace(scene, things=tuple(things))


def freeze_scene(scene: Scene, frame: int, *, frames: int) -> Scene:
    """The scene as it stands still in one of its `frames` frames, counted from 0."""
    things = []
    for thing in scene.things:
        x, y = path(thing, frames)[frame].tolist()
        things.append(replace(thing, motion="still", x=x, y=y, travel=0.0))
    return replace(scene, things=tuple(things))


def shape_outline(
    shape: str,
    dx: Float[np.ndarray, "..."],
    dy: Float[np.ndarray, "..."],
    radius: float,
) -> Float[np.ndarray, "..."]:
    """Signed distance (negative inside) of points (dx, dy) from a shape of half-width `radius`.

    A triangle points up and fills the same box as the others: base and height are 2 * radius.
    """
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - radius
    return np.maximum(dy - radius, (2 * np.abs(dx) - dy - radius) / np.sqrt(5))


def draw(scene: Scene, *, frames: int, size: int = 64) -> UInt8[np.ndarray, "Z Y X 3"]:
    """The scene as `frames` pictures of `size` x `size` pixels with smooth edges."""
    if frames < 1 or size < 1:
        raise InputError(f"Draw at least one frame of at least one pixel, not {frames} of {size}.")
    if scene.film is not None and scene.film.shape != (size, size, 3):
        raise InputError(f"The film frame behind the shapes must be {size} x {size} pixels.")
    ground = np.full((size, size, 3), scene.ground) if scene.film is None else scene.film
    pixels = np.repeat(ground[None].astype(np.float64), frames, axis=0)
    y, x = np.mgrid[:size, :size] + 0.5
    for thing in scene.things:
        centre = path(thing, frames)[:, :, None, None] * size
        distance = shape_outline(
            thing.shape, x - centre[:, 0], y - centre[:, 1], thing.radius * size
        )
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        pixels += cover * (np.array(SHAPE_COLOURS[thing.colour]) - pixels)
    return np.rint(pixels).astype(np.uint8)
