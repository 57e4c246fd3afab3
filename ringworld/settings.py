"""Settings that several commands share. Plain dataclasses: importing them does not import JAX."""

from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Literal

from ringworld.errors import InputError

WeightAxis = Literal["fsdp", "seq"]
# How RoPE is changed for a context beyond the trained one: see `models.context_extension`.
Extension = Literal["theta", "ntk", "yarn", "plain"]
SEEDS = 1 << 32  # a seed is a whole number from 0 to below this
# How weights are held in memory or stored: int8 is for inference.
WeightType = Literal["float32", "bfloat16", "int8"]


def check_seed(seed: int) -> None:
    """Raise InputError for a seed that cannot be."""
    if not 0 <= seed < SEEDS:
        raise InputError(f"the seed is {seed}: use 0 to {SEEDS - 1:,}", setting="seed")


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """How the weights of a model are held in memory."""

    dtype: WeightType = "float32"
    """float32, bfloat16 or int8, which takes a quarter of float32 and decodes faster"""
    adapter: Path | None = None
    """a folder with a LoRA adapter to use with the model"""


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """The number of devices along each mesh axis."""

    data: int = 1
    """devices that divide the batch"""
    fsdp: int = 1
    """devices that divide the batch and the weights"""
    seq: int = 1
    """devices that divide the sequence: the ring"""
    tensor: int = 1
    """devices that divide heads, MLP features and the vocabulary"""

    def __post_init__(self) -> None:
        for field in fields(self):
            size = getattr(self, field.name)
            if not isinstance(size, Integral) or size < 1:
                raise InputError(
                    f"mesh axis {field.name} is {size!r} and must be at least 1: set it to a whole "
                    "number from 1 up"
                )

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """The four sizes in the order of `mesh.AXES`."""
        return (self.data, self.fsdp, self.seq, self.tensor)

    @property
    def devices(self) -> int:
        """The number of devices that the mesh needs."""
        return self.data * self.fsdp * self.seq * self.tensor


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Which processes compute together; by default what the launcher or the environment says.

    The environment's names are JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """

    coordinator: str | None = None
    """the address of process 0 as HOST:PORT, where several processes compute together"""
    processes: int | None = None
    """how many processes compute together"""
    process: int | None = None
    """the number of this process, from 0 up"""
    join_timeout: int = 300
    """seconds to wait for the other processes at the start"""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen from the logits.

    Raises InputError for a negative temperature or top_k, a top_p outside (0, 1], a min_p outside
    [0, 1], or a repetition_penalty that is not positive.
    """

    temperature: float = 0.0
    """divides the logits before sampling; at 0 the likeliest token is taken (greedy decoding)"""
    top_k: int = 0
    """sample from this many of the likeliest tokens; 0 for all of them"""
    top_p: float = 1.0
    """sample from the fewest tokens whose probabilities add up to this; 1 for all of them"""
    min_p: float = 0.0
    """sample from the tokens at least this share as likely as the likeliest; 0 for all of them"""
    repetition_penalty: float = 1.0
    """makes ids of the prompt and the answer less likely, above 1; 1 leaves them"""
    presence_penalty: float = 0.0
    """subtracted from the logits of ids that the answer holds; 0 leaves them"""
    frequency_penalty: float = 0.0
    """subtracted from the logits of ids as often as the answer holds them; 0 leaves them"""

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise InputError(
                f"temperature {self.temperature}, top_k {self.top_k} and top_p {self.top_p} cannot "
                "be sampled with: use temperature and top_k from 0 up and top_p in (0, 1]"
            )
        if not (0 <= self.min_p <= 1 and self.repetition_penalty > 0):
            raise InputError(
                f"min_p {self.min_p} and repetition_penalty {self.repetition_penalty} cannot be "
                "sampled with: use min_p in [0, 1] and a repetition_penalty above 0"
            )


# The defaults of all that draws frames. docs/log.md compares others: a larger min-p makes pictures
# better and takes things out of clips. At a low temperature nothing but the ground is drawn.
DRAWING = Sampling(temperature=1.0, min_p=0.05)
GUIDANCE = 2.0
