"""What can be asked of `ringworld chat` and `ringworld generate`. Imports no JAX."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ringworld.errors import InputError
from ringworld.settings import (
    DRAWING,
    GUIDANCE,
    Extension,
    MeshShape,
    Sampling,
    WeightOptions,
    check_seed,
)


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """Talk with a model, about a document, pictures or a film."""

    model: Positional[Path]
    """a model folder, a weights file, or the name of a fetched model"""
    question: Positional[str | None] = None
    """one question; without it you are asked for as many as you like"""
    doc: Path | None = None
    """a text file to read before the first question"""
    image: Path | None = None
    """a picture for the first question"""
    video: Path | None = None
    """a film for the first question"""
    fps: float = 1.0
    """frames taken from a film, per second"""
    context: int | None = None
    """tokens of the conversation; more than the model was trained for extends its RoPE"""
    rope: Extension = "yarn"
    """how RoPE is extended to a longer context"""
    template: str | None = None
    """lwm, needle or a file of Jinja; without it the model's own"""
    max_new_tokens: int = 512
    """the longest answer in tokens"""
    temperature: float | None = None
    """divides the logits before sampling, 0 is greedy decoding; without it the model's own, or 0"""
    top_k: int | None = None
    """sample from this many of the likeliest tokens, 0 is all; without it the model's own, or 0"""
    top_p: float | None = None
    """sample from the fewest tokens that add up to this; without it the model's own, or 1"""
    seed: int = 0
    """of the random draws"""
    int8: bool = False
    """keep keys and values as int8"""
    weights: Annotated[WeightOptions, arg(name="")] = WeightOptions()
    mesh: MeshShape = field(default_factory=MeshShape)

    def __post_init__(self) -> None:
        if self.question is not None:
            check_utf8(self.question, "question")
            if not self.question.strip():
                raise InputError("the question is empty: ask something, or leave it out to talk")
        check_seed(self.seed)
        if self.max_new_tokens < 1:
            raise InputError(
                f"an answer of {self.max_new_tokens} tokens says nothing: use 1 or more",
                setting="max_new_tokens",
            )

    def choose_sampling(self, own: Sampling | None) -> Sampling:
        """The model's own sampling with what was asked for in its place; greedy without either."""
        own = own or Sampling()
        return Sampling(
            temperature=own.temperature if self.temperature is None else self.temperature,
            top_k=own.top_k if self.top_k is None else self.top_k,
            top_p=own.top_p if self.top_p is None else self.top_p,
        )


@dataclass(frozen=True, kw_only=True)
class DrawingRequest:
    """What is drawn from words and how: all that pictures and clips have in common."""

    model: Positional[Path]
    """the folder of a world model, or the name of one that ships"""
    caption: Positional[str]
    """what is shown, in words"""
    output: Annotated[Path, arg(aliases=["-o"])]
    """the file to write"""
    overwrite: bool = False
    """replace the file if there is one"""
    scale: int = 1
    """the side of a drawn pixel in the file: 8 makes 64 pixels 512 wide"""
    guidance: float = GUIDANCE
    """how far the caption outweighs what the model draws without one; 1 is no guidance"""
    sampling: Annotated[Sampling, arg(name="")] = DRAWING
    seed: int = 0
    """of the random draws"""
    weights: Annotated[WeightOptions, arg(name="")] = WeightOptions()
    mesh: MeshShape = field(default_factory=MeshShape)

    def __post_init__(self) -> None:
        check_utf8(self.caption, "caption")
        check_seed(self.seed)
        check_positive(self.scale, "scale")


@dataclass(frozen=True, kw_only=True)
class ImageRequest(DrawingRequest):
    """A picture to draw from a caption, with classifier-free guidance; a .png."""


@dataclass(frozen=True, kw_only=True)
class VideoRequest(DrawingRequest):
    """A clip to draw from a caption, with classifier-free guidance; a .gif, .mp4 or .webm."""

    frames: int = 6
    """frames to draw"""
    fps: float = 4.0
    """frames per second of the file"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.frames, "frames")
        if not 0 < self.fps < math.inf:
            raise InputError(
                f"a film of {self.fps} frames per second cannot be: use more than 0", setting="fps"
            )


def check_positive(number: int, name: str) -> None:
    """Raise InputError when a number of frames, or the scale, is below 1."""
    if number < 1:
        raise InputError(
            f"{name} is {number} and nothing could be drawn: use 1 or more", setting=name
        )


def check_utf8(given: str, name: str) -> None:
    """Raise InputError when the words of a command line are not UTF-8."""
    try:
        given.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"the {name} is not UTF-8 text: check the terminal's encoding") from None
