"""What a model makes of the small world with actions, on levels that no training saw.

    one step      the frame after an action, when all frames before it are true
    rollout       many frames one after another, of which the model sees its own only
    action        whether the action can be read off a frame and the one before it
    nothing       the frames after actions that move nothing: into walls, and boxes that are stuck

A frame is right when every cell shows what the simulator says; a rollout, when all its frames are.
A guess is to repeat the last true frame.

    FOLDER/play.json   every figure
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8

from ringworld.chat.dream import check_world
from ringworld.evals.config import Playing
from ringworld.evals.proportion import Proportion
from ringworld.files import check_writable, whole
from ringworld.inference.next_frame import FrameWriter
from ringworld.media.codec import Codec
from ringworld.mesh import on_one_device
from ringworld.progress import Announce
from ringworld.tasks.clips import unconditional_prompt
from ringworld.tasks.play_form import action_ids
from ringworld.tasks.play_policies import Episode, draw_episodes
from ringworld.tasks.play_world import draw_level, possible_actions, read_level
from ringworld.weights.model import Model, load_model

Levels = UInt8[np.ndarray, "N Z 8 8"]
Following = UInt8[np.ndarray, "N steps 8 8"]


@dataclass(frozen=True, kw_only=True)
class PlayFigures:
    """How many frames, rollouts and actions were right, and how many passes a frame took."""

    codec: Proportion
    one_step: Proportion
    one_step_nothing_moves: Proportion
    action: Proportion
    rollout: Proportion
    rollout_frames: Proportion
    passes: float

    def lines(self, steps: int) -> list[str]:
        """The counts, a line each."""
        return [
            f"true frames through the codec: {self.codec}",
            f"one step, frames right: {self.one_step}",
            f"one step where nothing moves, frames right: {self.one_step_nothing_moves}",
            f"actions read back: {self.action}",
            f"rollouts of {steps} frames right to the end: {self.rollout}",
            f"frames of rollouts right: {self.rollout_frames}",
            f"passes a frame: {self.passes:.2f}",
        ]


@on_one_device
def measure_play(wanted: Playing, announce: Announce) -> None:
    """Measure a model of the world; `wanted.folder` gets the figures.

    Raises InputError when the model or the folder cannot be used.
    """
    check_writable(wanted.folder / "play.json")
    model = load_model(wanted.model, wanted.weights.dtype, wanted.weights.adapter)
    check_world(model)
    played = draw_episodes(wanted.episodes, wanted.steps, wanted.seed, held_out=True)
    figures = measure_episodes(model, played)
    for line in figures.lines(wanted.steps):
        announce(line)
    asked = {"episodes": wanted.episodes, "steps": wanted.steps, "seed": wanted.seed}
    with whole(wanted.folder / "play.json") as draft:
        draft.write_text(json.dumps(asdict(figures) | {"asked": asked}, indent=1) + "\n")
    announce(f"wrote {wanted.folder / 'play.json'}")


def measure_episodes(model: Model, played: Sequence[Episode]) -> PlayFigures:
    """The figures of some episodes of as many steps each, on the mesh of one device that is set."""
    true = np.stack([each.levels for each in played])
    frames = np.stack([draw_level(level) for level in true.reshape(-1, *true.shape[2:])])
    codes = model.codec.encode(frames)
    kept = read_codes(model.codec, codes, len(played)) == true
    codes = codes.reshape(*true.shape[:2], -1)
    ids, opening = action_ids(model.tokenizer), unconditional_prompt(model.tokenizer)
    writer = FrameWriter(model.sharded_weights(), model.config, opening)
    after_true, own = np.zeros_like(codes[:, 1:]), np.zeros_like(codes[:, 1:])
    for i, each in enumerate(played):
        acted = [ids[action] for action in each.actions]
        after_true[i] = _write_after_true(writer, acted, codes[i])
        own[i] = _write_after_own(writer, acted, codes[i, 0])
    one, alone = (read_codes(model.codec, found, len(played)) for found in (after_true, own))
    figures = _count(true, one, alone, played)
    return PlayFigures(
        codec=_proportion(kept.all((2, 3)), 0.0),
        passes=writer.passes / (2 * own.shape[0] * own.shape[1]),
        **figures,
    )


def _write_after_true(
    writer: FrameWriter, acted: Sequence[int], codes: Int[np.ndarray, "Z Q"]
) -> Int[np.ndarray, "Z-1 Q"]:
    """The frame after each action, when the frames before it are the true ones."""
    writer.begin(codes[0])
    written = []
    for action, true in zip(acted, codes[1:], strict=True):
        written.append(writer.write(action))
        if not np.array_equal(written[-1], true):
            writer.correct(true)
    return np.stack(written)


def _write_after_own(
    writer: FrameWriter, acted: Sequence[int], first: Int[np.ndarray, "Q"]
) -> Int[np.ndarray, "steps Q"]:
    """The frames after a first one and actions, of which the model sees its own only."""
    writer.begin(first)
    return np.stack([writer.write(action) for action in acted])


def read_codes(codec: Codec, codes: Int[np.ndarray, "... Q"], episodes: int) -> Levels:
    """What the frames of the codes show, cell by cell."""
    drawn = codec.decode(codes.reshape(-1, codes.shape[-1]))
    levels = np.stack([read_level(frame) for frame in drawn])
    return levels.reshape(episodes, -1, *levels.shape[1:])


def _count(
    true: Levels, one: Following, alone: Following, played: Sequence[Episode]
) -> dict[str, Proportion]:
    """The figures of what was read of frames after true ones, and after the model's own."""
    before, after = true[:, :-1], true[:, 1:]
    still = (before == after).all((2, 3))
    acts = np.array([[action != "stay" for action in each.actions] for each in played])
    right, own = (one == after).all((2, 3)), (alone == after).all((2, 3))
    read = [
        each.actions[z] in possible_actions(before[n, z], one[n, z])
        for n, each in enumerate(played)
        for z in range(len(each.actions))
    ]
    guess = float(still.mean())
    return {
        "one_step": _proportion(right, guess),
        "one_step_nothing_moves": _proportion(right[still & acts], 1.0),
        "action": _proportion(np.array(read), guess),
        "rollout": _proportion(own.all(1), float(still.all(1).mean())),
        "rollout_frames": _proportion(own, float((true[:, :1] == after).all((2, 3)).mean())),
    }


def _proportion(right: Bool[np.ndarray, "..."], chance: float) -> Proportion:
    return Proportion(int(right.sum()), right.size, chance)
