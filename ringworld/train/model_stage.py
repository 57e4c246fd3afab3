"""The stage that trains a model of text and image codes at one length."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from ringworld.batch import Batch
from ringworld.data.packing.grid import all_on_grid
from ringworld.data.packing.ledger import LEDGER_FILE, Ledger
from ringworld.data.packing.loader import Rows, check_rows, make_batches
from ringworld.data.packing.pack import PLAN_WINDOW
from ringworld.data.packing.rows import MASKED, Apart, Examples, MixedRows, PackedRows, Packing
from ringworld.distributed import first_goes_first, first_says, is_first
from ringworld.errors import InputError
from ringworld.mesh import Rules, make_mesh
from ringworld.models.context_extension import extend_context
from ringworld.models.llama import COMPUTE, HOST, Activations, Dtype
from ringworld.models.lora import Lora
from ringworld.models.world import World, WorldWeights, specs
from ringworld.params import paths
from ringworld.progress import Announce
from ringworld.rope import check_rope
from ringworld.settings import Extension, MeshShape, WeightAxis
from ringworld.train.adapters import (
    ADAPTER,
    freeze_base,
    leave_adapter,
    load_weights,
    trained_specs,
)
from ringworld.train.build import EVERY, Build, SummedLoss, Updates, build, start
from ringworld.train.checkpoint import FOLDER as CHECKPOINTS
from ringworld.train.checkpoint import find_steps
from ringworld.train.freeze import check_frozen, divide
from ringworld.train.loop import Evaluation, Loop, Measure, fit
from ringworld.train.loss import balance, check_balance, loss_sums
from ringworld.train.optimizer import AdamW, Muon, learning_rate, make_optimizer
from ringworld.train.stage import MODEL, Data, Stage
from ringworld.weights.model import save_model
from ringworld.weights.open import hash_model, is_folder, open_model
from ringworld.weights.save import unpack_model

# The folder of a stage in which a model that was one file lies unpacked.
START = "start"


class ModelData(Data, ABC):
    """Examples for a model of text and image codes."""

    def check(self, stage: "ModelStage", source: Path | None) -> None:
        """Raise InputError when the data, or the stage's shares of them, cannot be used."""

    def measure(
        self, stage: "ModelStage", source: Path, config: World, cache: Path, announce: Announce
    ) -> Measure:
        """What is measured of the weights every `eval_every` steps, on what they do not learn.

        `config` is the model as the stage trains it. Raises InputError when nothing is held out.
        """
        raise InputError(
            "nothing of these data is held out: set eval_every to 0", setting="eval_every"
        )

    @abstractmethod
    def open(
        self, stage: "ModelStage", source: Path, cache: Path, announce: Announce
    ) -> Examples | Apart:
        """The examples of a stage, in the tokens of the model folder `source`.

        What is made once is kept in the folder `cache`.
        """


