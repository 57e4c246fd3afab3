"""What can be asked of the engine, and what comes back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool

from ringworld.data.example import Example
from ringworld.errors import InputError
from ringworld.inference.programs import MOST_ALTERNATIVES
from ringworld.settings import Sampling, check_seed

# The ids that one request may make likelier or less likely.
MOST_BIASED = 512
Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt, and what to write after it. Raises InputError for what cannot be."""

    prompt: Example
    """text ids and image codes"""
    max_new_tokens: int
    """the longest answer in tokens; 0 only reads the prompt"""
    codes: bool = False
    """draw frames of image codes, with their markers, instead of text"""
    guided_from: Example | None = None
    """the prompt that the answer is guided away from: a second row"""
    guidance: float = 1.0
    """how far the prompt outweighs `guided_from`; 1 is no guidance"""
    sampling: Sampling = field(default_factory=Sampling)
    """how tokens are chosen"""
    seed: int = 0
    """of the random draws; the same seed gives the same answer, whatever else runs"""
    samples: int = 1
    """answers to write, each with draws of its own"""
    stops: tuple[int, ...] = ()
    """text ids that end an answer"""
    stop_strings: tuple[str, ...] = ()
    """words that end an answer; they need `spell`"""
    spell: Callable[[Sequence[int]], str] | None = None
    """the text of ids"""
    allow: Callable[[Sequence[int]], Bool[np.ndarray, "V"]] | None = None
    """the text ids that may follow an answer so far: a grammar"""
    bias: tuple[tuple[int, float], ...] = ()
    """text ids with what is added to their logits, at most MOST_BIASED"""
    logprobs: int | None = None
    """how many alternatives come with each log-probability of an answer; without it none do"""
    prompt_logprobs: bool = False
    """also give the log-probabilities of the prompt, which no kept page can shorten then"""
    tenant: str = ""
    """whose prompt it is: others never share its pages"""
    content: bytes = b""
    """a hash of what the codes were made from, and how: only prompts that have it share pages"""

    def __post_init__(self) -> None:
        if not len(self.prompt) or self.max_new_tokens < 0 or self.samples < 1:
            raise InputError(
                f"a prompt of {len(self.prompt)} tokens with {self.samples} answers of "
                f"{self.max_new_tokens} tokens cannot be: use 1 or more, and 0 or more for the "
                "answer"
            )
        check_seed(self.seed)
        if self.stop_strings and self.spell is None:
            raise InputError("stop strings need the text of ids: give spell")
        if not 0 <= (self.logprobs or 0) <= MOST_ALTERNATIVES:
            raise InputError(
                f"{self.logprobs} alternatives were asked for: use 0 to {MOST_ALTERNATIVES}"
            )
        if len(self.bias) > MOST_BIASED:
            raise InputError(f"{len(self.bias)} ids have a bias: give at most {MOST_BIASED}")
        if self.codes and (self.allow or self.logprobs is not None):
            raise InputError("frames have no grammar and no log-probabilities: leave them out")


@dataclass(frozen=True)
class TokenScore:
    """The log-probability of a token in nats, and the likeliest ids there with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass
class Completion:
    """One answer as far as it is written; `finish` says why it ended, None while it goes on.

    `ids` hold no stop. `text` is what comes before a stop string, where one ended it.
    """

    ids: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    finish: Finish | None = None
    text: str | None = None


@dataclass
class Output:
    """What has come back for a request so far.

    `computed` are the tokens that were read for it and `reused` those that kept pages spared, both
    over all of its rows. `prompt_scores` are those of every token of the prompt but the first.
    """

    request: Request
    samples: list[Completion]
    computed: int = 0
    reused: int = 0
    prompt_scores: list[TokenScore] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether every sample has ended."""
        return all(sample.finish is not None for sample in self.samples)

    @property
    def ids(self) -> list[int]:
        """The ids of the first sample."""
        return self.samples[0].ids
