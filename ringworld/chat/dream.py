"""A level of the small world as a model dreams it: it sees its own frames and nothing else."""

from copy import copy

import numpy as np
from jaxtyping import Int, UInt8

from ringworld.errors import InputError
from ringworld.inference.next_frame import FrameWriter
from ringworld.mesh import on_one_device
from ringworld.tasks.clips import unconditional_prompt
from ringworld.tasks.play_form import action_ids
from ringworld.tasks.play_world import (
    CELLS,
    TILE_SIDE,
    PlayLevel,
    draw_level,
    draw_start,
    read_level,
)
from ringworld.weights.model import Model

# Levels that a codec has to keep whole, and their seed.
TRIED, TRIED_SEED = 8, 5


class Dream:
    """A level that a model with actions goes on from, frame by frame.

    `reset` shows it a level; from then on `step` draws what each action makes of its own last
    frame. `frame` is what it shows, `level` what the rule of the tiles reads of it. Raises
    InputError when the model is not one of the small world. It computes on one device.
    """

    @on_one_device
    def __init__(self, model: Model) -> None:
        check_world(model)
        self._model, self._ids = model, action_ids(model.tokenizer)
        self._weights = model.sharded_weights()
        self._open()

    @on_one_device
    def another(self) -> "Dream":
        """A dream of the same model that no level was shown; the weights are held once."""
        other = copy(self)
        other._open()
        return other

    @on_one_device
    def reset(self, level: PlayLevel) -> UInt8[np.ndarray, "64 64 3"]:
        """Begin with a level; returns how the codec shows it."""
        codes = self._model.codec.encode(draw_level(level)[None])[0]
        self._writer.begin(codes)
        return self._show(codes)

    @on_one_device
    def step(self, action: str) -> UInt8[np.ndarray, "64 64 3"]:
        """The frame that an action leads to. Raises InputError when there is no such action."""
        if action not in self._ids:
            raise InputError(f"there is no action {action!r}: use one of {', '.join(self._ids)}")
        return self._show(self._writer.write(self._ids[action]))

    @property
    def actions(self) -> tuple[str, ...]:
        """What can be done in it."""
        return tuple(self._ids)

    @property
    def passes(self) -> int:
        """The passes of the model that all frames so far took."""
        return self._writer.passes

    @property
    def level(self) -> PlayLevel:
        """What the frame shows, cell by cell."""
        return read_level(self.frame)

    def _open(self) -> None:
        model = self._model
        opening = unconditional_prompt(model.tokenizer)
        self._writer = FrameWriter(self._weights, model.config, opening)
        self.frame = np.zeros((CELLS * TILE_SIDE, CELLS * TILE_SIDE, 3), np.uint8)

    def _show(self, codes: Int[np.ndarray, "Q"]) -> UInt8[np.ndarray, "64 64 3"]:
        self.frame = self._model.codec.decode(codes[None])[0]
        return self.frame


def find_dream(model: Model) -> Dream | None:
    """A dream of a model that has actions, None for another model."""
    try:
        return Dream(model)
    except InputError:
        return None


def check_world(model: Model) -> None:
    """Raise InputError when a model is none of the small world: its codec loses the tiles."""
    codec = model.codec_or_none
    if codec is not None and (codec.config.size, codec.config.side) == (
        CELLS * TILE_SIDE,
        CELLS,
    ):
        rng = np.random.default_rng(TRIED_SEED)
        levels = np.stack([draw_start(rng, held_out=True) for _ in range(TRIED)])
        frames = codec.decode(codec.encode(np.stack([draw_level(level) for level in levels])))
        if np.array_equal(np.stack([read_level(frame) for frame in frames]), levels):
            return
    raise InputError("this model has no actions: play one of the recipe nano-play, or nano-play")
