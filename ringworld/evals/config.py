"""What can be asked of `ringworld eval`. Imports no JAX."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ringworld.errors import InputError
from ringworld.settings import DRAWING, GUIDANCE, Extension, MeshShape, Sampling, WeightOptions

# The needles of a prompt have cities that differ, and there are 69 of them.
MOST_NEEDLES = 64


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The lengths and depths at which needles are hidden, and how often each pair is tried."""

    lengths: tuple[int, ...]
    """lengths of the whole prompt with its answer, in tokens"""
    depths: tuple[float, ...]
    """depths of the needle in the haystack, from 0 to 1"""
    rounds: int
    """prompts for each length and depth"""
    seed: int = 0
    """of the cities, the numbers and the haystacks"""
    needles: int = 1
    """needles hidden in each prompt: one at the depth, the others anywhere"""
    asked: int = 1
    """how many of them one question asks for, the one at the depth first"""

    def __post_init__(self) -> None:
        if not 1 <= self.asked <= self.needles <= MOST_NEEDLES:
            raise InputError(
                f"{self.needles} needles are hidden and {self.asked} asked for: hide 1 to "
                f"{MOST_NEEDLES}, and ask for 1 to as many",
                setting="needles",
            )


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Loss of a text by position, at one context under several rules of context extension."""

    model: Positional[Path]
    """a model folder, a weights file, or the name of a fetched model"""
    text: Path
    """a UTF-8 text file; a long one the model has not seen"""
    context: int = 2048
    """tokens of a passage"""
    rules: tuple[Extension, ...] = ("plain",)
    """how RoPE is extended where the context exceeds the model's: plain theta ntk yarn"""
    passages: int = 8
    """the most passages that are read, spread evenly over the text"""
    int8: bool = False
    """keep keys and values as int8"""
    folder: Path = Path("runs/perplexity")
    """where perplexity.json and perplexity.png are written"""
    weights: Annotated[WeightOptions, arg(name="")] = WeightOptions()
    mesh: MeshShape = field(default_factory=MeshShape)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Pictures and clips of shapes: drawn from words, asked about, and through the codec alone."""

    model: Positional[Path] = Path("nano")
    """a world model's folder, the name of one that ships, or the folder of a codec alone"""
    scenes: int = 100
    """scenes of one, of two and of three things each"""
    seed: int = 990_100
    """of the scenes and of the drawing"""
    guidance: float = GUIDANCE
    """how far the caption outweighs what the model draws without one; 1 is no guidance"""
    sampling: Annotated[Sampling, arg(name="")] = DRAWING
    folder: Path = Path("runs/shapes")
    """where shapes.json, pictures.png and shapes.png are written"""
    weights: Annotated[WeightOptions, arg(name="")] = WeightOptions()
    mesh: MeshShape = field(default_factory=MeshShape)

    def __post_init__(self) -> None:
        if self.scenes < 1:
            raise InputError(
                f"{self.scenes} scenes measure nothing: use 1 or more", setting="scenes"
            )


@dataclass(frozen=True, kw_only=True)
class Playing:
    """Episodes of the small world, for a model to go on with: after true frames, and its own."""

    model: Positional[Path] = Path("nano-play")
    """a model of the world: its folder, or the name of the one that ships"""
    episodes: int = 100
    """levels that no training saw, each with actions of its own"""
    steps: int = 30
    """actions of an episode"""
    seed: int = 990_200
    """of the levels and the actions"""
    folder: Path = Path("runs/play")
    """where play.json is written"""
    weights: Annotated[WeightOptions, arg(name="")] = WeightOptions()

    def __post_init__(self) -> None:
        if min(self.episodes, self.steps) < 1:
            raise InputError(
                f"{self.episodes} episodes of {self.steps} steps measure nothing: use 1 or more"
            )