@dataclass(frozen=True, kw_only=True)
class ModelStage(Stage[ModelData]):
    """One length of the progressive extension: `batch` rows of `context` tokens a step.

    Without `rope_theta` RoPE is that of the model as far as its base reaches. Beyond that it is
    extended by the rule `rope` to the context, or to `rope_context` where that is longer: by
    default to the base that `ringworld.rope.rope_theta` gives. Of the `activations`, "attention"
    recomputes least, "nothing" keeps least, and "offload" keeps as much as the first in the memory
    of the host. Between layers the weights and AdamW's moments are divided over the mesh axes of
    `weights_over`: with "seq" among them, the weights are spread over the whole ring.
    """

    context: int
    """tokens a row"""
    batch: int
    """rows a step"""
    loop: Loop
    """how long it trains, and how often it saves"""
    optimizer: AdamW | Muon
    """the optimizer and its schedule; `--stages.0.optimizer muon` chooses Muon"""
    mesh: MeshShape
    """devices along each axis"""
    shares: Mapping[str, float]
    """the share of the tokens that each source has"""
    start: Path | None = None
    """the model that it starts from, in place of the one that the stage before made"""
    rope_theta: float | None = None
    """the RoPE base; without it the model's own, extended by the rule where it does not reach"""
    rope: Extension = "theta"
    """the rule by which RoPE is extended: theta ntk yarn plain"""
    rope_context: int | None = None
    """the context that the base is chosen for, where later stages will be longer"""
    packing: Packing = MASKED
    """how examples become rows"""
    vision_share: float = 0.5
    """the weight of the vision loss; that of the text loss is the rest"""
    z_loss: float = 0.0
    """the weight of the squared log-sum-exp of the logits; PaLM's is 1e-4"""
    compute: Dtype | None = None
    """what it computes in, with float32 weights; without it what the model names"""
    updates: Updates = EVERY
    """which weights are trained, in how many parts, and which updates are skipped"""
    lora: Lora = Lora()
    activations: Activations = "attention"
    """what is kept of a layer until its backward pass"""
    weights_over: tuple[WeightAxis, ...] = ("fsdp",)
    """the mesh axes that divide the weights between layers"""
    seed: int = 0
    """draws the examples and the order of the rows"""
    eval_every: int = 0
    """steps between two evaluations on held-out text; 0 for none"""
    eval_passages: int = 4
    """passages of the length of the context whose loss is measured"""
    eval_needles: int = 4
    """needles that are hidden in as many prompts of that length; 0 for none"""

    def __post_init__(self) -> None:
        check_rows(self.context, self.batch, self.mesh)
        if self.rope_theta is not None and self.rope != "theta":
            raise InputError(
                f"rope_theta is {self.rope_theta:g} and rope is {self.rope}: set one of them",
                setting="rope",
            )
        if min(self.eval_every, self.eval_needles) < 0 or self.eval_passages < 1:
            raise InputError(
                f"eval_every is {self.eval_every}, eval_needles {self.eval_needles} and "
                f"eval_passages {self.eval_passages}: use 0 or more, the last at least 1"
            )
        if self.batch // (self.mesh.data * self.mesh.fsdp) % self.updates.accumulate:
            raise InputError(
                f"{self.batch} rows on {self.mesh.data * self.mesh.fsdp} groups of devices do not "
                f"divide into {self.updates.accumulate} parts: change the batch or accumulate",
                setting="accumulate",
            )
        check_balance(self.vision_share, self.z_loss)

    @property
    def tokens(self) -> int:
        """The tokens that the stage trains on."""
        return self.loop.steps * self.batch * self.context

    @property
    def rules(self) -> Rules:
        """Which mesh axes divide what."""
        return Rules(embed=self.weights_over)

    def check(self, data: ModelData, source: Path | None, folder: Path) -> None:
        """Raise InputError for a mesh, schedule, model or data that the stage cannot use."""
        check_devices(self)
        learning_rate(self.optimizer, self.loop.steps, 0)
        source = self.start or source
        if not (folder / self.name / MODEL).exists():
            data.check(self, source if source is None or is_folder(source) else None)
            if source is not None:
                model = open_model(source).config
                check_width(model.llama.model, self)
                check_frozen(specs(model), self.updates.frozen)
                freeze_base(self.updates, model, self.lora)

    def run(self, data: ModelData, source: Path | None, folder: Path, announce: Announce) -> Path:
        """Train the model folder `source` in `folder`; returns the trained model's folder.

        Goes on from the newest checkpoint; a stage that is done is not repeated.
        """
        own = folder / self.name
        done = own / MODEL
        if first_says(done.exists()):
            return done
        source = self.start or source
        if source is None:
            raise InputError(f"the stage {self.name} has no model: give the recipe a start")
        if not is_folder(source):
            with first_goes_first():
                source = unpack_model(source, own / START, announce)
            data.check(self, source)
        opened = open_model(source)
        announce(f"stage {self.name}: {self.tokens} tokens at {self.context}")
        config = choose_rope(opened.config, self, announce)
        examples = data.open(self, source, folder / "data", announce)

        def load() -> WorldWeights:
            return load_weights(config, opened.table, self.lora, self.seed, self.rules)

        evaluation = None
        if self.eval_every:
            measure = data.measure(self, source, config, folder / "data", announce)
            evaluation = Evaluation(every=self.eval_every, measure=measure)
        weights = train_stage(self, config, load, examples, own, announce, evaluation)
        with jax.set_mesh(make_mesh(**asdict(self.mesh))):
            weights = leave_adapter(own, weights, config, self.lora, source)
        save_model(done, config, weights, source, jnp.float32)
        return done

    def hashes(self) -> dict[str, str | None]:
        """The sha256 of the model that it starts from, if it has one of its own."""
        return {"start": hash_model(self.start)} if self.start else {}

    def kept(self, folder: Path) -> bool:
        """Whether the stage has a checkpoint or its model."""
        own = folder / self.name
        return (own / MODEL).exists() or bool(find_steps(own / CHECKPOINTS))

    def extend(self, folder: Path, steps: int) -> str:
        """Set aside the model and the ledger of the first `steps` steps."""
        own = folder / self.name
        for name in (MODEL, ADAPTER, LEDGER_FILE):
            if (own / name).exists():
                (own / name).rename(own / f"{steps}-steps-{name}")
        rates = [
            float(learning_rate(self.optimizer, length, step))
            for length, step in ((steps, steps - 1), (self.loop.steps, steps))
        ]
        return (
            f"stage {self.name} goes on from {steps} to {self.loop.steps} steps: its "
            f"{self.optimizer.schedule} schedule now spans all of them, so the learning rate goes "
            f"from {rates[0]:.3g} to {rates[1]:.3g}, and a mix of sources is drawn anew"
        )


