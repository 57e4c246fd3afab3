"""The judge of still pictures: colours, shapes and places, found in the pixels.

Colours and shapes are read as those of clips (`shape_judge`). A place is that of the middle of the
thing's box.
"""

from dataclasses import dataclass
from math import comb

import numpy as np
from jaxtyping import UInt8

from ringworld.tasks.shape_judge import detect_things, find_patches
from ringworld.tasks.shape_language import PLACE_COLUMNS, PLACE_ROWS, name_place
from ringworld.tasks.shapes import SHAPE_COLOURS, SHAPES, Scene

# How far outside of a place a thing's middle may be, as a fraction of the picture's side.
PLACE_MARGIN = 0.05


@dataclass(frozen=True, kw_only=True)
class PlacedScore:
    """What is right about one asked thing; shape and place are wrong where the colour is."""

    colour: bool
    shape: bool
    place: bool


@dataclass(frozen=True, kw_only=True)
class StillScore:
    """The score of each asked thing in the scene's order, and the number of other colours found."""

    things: tuple[PlacedScore, ...]
    extra: int

    @property
    def exact(self) -> bool:
        """Whether every asked thing is right in all three and no other colour is found."""
        right = all(thing.colour and thing.shape and thing.place for thing in self.things)
        return right and self.extra == 0


def score_still(picture: UInt8[np.ndarray, "Y X 3"], scene: Scene) -> StillScore:
    """Compare a picture with the words of a still; only the names of its places are used.

    A place is right when one within `PLACE_MARGIN` of the thing's middle has its name.
    """
    found = detect_things(picture[None])
    scores = []
    for thing in scene.things:
        there = thing.colour in found
        asked = name_place(thing.x, thing.y)
        scores.append(
            PlacedScore(
                colour=there,
                shape=there and found[thing.colour][0] == thing.shape,
                place=there and asked in near_places(picture, thing.colour),
            )
        )
    extra = len(found.keys() - {thing.colour for thing in scene.things})
    return StillScore(things=tuple(scores), extra=extra)


def near_places(picture: UInt8[np.ndarray, "Y X 3"], colour: str) -> set[str]:
    """The names of the places near the middle of the thing of a colour, which must be there."""
    rows, columns = np.nonzero(find_patches(picture[None], colour)[0])
    x, y = (
        (values.min() + values.max() + 1) / 2 / side
        for values, side in ((columns, picture.shape[1]), (rows, picture.shape[0]))
    )
    steps = (-PLACE_MARGIN, 0.0, PLACE_MARGIN)
    return {name_place(x + right, y + down) for right in steps for down in steps}


def chance_of_still(scene: Scene, *, max_things: int) -> float:
    """The chance that a random still of 1 to `max_things` things has the words of a scene.

    Places count as equally likely, which they nearly are.
    """
    count = len(scene.things)
    words = (
        comb(len(SHAPE_COLOURS), count)
        * (len(SHAPES) * len(PLACE_ROWS) * len(PLACE_COLUMNS)) ** count
    )
    return 1 / (max_things * words)
