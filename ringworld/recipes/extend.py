"""The recipe that takes any model to longer contexts, made of a few options.

ringworld train extend --start M --data.folder SHARDS --contexts 16k 64k --tokens 100m

Each context is a stage. Batches are chosen so that every stage has the same number of tokens a
step, RoPE bases by the law, and meshes so that they fit the devices. What comes of it is a recipe
like any other: its stages are recorded, go on when they were stopped, and are changed by name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ringworld.errors import InputError
from ringworld.progress import name_length
from ringworld.recipes.recipe import Recipe
from ringworld.recipes.shards import TokenShards
from ringworld.settings import Extension, MeshShape
from ringworld.train.loop import Loop
from ringworld.train.model_stage import ModelStage
from ringworld.train.optimizer import AdamW
from ringworld.weights.open import open_model
from ringworld.weights.shipped import NANO


@dataclass(frozen=True, kw_only=True)
class Extend:
    """A model taken to longer contexts, a stage for each.

    What is chosen for the stages can be changed, counted from 0 or for all: `--stages.0.batch 4`,
    `--stages.all.optimizer muon`.

    Raises InputError when the contexts do not grow, or steps and tokens contradict each other.
    """

    start: Path = NANO
    """the model: a folder, a file, or a name that fetch knows"""
    data: TokenShards = field(default_factory=TokenShards)
    """what it is trained on"""
    contexts: tuple[int, ...] = (4096, 16384)
    """the tokens of a row in each stage, growing"""
    steps: tuple[int, ...] = (100,)
    """updates in each stage, or one number for all"""
    tokens: tuple[int, ...] = ()
    """tokens of each stage, or one number for all, in place of steps"""
    tokens_per_step: int | None = None
    """tokens a step; without it, one row of the longest stage"""
    peak_lr: float = 4e-5
    """the learning rate after a warm-up of a tenth of the steps; it stays there"""
    shares: Mapping[str, float] = field(default_factory=dict)
    """the share of the tokens that each source has; without any, all examples are taken"""
    rope: Extension = "theta"
    """the rule by which RoPE is extended: theta ntk yarn plain"""
    devices: int | None = None
    """devices to divide each stage over; without it, as many as there are"""

    def __post_init__(self) -> None:
        if not self.contexts:
            raise InputError("there is no context: give at least one", setting="contexts")
        for name in ("contexts", "steps", "tokens", "devices", "tokens_per_step"):
            given = getattr(self, name)
            numbers = given if isinstance(given, tuple) else () if given is None else (given,)
            if (least := min(numbers, default=1)) < 1:
                raise InputError(f"{name} is {least}: make it 1 or more", setting=name)
        if list(self.contexts) != sorted(set(self.contexts)):
            raise InputError(
                f"the contexts {' '.join(map(str, self.contexts))} do not grow: give each once, "
                "the shortest first",
                setting="contexts",
            )
        for name in ("steps", "tokens"):
            if len(given := getattr(self, name)) not in (0, 1, len(self.contexts)):
                raise InputError(
                    f"there are {len(given)} numbers of {name} for {len(self.contexts)} contexts: "
                    "give one for all, or one for each",
                    setting=name,
                )
        if self.step_tokens < self.contexts[-1]:
            raise InputError(
                f"{self.step_tokens} tokens a step are less than a row of {self.contexts[-1]}: "
                "make tokens_per_step at least as long as the longest context",
                setting="tokens_per_step",
            )

    @property
    def step_tokens(self) -> int:
        """The tokens of a step, but for what whole rows leave over."""
        return self.contexts[-1] if self.tokens_per_step is None else self.tokens_per_step

    def make(self, devices: int) -> Recipe:
        """The recipe, its meshes for so many devices. Only the config of the model is read."""
        width = open_model(self.start).config.llama.model
        stages = []
        for number, context in enumerate(self.contexts):
            batch = self.step_tokens // context
            steps = self._steps(number, batch * context)
            stages.append(
                ModelStage(
                    name=name_length(context).lower(),
                    context=context,
                    batch=batch,
                    loop=Loop(steps=steps, save_every=min(100, max(5, steps // 20))),
                    optimizer=AdamW(peak_lr=self.peak_lr, end_lr=0.0, warmup_steps=steps // 10),
                    mesh=fit_mesh(context, batch, width, self.devices or devices),
                    weights_over=("fsdp", "seq"),
                    shares=self.shares,
                    rope=self.rope,
                    seed=context,
                )
            )
        return Recipe(name="extend", start=self.start, stages=tuple(stages), data=self.data)

    def _steps(self, number: int, tokens_per_step: int) -> int:
        """The steps of stage `number`."""
        given = self.tokens or self.steps
        wanted = given[number if len(given) > 1 else 0]
        return math.ceil(wanted / tokens_per_step) if self.tokens else wanted


def fit_mesh(context: int, batch: int, width: int, devices: int) -> MeshShape:
    """A mesh of as many of the devices as the rows and the model's width divide over.

    Rows are divided first, as far as there are any (`fsdp`), and then their length (`seq`), which
    costs the ring's traffic. The weights are divided over both.
    """
    for count in range(devices, 1, -1):
        fsdp = math.gcd(batch, count)
        seq = count // fsdp
        if width % count == 0 and context % seq == 0:
            return MeshShape(fsdp=fsdp, seq=seq)
    return MeshShape()