def choose_rope(model: World, stage: ModelStage, announce: Announce) -> World:
    """The model as the stage trains it: its context, and a RoPE that reaches so far.

    Announces which RoPE it is and why, and what is wrong with it, if anything is.
    """
    chosen, said = extend_rope(model, stage)
    announce(f"stage {stage.name}: RoPE base {said}")
    if (warning := check_rope(chosen.llama.rope, stage.context)) is not None:
        announce(f"warning: {warning}")
    return chosen


def extend_rope(model: World, stage: ModelStage) -> tuple[World, str]:
    """The model as the stage trains it, and its RoPE base with the reason for it, in words.

    Rows that are shorter than the model's context leave it as it is, where they leave its RoPE.
    """
    before, context = model.llama, stage.context
    needed = max(context, stage.rope_context or 0)
    reach, theta = before.rope_reach, stage.rope_theta
    if theta is not None and (theta != before.rope_theta or needed > reach):
        grown, reach, why = model.at(needed, theta), needed, "as the stage says"
    elif needed <= reach:
        grown, why = model, f"kept, because it reaches {reach:,} tokens"
        context = max(before.context, context)
    else:
        grown = extend_context(model, needed, stage.rope)
        why = f"because the old one reaches {reach:,} tokens and {needed:,} are asked for"
        reach, why = needed, "kept, as the stage says" if stage.rope == "plain" else why
    base, scaling = grown.llama.rope_theta, grown.llama.rope_scaling
    old = "" if base == before.rope_theta else f"{before.rope_theta:,.0f} -> "
    by = f" with {type(scaling).__name__} by {scaling.factor:g}" if scaling is not None else ""
    longer = reach if reach > context else None
    return grown.at(context, base, longer), f"{old}{base:,.0f}{by}, {why}"


def train_stage(
    stage: ModelStage,
    config: World,
    load: Callable[[], WorldWeights],
    examples: Examples | Apart,
    folder: Path,
    announce: Announce,
    evaluation: Evaluation | None = None,
) -> WorldWeights:
    """Train a model of this config; returns the weights, on the stage's mesh.

    `load` gives the weights before the first step, on the mesh that is set; it is not called when
    `folder` has a checkpoint to go on from. Raises InputError when the mesh does not fit the
    devices, the rows do not divide over it, the devices cannot offload, or a batch is not the one
    that the same step was given before.
    """
    check_devices(stage)
    check_width(config.llama.model, stage)
    check_frozen(specs(config), stage.updates.frozen)
    if is_first() and not find_steps(folder / CHECKPOINTS):
        (folder / LEDGER_FILE).unlink(missing_ok=True)  # of steps that nothing is left of
    mesh = make_mesh(**asdict(stage.mesh))
    batches = stage_batches(stage, all_on_grid(examples, config.vocabulary), folder)
    with jax.set_mesh(mesh):
        built, optimizer = build_stage(stage, config, mesh)
        state = fit(
            abstract=built.state,
            begin=lambda: start(load(), optimizer, freeze_base(stage.updates, config, stage.lora)),
            step=built.step,
            replay=built.replay,
            batches=batches,
            loop=stage.loop,
            folder=folder,
            identity={"stage": stage.name, "model": asdict(config)},
            tokens_per_step=stage.batch * stage.context,
            dtype=COMPUTE[stage.compute or config.llama.dtype],
            announce=announce,
            evaluation=evaluation,
        )
    return state.weights


