"""LWM's four ladders with their published numbers: text, text chat, vision, vision chat.

lwm-text           LLaMA-2 7B from 4K to 32K, 128K, 256K, 512K and 1M tokens of books
lwm-text-chat      each of the long text models as a chat model, at its own length
lwm-vision         the text model of 1M with pictures at 1K, then with films at 8K
lwm-vision-chat    that model in conversations about pictures and films, 32K to 1M

Sources: the tables 11 to 13 of LWM (arXiv 2402.08268). The paper's 4M and 8M tokens a batch are
2^22 and 2^23 here, so that rows are whole. Meshes are those of its 256 and 512 chips of TPU v4.
What the paper leaves open is as in its code: weights divided over fsdp and the ring, float32, AdamW
with a decay of 0.1, and both modalities' losses weighted alike. Table 12 (text chat) names no mesh:
that of the text stage of the same length is taken. Data are token shards of your own; the names of
their sources stand in `shares`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ringworld.models.llama import Llama
from ringworld.models.world import World
from ringworld.progress import name_length
from ringworld.recipes.recipe import Recipe
from ringworld.recipes.shards import TokenShards
from ringworld.settings import MeshShape
from ringworld.train.loop import Loop
from ringworld.train.model_stage import ModelStage
from ringworld.train.optimizer import AdamW
from ringworld.vocab import LWM_VOCABULARY, Vocabulary

K, M = 1 << 10, 1 << 20

LLAMA2_7B = World(
    llama=Llama(
        layers=32,
        model=4096,
        mlp=11008,
        heads=32,
        kv_heads=32,
        head_width=128,
        context=4096,
        rope_theta=1e4,
    ),
    vocabulary=Vocabulary(text=32000, bos=1, eos=2),
)
LWM_7B = replace(LLAMA2_7B, vocabulary=LWM_VOCABULARY)

# The RoPE base of each length of text. Vision is trained at the last.
THETA = {32 * K: 1e6, 128 * K: 1e7, 256 * K: 1e7, 512 * K: 2.5e7, M: 5e7}
# fsdp, seq and tensor of each length, on 256 chips; `data` is 1.
TEXT_MESH = {
    32 * K: (64, 1, 4),
    128 * K: (32, 1, 8),
    256 * K: (16, 1, 16),
    512 * K: (8, 2, 16),
    M: (4, 4, 16),
}
# The shares of the four tasks of vision chat: a quarter of each batch.
TASKS = dict.fromkeys(
    ("image-generation", "image-understanding", "video-generation", "video-understanding"), 0.25
)

# The sizes of the models that the ladders start from, by the names of their folders.
PUBLISHED = {
    "Llama-2-7b-hf": LLAMA2_7B,
    **{f"LWM-Text-{name_length(t)}": LLAMA2_7B.at(t, THETA[t]) for t in THETA},
    "LWM-Text-1M-vision": LWM_7B.at(M, THETA[M]),
    "LWM-8K": LWM_7B.at(8 * K, THETA[M], M),
}


def lwm_text() -> Recipe:
    """LLaMA-2 7B on books of growing length: a source of shards for each range of lengths."""
    plans = {  # steps, warm-up, the source of books
        32 * K: (1200, 100, "books-10k-100k"),
        128 * K: (3000, 200, "books-100k-200k"),
        256 * K: (3000, 200, "books-200k-500k"),
        512 * K: (720, 50, "books-500k-1m"),
        M: (450, 25, "books-1m"),
    }
    return Recipe(
        name="lwm-text",
        start=Path("Llama-2-7b-hf"),
        stages=tuple(
            _text_stage(context, steps, warmup, {source: 1.0})
            for context, (steps, warmup, source) in plans.items()
        ),
        data=TokenShards(folder=Path("books3")),
    )


def lwm_text_chat() -> Recipe:
    """Each long text model as a chat model: seven parts of UltraChat to three about documents.

    The questions about documents are a source for each length, in rows of their own.
    """
    contexts = [context for context in THETA if context > 32 * K]
    qa = {context: f"qa-{name_length(context).lower()}" for context in contexts}
    return Recipe(
        name="lwm-text-chat",
        stages=tuple(
            replace(
                _text_stage(context, 300, 25, {"ultrachat": 0.7, qa[context]: 0.3}),
                start=Path(f"LWM-Text-{name_length(context)}"),
            )
            for context in contexts
        ),
        data=TokenShards(folder=Path("text-chat"), apart=("ultrachat", *qa.values())),
    )


def lwm_vision() -> Recipe:
    """The text model of 1M tokens with pictures, then with films, and 16 % of text throughout."""
    optimizer = AdamW(schedule="cosine", peak_lr=6e-4, end_lr=6e-5, warmup_steps=1000)
    return Recipe(
        name="lwm-vision",
        start=Path("LWM-Text-1M-vision"),
        stages=(
            _vision_stage(
                K,
                (512, 1, 1),
                45000,
                optimizer,
                {"text": 0.16, "images": 0.84},
            ),
            _vision_stage(
                8 * K,
                (512, 1, 1),
                14000,
                replace(optimizer, warmup_steps=500),
                {"text": 0.16, "images": 0.42, "videos": 0.42},
            ),
        ),
        data=TokenShards(folder=Path("vision"), apart=("text",)),
    )


def lwm_vision_chat() -> Recipe:
    """That model in conversations: a quarter of each batch to each of four tasks."""
    plans = {  # mesh, steps, warm-up
        32 * K: ((128, 1, 4), 1200, 100),
        128 * K: ((64, 1, 8), 450, 50),
        M: ((8, 4, 16), 50, 5),
    }
    return Recipe(
        name="lwm-vision-chat",
        start=Path("LWM-8K"),
        stages=tuple(
            _vision_stage(
                context,
                mesh,
                steps,
                AdamW(schedule="cosine", peak_lr=8e-5, end_lr=8e-5, warmup_steps=warmup),
                TASKS,
            )
            for context, (mesh, steps, warmup) in plans.items()
        ),
        data=TokenShards(folder=Path("vision-chat"), apart=tuple(TASKS)),
    )


def _text_stage(context: int, steps: int, warmup: int, shares: Mapping[str, float]) -> ModelStage:
    """A stage of 2^22 tokens a batch on 256 chips, at a constant rate."""
    return _stage(
        context,
        4 * M,
        steps,
        TEXT_MESH[context],
        optimizer=AdamW(schedule="constant", peak_lr=4e-5, warmup_steps=warmup),
        rope_theta=THETA[context],
        shares=shares,
        vision_share=0.0,
    )


def _vision_stage(
    context: int,
    mesh: tuple[int, int, int],
    steps: int,
    optimizer: AdamW,
    shares: Mapping[str, float],
) -> ModelStage:
    """A stage of 2^23 tokens a batch on 512 chips, at the base of 1M."""
    return _stage(
        context,
        8 * M,
        steps,
        mesh,
        optimizer=optimizer,
        rope_theta=THETA[M],
        rope_context=M,
        shares=shares,
    )


def _stage(
    context: int, tokens: int, steps: int, mesh: tuple[int, int, int], **rest: Any
) -> ModelStage:
    fsdp, seq, tensor = mesh
    return ModelStage(
        name=name_length(context).lower(),
        context=context,
        batch=tokens // context,
        loop=Loop(steps=steps, save_every=min(100, max(5, steps // 20))),
        mesh=MeshShape(fsdp=fsdp, seq=seq, tensor=tensor),
        weights_over=("fsdp", "seq"),
        seed=context,
        **rest,
    )
