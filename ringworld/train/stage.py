"""Stages of growing context: the same program with another length, mesh and RoPE base."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax

from ringworld.data.packing.ledger import LEDGER_FILE, Ledger
from ringworld.data.packing.loader import Rows, check_rows, make_batches
from ringworld.data.packing.pack import PLAN_WINDOW
from ringworld.data.packing.rows import MASKED, Apart, Examples, MixedRows, PackedRows, Packing
from ringworld.errors import InputError
from ringworld.mesh import Rules, make_mesh
from ringworld.models.llama import HOST, Activations, flops_per_token
from ringworld.models.world import World, WorldWeights, specs
from ringworld.params import init, shardings
from ringworld.progress import Announce
from ringworld.settings import MeshShape, WeightAxis
from ringworld.train.loop import Loop, fit
from ringworld.train.optimizer import AdamW, make_optimizer
from ringworld.train.state import start
from ringworld.train.step import make_step


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One length of the progressive extension.

    `batch` rows of `context` tokens a step; `shares` is the mix of sources by tokens, `packing` how
    examples become rows; `vision_share` balances the two losses. The RoPE base is the model's at
    this stage, and so is what is kept of a layer until its backward, `activations`: "attention"
    recomputes least, "nothing" keeps less, "offload" keeps as much as the first in the memory of
    the host. Between layers the weights and AdamW's moments are divided over the mesh axes of
    `weights_over`: with "seq" among them one long row spreads them over its whole ring.
    """

    name: str
    context: int
    rope_theta: float
    batch: int
    loop: Loop
    optimizer: AdamW
    mesh: MeshShape
    shares: Mapping[str, float]
    packing: Packing = MASKED
    vision_share: float = 0.5
    activations: Activations = "attention"
    weights_over: tuple[WeightAxis, ...] = ("fsdp",)
    seed: int = 0

    def __post_init__(self) -> None:
        check_rows(self.context, self.batch, self.mesh)

    @property
    def tokens(self) -> int:
        """The tokens that the stage trains on."""
        return self.loop.steps * self.batch * self.context


def train_stage(
    stage: Stage,
    model: World,
    weights: WorldWeights | None,
    examples: Examples | Apart,
    folder: Path,
    announce: Announce,
) -> WorldWeights:
    """Train `model` at the stage's length from `weights` or fresh ones; the result is on the host.

    Of sources that are packed apart, the stage's shares are shares of the rows of every batch. Goes
    on from the newest checkpoint in `folder`. Raises InputError
    when the mesh does not fit the devices, the rows do not divide over it, the devices cannot
    offload, or a batch is not the one that the same step was given before.
    """
    trained = model.at(stage.context, stage.rope_theta)
    c = replace(trained, llama=replace(trained.llama, activations=stage.activations))
    mesh = make_mesh(**asdict(stage.mesh))
    memories = {m.kind for device in mesh.local_devices for m in device.addressable_memories()}
    check_activations(stage.activations, memories)
    check_width(c.llama.model, stage)
    rules = Rules(embed=stage.weights_over)
    rows = pack_examples(stage, examples, folder)
    optimizer = make_optimizer(stage.optimizer, stage.loop.steps, specs(c))
    with jax.set_mesh(mesh):
        placed = (
            jax.jit(lambda: init(specs(c), stage.seed, rules=rules))()
            if weights is None
            else jax.device_put(weights, shardings(specs(c), mesh, rules))
        )
        state = fit(
            state=start(placed, optimizer),
            step=make_step(c, optimizer, stage.vision_share),
            batches=make_batches(
                rows,
                batch=stage.batch,
                seed=stage.seed,
                ring=stage.mesh.seq,
                ledger=Ledger(folder / LEDGER_FILE) if jax.process_index() == 0 else None,
            ),
            loop=stage.loop,
            folder=folder,
            identity={"stage": stage.name, "model": asdict(trained)},
            flops_per_step=stage.batch * stage.context * _flops(c),
            tokens_per_step=stage.batch * stage.context,
            announce=announce,
        )
    return jax.device_get(state.weights)


def pack_examples(stage: Stage, examples: Examples | Apart, folder: Path) -> Rows:
    """The rows of a stage. A plan for more examples than one window is kept in `folder`."""

    def pack(examples: Examples) -> PackedRows:
        plans = folder / "plans" if len(examples) > PLAN_WINDOW else None
        return PackedRows(examples, stage.context, stage.packing, plans)

    if isinstance(examples, Apart):
        return MixedRows({name: pack(own) for name, own in examples.sources.items()}, stage.shares)
    return pack(examples)


def check_width(width: int, stage: Stage) -> None:
    """Raise InputError when the model's width does not divide over the axes of the weights."""
    parts = math.prod(getattr(stage.mesh, axis) for axis in stage.weights_over)
    if width % parts:
        raise InputError(
            f"the model's width {width} does not divide over the {parts} devices of "
            f"{' x '.join(stage.weights_over)}: choose a mesh or weights_over whose product does"
        )


def check_activations(activations: Activations, memories: Collection[str]) -> None:
    """Raise InputError when the memories of the devices lack the one to offload to."""
    if activations == "offload" and HOST not in memories:
        raise InputError(
            f"the devices have no memory of the kind {HOST} to offload to: set activations to "
            "attention or nothing"
        )


def _flops(c: World) -> float:
    head_rows = c.vocabulary.text + c.vocabulary.vision_rows
    return flops_per_token(c.llama, c.llama.context, head_rows)
