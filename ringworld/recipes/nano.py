"""The recipes of the nano family: a small world model, and the same grown to a longer context.

nano_base        the shipped model: text first, then the world, from fresh weights, at 1K
nano_text        the language model within it, grown from 1K to 64K
nano_world       the shipped model with a codec of tiles, taught to draw what words ask for
nano_world_chat  an adapter for nano_world, which answers questions about what it sees
demo             the shipped model grown from 1K to 4K to 16K over a ring of eight
"""

from typing import Any

from ringworld.data.packing.rows import Packing
from ringworld.models.llama import Llama
from ringworld.models.lora import Lora
from ringworld.models.world import World
from ringworld.progress import name_length
from ringworld.recipes.recipe import Recipe
from ringworld.recipes.samples import Samples
from ringworld.rope import rope_theta, stable_base
from ringworld.settings import MeshShape
from ringworld.train.code_grid import CodeGrid
from ringworld.train.fresh_model import FreshModel
from ringworld.train.language_model import LanguageModel
from ringworld.train.loop import Loop
from ringworld.train.model_stage import ModelStage
from ringworld.train.new_codec import NewCodec
from ringworld.train.optimizer import AdamW, Muon, Schedule
from ringworld.vocab import Vocabulary
from ringworld.weights.shipped import NANO, NANO_WORLD, SHAPES_CODEC

NANO_SIZES = World(
    llama=Llama(
        layers=4,
        model=192,
        mlp=512,
        heads=3,
        kv_heads=1,
        head_width=64,
        context=1024,
        rope_theta=stable_base(1024, 64),
    ),
    vocabulary=Vocabulary(text=2048, bos=1, eos=2, codes=512, codes_per_frame=64, vision_rows=520),
)

# The length that the shipped model is meant to be taken to.
REACH = 16384
# The length of the last stage of nano-text.
TEXT_REACH = 65536


def reach_theta(length: int = REACH) -> float:
    """The RoPE base that the law gives the shipped model for a length.

    Its last stage is trained at this base, still at 1K, where steps are cheap: after a change of
    base the model draws and describes clips badly for hundreds of steps (docs/log.md), and the demo
    has ninety.
    """
    llama = NANO_SIZES.llama
    return rope_theta(length, llama.head_width, llama.rope_theta, llama.context)


def nano_base() -> Recipe:
    """The shipped model from fresh weights: language first, as in LWM, then language and vision."""

    def stage(
        name: str, context: int, theta: float, batch: int, steps: int, lr: float, **rest: Any
    ) -> ModelStage:
        return ModelStage(
            name=name,
            context=context,
            rope_theta=theta,
            batch=batch,
            loop=Loop(steps=steps, save_every=100),
            optimizer=AdamW(schedule="cosine", peak_lr=lr, end_lr=lr / 10, warmup_steps=30),
            mesh=MeshShape(data=2),
            **rest,
        )

    theta, reach = NANO_SIZES.llama.rope_theta, reach_theta()
    echo = {"echo": 0.8, "books": 0.2}
    text = {"recall": 0.5, "echo": 0.25, "books": 0.25}
    world = {"recall": 0.15, "books": 0.05, "clips": 0.72, "film": 0.08}
    return Recipe(
        name="nano-base",
        stages=(
            FreshModel(name="fresh", model=NANO_SIZES, parts=NANO, seed=1),
            stage("echo-64", 64, theta, 64, 500, 2e-3, shares=echo, vision_share=0.0, seed=1),
            stage("text-256", 256, theta, 16, 600, 2e-3, shares=text, vision_share=0.0, seed=2),
            stage("world-1k", 1024, theta, 4, 4500, 1.5e-3, shares=world, seed=3),
            stage(
                "reach-1k", 1024, reach, 4, 1600, 1.2e-3, rope_context=REACH, shares=world, seed=4
            ),
        ),
        data=Samples(clips=12000, seed=7),
    )


