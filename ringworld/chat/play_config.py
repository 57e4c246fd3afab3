"""What can be asked of `ringworld play`. Imports no JAX."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ringworld.errors import InputError
from ringworld.settings import WeightOptions


@dataclass(frozen=True, kw_only=True)
class PlayRequest:
    """A level of the small world to play in a model's dream of it."""

    model: Positional[Path] = Path("nano-play")
    """a model of the world: its folder, or the name of the one that ships"""
    level: int = 0
    """the seed of the first level; the key n goes on to the next"""
    truth: bool = False
    """show the simulator beside the dream, and count the frames that differ"""
    actions: str | None = None
    """up, down, left, right and stay with spaces between, in place of a person at a terminal"""
    record: Path | None = None
    """a .gif or .mp4 to write when the game ends"""
    overwrite: bool = False
    """replace the file if there is one"""
    fps: float = 5.0
    """frames a second of the file"""
    scale: int = 4
    """the side of a drawn pixel in the file"""
    weights: Annotated[WeightOptions, arg(name="")] = field(default_factory=WeightOptions)

    def __post_init__(self) -> None:
        if self.scale < 1 or not 0 < self.fps < float("inf"):
            raise InputError(
                f"scale is {self.scale} and fps {self.fps:g}: use 1 or more, and more than 0"
            )
