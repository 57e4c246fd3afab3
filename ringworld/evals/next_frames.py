"""The second half of a clip of shapes, drawn by a model from the first half, and its figures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from ringworld.chat.ask import continue_clips
from ringworld.evals.config import Shapes
from ringworld.evals.proportion import Proportion
from ringworld.tasks.clips import FRAMES_A_CLIP
from ringworld.tasks.shapes import Scene, draw, freeze_scene
from ringworld.tasks.still_judge import score_still
from ringworld.weights.model import Model

GIVEN = FRAMES_A_CLIP // 2


@dataclass(frozen=True, kw_only=True)
class NextFrames:
    """How many clips of `things` things went on right, and how far their pixels were off.

    The errors are mean squares of pixels from 0 to 1: of what was drawn, and of the last given
    frame in its place. The chance of `whole` is the share that is right with the latter.
    """

    things: int
    whole: Proportion
    error: float
    repeated_error: float

    def __str__(self) -> str:
        """The counts in a line."""
        return (
            f"{self.things}: whole {self.whole}; error {self.error:.4f}, "
            f"with the last frame repeated {self.repeated_error:.4f}"
        )


def measure_next_frames(model: Model, scenes: Sequence[Scene], wanted: Shapes) -> NextFrames:
    """What a model draws after the first `GIVEN` frames of scenes that have equally many things."""
    size = model.codec.config.size
    true = [draw(scene, frames=FRAMES_A_CLIP, size=size) for scene in scenes]
    codes = model.codec.encode(np.concatenate([clip[:GIVEN] for clip in true]))
    given = list(codes.reshape(len(scenes), GIVEN, -1))
    drawn = continue_clips(
        model,
        given,
        frames_more=FRAMES_A_CLIP - GIVEN,
        sampling=wanted.sampling,
        seed=wanted.seed,
    )
    return judge_next_frames(drawn, true, scenes)


def judge_next_frames(
    drawn: Sequence[UInt8[np.ndarray, "more Y X 3"]],
    true: Sequence[UInt8[np.ndarray, "Z Y X 3"]],
    scenes: Sequence[Scene],
) -> NextFrames:
    """The figures of the last frames of clips, each beside its true clip and scene."""
    last = [np.repeat(clip[GIVEN - 1 : GIVEN], len(clip) - GIVEN, axis=0) for clip in true]
    right, repeated = (
        sum(follows_scene(frames, scene) for frames, scene in zip(some, scenes, strict=True))
        for some in (drawn, last)
    )
    after = np.stack([clip[GIVEN:] for clip in true]) / 255
    errors = (float(np.mean((np.stack(some) / 255 - after) ** 2)) for some in (drawn, last))
    error, repeated_error = errors
    return NextFrames(
        things=len(scenes[0].things),
        whole=Proportion(right, len(scenes), repeated / len(scenes)),
        error=error,
        repeated_error=repeated_error,
    )


def follows_scene(frames: UInt8[np.ndarray, "more Y X 3"], scene: Scene) -> bool:
    """Whether each of a scene's last frames has its colours, shapes and places, and no more."""
    numbers = range(FRAMES_A_CLIP - len(frames), FRAMES_A_CLIP)
    return all(
        score_still(frame, freeze_scene(scene, number, frames=FRAMES_A_CLIP)).exact
        for frame, number in zip(frames, numbers, strict=True)
    )