def build_stage(
    stage: ModelStage, config: World, mesh: Mesh | AbstractMesh
) -> tuple[Build, optax.GradientTransformation]:
    """The training step of a stage, and its optimizer; call it under `jax.set_mesh(mesh)`.

    Nothing is computed or allocated, so the mesh may be one of devices that are not there.
    """
    table, kept = trained_specs(config, stage.lora), as_computed(config, stage)
    updates = freeze_base(stage.updates, config, stage.lora)
    trained, frozen = divide(table, updates.frozen)
    optimizer = make_optimizer(stage.optimizer, stage.loop.steps, trained)
    loss = SummedLoss(
        partial(loss_sums, c=kept),
        partial(
            balance,
            c=kept,
            vision_share=stage.vision_share,
            z_loss=stage.z_loss,
            table=table,
            frozen=tuple(paths(frozen)),
        ),
    )
    return build(table, mesh, optimizer, loss, stage.rules, updates), optimizer


def as_computed(config: World, stage: ModelStage) -> World:
    """The model with the dtype that the stage computes in, and what it keeps of a layer."""
    dtype = stage.compute or config.llama.dtype
    llama = replace(config.llama, activations=stage.activations, dtype=dtype)
    return replace(config, llama=llama)


def stage_batches(
    stage: ModelStage, examples: Examples | Apart, folder: Path
) -> Callable[[int], Batch]:
    """The function from a step to its batch on the mesh that is set; `folder` keeps the ledger."""
    return make_batches(
        pack_examples(stage, examples, folder),
        batch=stage.batch,
        seed=stage.seed,
        ring=stage.mesh.seq,
        ledger=Ledger(folder / LEDGER_FILE),
    )


def pack_examples(stage: ModelStage, examples: Examples | Apart, folder: Path) -> Rows:
    """The rows of a stage. A plan for more examples than one window is kept in `folder`."""

    def pack(examples: Examples) -> PackedRows:
        plans = folder / "plans" if len(examples) > PLAN_WINDOW else None
        return PackedRows(examples, stage.context, stage.packing, plans)

    if isinstance(examples, Apart):
        rows = {name: pack(own) for name, own in examples.sources.items()}
        return MixedRows(rows, examples.shares)
    return pack(examples)


def check_width(width: int, stage: ModelStage) -> None:
    """Raise InputError when the model's width does not divide over the axes of the weights."""
    parts = math.prod(getattr(stage.mesh, axis) for axis in stage.weights_over)
    if width % parts:
        raise InputError(
            f"the model's width {width} does not divide over the {parts} devices of "
            f"{' x '.join(stage.weights_over)}: choose a mesh or weights_over whose product does"
        )


def check_devices(stage: ModelStage) -> None:
    """Raise InputError when the mesh does not fit the devices, or they cannot offload."""
    mesh = make_mesh(**asdict(stage.mesh))
    memories = {m.kind for device in mesh.local_devices for m in device.addressable_memories()}
    check_activations(stage.activations, memories)


def check_activations(activations: Activations, memories: Collection[str]) -> None:
    """Raise InputError when the memories of the devices lack the one to offload to."""
    if activations == "offload" and HOST not in memories:
        raise InputError(
            f"the devices have no memory of the kind {HOST} to offload to: set activations to "
            "attention or nothing"
        )
