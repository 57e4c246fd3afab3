"""Sentences about moving shapes: captions, questions with answers, and the facts of a sentence.

Words come from the scene, never from pixels, so captions and answers are exact. A fact is a triple
(colour, shape, motion).
"""

import re

from ringworld.tasks.shapes import MOTIONS, SHAPE_COLOURS, SHAPES, Scene, Thing

Fact = tuple[str, str, str]
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
# Where the middle of a picture begins and ends, and the words of its rows and columns.
PLACE_EDGES = (0.4, 0.6)
PLACE_ROWS = ("top", "", "bottom")
PLACE_COLUMNS = ("left", "", "right")
MIDDLE = "in the middle"
SENTENCE = re.compile(
    rf"\b({'|'.join(SHAPE_COLOURS)})\s+({'|'.join(SHAPES)})\b"
    r"(?:\s+(?:moves|is moving|moving)\s+(?:to the\s+)?(left|right|up|down)\b"
    r"|\s+(?:stays|is|staying)\s+(still)\b)?"
)


def describe(thing: Thing, *, motion: bool = True) -> str:
    """One clause about one thing, such as "a red circle moves left", or only "a red circle"."""
    verb = " stays still" if thing.motion == "still" else f" moves {thing.motion}"
    return f"a {thing.colour} {thing.shape}{verb if motion else ''}"


def caption(scene: Scene, *, motion: bool = True) -> str:
    """The scene in words, no full stop, in the order of `SHAPE_COLOURS`; a still has no motion."""
    return _enumerate([describe(thing, motion=motion) for thing in scene.things])


def caption_still(scene: Scene) -> str:
    """The scene as a still in words, such as "a red circle at the top left", no full stop."""
    return _enumerate(
        [
            f"{describe(thing, motion=False)} {name_place(thing.x, thing.y)}"
            for thing in scene.things
        ]
    )


def name_place(x: float, y: float) -> str:
    """Where in the picture a centre is, such as "at the left"; fractions of the side."""
    row, column = (_part(value, words) for value, words in ((y, PLACE_ROWS), (x, PLACE_COLUMNS)))
    words = " ".join(word for word in (row, column) if word)
    return f"at the {words}" if words else MIDDLE


def _part(value: float, words: tuple[str, str, str]) -> str:
    return words[sum(value >= edge for edge in PLACE_EDGES)]


def _enumerate(clauses: list[str]) -> str:
    *first, last = clauses
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


def possible_answers(question: str, *, max_things: int = 3) -> tuple[str, ...]:
    """The answers that a question of `questions` can have in scenes of 1 to `max_things` things."""
    if question.startswith("how many shapes"):
        return NUMBERS[1 : max_things + 1]
    if question.startswith("how many"):
        return NUMBERS[: max_things + 1]
    if question.startswith("is there"):
        return ("yes", "no")
    if question.startswith("what shape"):
        return SHAPES
    return tuple(SHAPE_COLOURS if question.startswith("what colour") else MOTIONS)


def facts(scene: Scene) -> frozenset[Fact]:
    """The (colour, shape, motion) of every thing in the scene."""
    return frozenset((thing.colour, thing.shape, thing.motion) for thing in scene.things)


def parse_caption(text: str) -> frozenset[Fact]:
    """The facts that a sentence states, a motion it does not state being ""."""
    found = SENTENCE.findall(text.lower())
    return frozenset((colour, shape, moves or still) for colour, shape, moves, still in found)