def nano_text() -> Recipe:
    """The language model of nano, grown from 1K to 64K at the RoPE base that the law gives 64K.

    Its first stage learns the new base at 1K, where steps are cheap; each of the others has rows of
    four times as many tokens.
    """
    stages = []
    rows, ring = MeshShape(data=2), MeshShape(seq=2)
    for context, batch, steps, lr, mesh in (
        (1024, 8, 400, 1.2e-3, rows),
        (4096, 2, 100, 7e-4, rows),
        (16384, 1, 40, 5e-4, ring),
        (65536, 1, 8, 3e-4, ring),
    ):
        stages.append(
            ModelStage(
                name=name_length(context).lower(),
                context=context,
                rope_context=TEXT_REACH,
                batch=batch,
                loop=Loop(steps=steps, save_every=max(1, 25 * 1024 // context)),
                optimizer=AdamW(
                    schedule="cosine", peak_lr=lr, end_lr=lr / 10, warmup_steps=min(20, steps // 4)
                ),
                mesh=mesh,
                shares={"recall": 0.8, "books": 0.2},
                vision_share=0.0,
                seed=context,
            )
        )
    return Recipe(
        name="nano-text",
        stages=(LanguageModel(name="text"), *stages),
        data=Samples(clips=0, seed=0, together=0.5),
        start=NANO,
    )


def nano_world() -> Recipe:
    """The model that draws what words ask for: nano with a codec of tiles, taught anew to see.

    Still pictures and clips are learned together, first at a constant rate, then four times at one
    that falls from the same peak to 0. From the stage "placed" on the model is told the row and the
    column of each code: without them it places things at the right height and in a wrong column.
    The last stage has questions of their own beside those that other clips and pictures come with,
    and rows in which a clip has room for eight of them.
    Each row counts alike, so that a code of a clip counts as much as one of a picture: counted by
    examples, the six frames of a clip are worth one picture.
    """

    def stage(
        name: str,
        schedule: Schedule,
        steps: int,
        pictures: float,
        seed: int,
        questions: float = 0.0,
        vision_share: float = 0.85,
        context: int = 464,
        batch: int = 18,
    ) -> ModelStage:
        shares = {"pictures": pictures, "clips": 1 - (pictures + questions), "questions": questions}
        return ModelStage(
            name=name,
            context=context,
            batch=batch,
            loop=Loop(steps=steps, save_every=25),
            optimizer=Muon(
                schedule=schedule,
                peak_lr=1.5e-3,
                end_lr=0.0,
                warmup_steps=20,
                weight_decay=0.02,
                update_rms=0.6,
            ),
            mesh=MeshShape(data=2),
            packing=Packing(weights="rows"),
            shares={name: share for name, share in shares.items() if share},
            vision_share=vision_share,
            seed=seed,
        )

    longer = {"context": 608, "batch": 14}
    return Recipe(
        name="nano-world",
        stages=(
            NewCodec(name="codec", codec=SHAPES_CODEC),
            stage("both", "constant", 1200, 0.4, seed=1),
            stage("cool", "cosine", 400, 0.3, seed=2),
            stage("more", "cosine", 1400, 0.5, seed=3),
            CodeGrid(name="grid"),
            stage("placed", "cosine", 3000, 0.5, seed=4),
            stage("asked", "cosine", 2200, 0.3, 5, questions=0.2, vision_share=0.8, **longer),
        ),
        data=Samples(
            clips=24000,
            seed=21,
            over_film=0.0,
            forms=(0.72, 0.18, 0.1),
            reversed=0.5,
        ),
        start=NANO,
    )


def nano_world_chat() -> Recipe:
    """An adapter for nano-world that answers: questions and captions alone, of fresh clips."""
    return Recipe(
        name="nano-world-chat",
        stages=(
            ModelStage(
                name="chat",
                context=608,
                batch=14,
                loop=Loop(steps=300, save_every=25),
                optimizer=AdamW(schedule="cosine", peak_lr=3e-3, end_lr=0.0, warmup_steps=20),
                mesh=MeshShape(data=2),
                lora=Lora(rank=16),
                packing=Packing(weights="rows"),
                shares={"questions": 1.0},
                vision_share=0.0,
                seed=6,
            ),
        ),
        data=Samples(clips=12000, seed=22, over_film=0.0, reversed=0.5),
        start=NANO_WORLD,
    )


def demo() -> Recipe:
    """The shipped model grown from 1K to 16K on a ring of eight, its RoPE base by the law."""
    shares = {"recall": 0.45, "books": 0.05, "clips": 0.45, "film": 0.05}
    stages = []
    for context, steps, lr in ((1024, 10, 3e-4), (4096, 60, 7e-4), (16384, 20, 3e-4)):
        stages.append(
            ModelStage(
                name=name_length(context).lower(),
                context=context,
                batch=max(1, 8192 // context),
                loop=Loop(steps=steps, save_every=10),
                optimizer=AdamW(schedule="cosine", peak_lr=lr, end_lr=lr / 10, warmup_steps=3),
                mesh=MeshShape(seq=8),
                shares=shares,
                seed=context,
            )
        )
    return Recipe(name="demo", stages=tuple(stages), data=Samples(clips=600, seed=11), start=NANO)
