"""A recipe before it is run: its stages as a table, from configs and shapes alone.

Nothing is trained, written or divided over real devices, so that a ladder for hundreds of chips can
be looked at on a laptop.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from ringworld.errors import InputError
from ringworld.mesh import abstract_mesh
from ringworld.models.world import World, specs
from ringworld.params import count
from ringworld.plan.memory import StepMemory, estimate_memory
from ringworld.recipes.lwm import PUBLISHED
from ringworld.recipes.recipe import Recipe
from ringworld.rope import check_rope
from ringworld.train.adapters import freeze_base, trained_specs
from ringworld.train.build import Build
from ringworld.train.freeze import check_frozen, divide
from ringworld.train.model_stage import (
    ModelData,
    ModelStage,
    as_computed,
    build_stage,
    extend_rope,
)
from ringworld.train.stage import Stage, StageWithoutSteps
from ringworld.weights.open import is_folder, open_model

GIB = 1 << 30
# How wide the table may be where nobody looks at it in a terminal.
PAGE_WIDTH = 200


@dataclass(frozen=True, kw_only=True)
class StagePreview:
    """A stage that trains a model: its config, why its RoPE is as it is, and what a device holds.

    `trained` is the number of weights that the stage trains.
    """

    stage: ModelStage
    config: World
    rope: str
    trained: int
    memory: StepMemory


def preview(recipe: Recipe) -> list[Stage[Any] | StagePreview]:
    """What is known of each stage before the recipe is run; stages of other kinds are themselves.

    Raises InputError when the model that a stage starts from is not there and has no known size.
    """
    config: World | None = None
    seen: list[Stage[Any] | StagePreview] = []
    for number, stage in enumerate(recipe.stages):
        begun = None if number else recipe.start
        start = stage.start or begun if isinstance(stage, ModelStage) else begun
        if start is not None and isinstance(stage, ModelStage | StageWithoutSteps):
            config = read_sizes(start)
        if isinstance(stage, StageWithoutSteps):
            config = stage.output_config(config)
        if not isinstance(stage, ModelStage):
            seen.append(stage)
            continue
        if config is None:
            raise InputError(f"the stage {stage.name} has no model: give the recipe a start")
        one = preview_stage(stage, config)
        seen.append(one)
        config = one.config
    return seen


def preview_stage(stage: ModelStage, before: World) -> StagePreview:
    """What a stage makes of a model of this config."""
    config, rope = extend_rope(before, stage)
    check_frozen(specs(config), stage.updates.frozen)
    kept, updates = as_computed(config, stage).llama, freeze_base(stage.updates, config, stage.lora)
    state = build_abstractly(stage, config).state
    return StagePreview(
        stage=stage,
        config=config,
        rope=rope,
        trained=count(divide(trained_specs(config, stage.lora), updates.frozen)[0]),
        memory=estimate_memory(state, kept, stage.batch * stage.context, stage.mesh, updates),
    )


def build_abstractly(stage: ModelStage, config: World) -> Build:
    """The step of a stage on a mesh of devices that need not be there."""
    mesh = abstract_mesh(stage.mesh)
    with jax.set_mesh(None), jax.sharding.use_abstract_mesh(mesh):
        return build_stage(stage, config, mesh)[0]


def read_sizes(path: Path) -> World:
    """The config of a model that is there, or of a published one of that name.

    Raises InputError when it is neither.
    """
    return PUBLISHED[path.name] if is_published(path) else open_model(path).config


def is_published(path: Path) -> bool:
    """Whether a model is not there and has published sizes."""
    return not path.exists() and path.name in PUBLISHED


def print_preview(recipe: Recipe, console: Console) -> None:
    """Print a column for each stage, the reasons for their RoPE, and what the run still lacks."""
    if not console.is_terminal:
        console.width = PAGE_WIDTH
    seen = preview(recipe)
    columns = [_describe(one) for one in seen]
    table = Table("stage", title=recipe.name)
    for column in columns:
        table.add_column(column["stage"], justify="right")
    for name in list(dict.fromkeys(name for column in columns for name in column))[1:]:
        table.add_row(name, *(column.get(name, "") for column in columns))
    console.print(table)
    reasons = [
        f"{one.stage.name}: RoPE base {one.rope}" for one in seen if isinstance(one, StagePreview)
    ]
    notes = [f"note: {note}" for note in find_notes(recipe, seen)]
    for line in (*reasons, *notes):
        console.print(line, highlight=False, soft_wrap=True)


def _describe(one: Stage[Any] | StagePreview) -> dict[str, str]:
    """What the table says of a stage, line by line."""
    if not isinstance(one, StagePreview):
        return {"stage": one.name, "kind": type(one).__name__}
    stage, memory, scaling = one.stage, one.memory, one.config.llama.rope_scaling
    by = f" {type(scaling).__name__}" if scaling else ""
    return {
        "stage": stage.name,
        "kind": type(stage).__name__,
        "context": f"{stage.context:,}",
        "rows a step": f"{stage.batch:,}",
        "tokens a step": f"{stage.batch * stage.context:,}",
        "steps": f"{stage.loop.steps:,}",
        "tokens": f"{stage.tokens:,}",
        "RoPE base": f"{one.config.llama.rope_theta:,.0f}{by}",
        "data x fsdp x seq x tensor": "x".join(map(str, stage.mesh.sizes)),
        "trained weights": f"{one.trained:,}",
        "optimizer": type(stage.optimizer).__name__,
        "learning rate": f"{stage.optimizer.schedule} {stage.optimizer.peak_lr:g}",
        "warm-up steps": f"{stage.optimizer.warmup_steps:,}",
        "GiB a device: weights": f"{memory.weights / GIB:.2f}",
        "moments": f"{memory.moments / GIB:.2f}",
        "gradients": f"{memory.gradients / GIB:.2f}",
        "activations kept": f"{memory.activations / GIB:.2f}",
        "in all, beside one layer's work": f"{memory.total / GIB:.2f}",
    }


def find_notes(recipe: Recipe, seen: list[Stage[Any] | StagePreview]) -> list[str]:
    """What a run of the recipe would still lack here, or be warned of, a sentence each."""
    found = [one for one in seen if isinstance(one, StagePreview)]
    starts = [recipe.start, *(one.stage.start for one in found)]
    notes = [
        f"{path} is not there: the published sizes of its name are shown"
        for path in starts
        if path is not None and is_published(path)
    ]
    needed, here = max((one.stage.mesh.devices for one in found), default=1), jax.device_count()
    if needed > here:
        notes.append(f"{needed} devices are needed and there are {here}")
    for one in found:
        notes.append(_find_fault(recipe, one.stage))
        if (warning := check_rope(one.config.llama.rope, one.stage.context)) is not None:
            notes.append(f"stage {one.stage.name}: {warning}")
    return [note for note in dict.fromkeys(notes) if note]


def _find_fault(recipe: Recipe, stage: ModelStage) -> str:
    """What keeps a stage from using the data; "" for nothing."""
    start = stage.start or recipe.start
    source = start if start is not None and is_folder(start) else None
    try:
        if isinstance(recipe.data, ModelData):
            recipe.data.check(stage, source)
    except InputError as error:
        return str(error)
    return ""
