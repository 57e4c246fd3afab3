"""The recipes of the small world with actions: its codec, and the model that can be played.

play_codec   a codec of few codes for the tiles, from fresh weights
nano_play    the shipped model of the world, from fresh weights
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from ringworld.data.example import Example
from ringworld.data.packing.rows import check_shares
from ringworld.data.samples import write_arrays
from ringworld.distributed import first_goes_first
from ringworld.errors import InputError
from ringworld.media.codec import Codec
from ringworld.mesh import on_a_mesh
from ringworld.models.llama import Llama
from ringworld.models.vqgan import VQGAN
from ringworld.models.world import World
from ringworld.progress import Announce
from ringworld.recipes.codec import CodecStage
from ringworld.recipes.pixels import CodecData, PictureData, to_unit
from ringworld.recipes.recipe import Recipe
from ringworld.rope import stable_base
from ringworld.settings import MeshShape
from ringworld.tasks.play_form import action_ids, episode_example, episode_tokens
from ringworld.tasks.play_policies import draw_episodes
from ringworld.tasks.play_world import (
    ACTIONS,
    CELLS,
    TILE_SIDE,
    TILES,
    PlayLevel,
    draw_level,
    draw_start,
)
from ringworld.text.load import load_tokenizer
from ringworld.train.codec import CodecTraining
from ringworld.train.fresh_model import FreshModel
from ringworld.train.loop import Loop
from ringworld.train.model_stage import ModelData, ModelStage
from ringworld.train.optimizer import Muon
from ringworld.train.stage import Stage
from ringworld.vocab import Vocabulary
from ringworld.weights.codecs import load_codec
from ringworld.weights.file_names import CODEC
from ringworld.weights.folder import save_folder
from ringworld.weights.open import open_model
from ringworld.weights.shipped import NANO_PLAY

PLAY_VQGAN = VQGAN(
    size=CELLS * TILE_SIDE,
    channels=8,
    multipliers=(1, 2, 4, 4),
    blocks=1,
    groups=4,
    codebook=len(TILES),
    width=16,
)
LEARNED_CODES = 16  # of the codec before those of a tile are merged
PLAY = "play"  # the one source of the episodes
SHOWN_LEVELS = 80  # pictures that a codec is measured on
SHOWN_SEED = 99
FRAMES = 10  # of an episode
CHECKED_EPISODES = 64  # whose frames are encoded, to see that the codes are the tiles
# A row holds one episode.
CONTEXT = 664
PLAY_SIZES = World(
    llama=Llama(
        layers=4,
        model=128,
        mlp=384,
        heads=2,
        kv_heads=1,
        head_width=64,
        context=CONTEXT,
        rope_theta=stable_base(CONTEXT, 64),
    ),
    vocabulary=Vocabulary(
        text=2048,
        bos=1,
        eos=2,
        codes=PLAY_VQGAN.codebook,
        codes_per_frame=CELLS**2,
        vision_rows=16,
    ),
    tied=True,
)


@dataclass(frozen=True, kw_only=True)
class PlayPictures(PictureData):
    """Levels of the small world, with any tile in some of their cells."""

    batch: int
    """pictures a step"""
    seed: int
    """draws the pictures"""
    scattered: float
    """the most cells of a picture that show any tile, as a share"""

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 <= self.scattered <= 1:
            raise InputError(
                f"batch is {self.batch} and scattered {self.scattered}: use 1 or more, and a share "
                "between 0 and 1"
            )

    def check(self, size: int, cache: Path) -> None:
        """Raise InputError when the codec is of another size than the world's frames."""
        if size != CELLS * TILE_SIDE:
            raise InputError(
                f"the codec is of {size} pixels and the world's frames are of {CELLS * TILE_SIDE}: "
                "set the stage's model.size to this"
            )

    def open(self, size: int, cache: Path, announce: Announce) -> CodecData:
        """Pictures without end; held out are frames of levels that no episode begins with."""

        def batch(step: int) -> Float[np.ndarray, "Z Y X 3"]:
            rng = np.random.default_rng((self.seed, step))
            levels = [draw_start(rng, held_out=False) for _ in range(self.batch)]
            drawn = [draw_level(scatter(rng, level, self.scattered)) for level in levels]
            return to_unit(np.stack(drawn))

        rng = np.random.default_rng(SHOWN_SEED)
        unseen = [draw_level(draw_start(rng, held_out=True)) for _ in range(SHOWN_LEVELS)]
        return CodecData(batch, {"held-out levels": np.stack(unseen)})


def scatter(rng: np.random.Generator, level: PlayLevel, most: float) -> PlayLevel:
    """The level with any tile in some of its cells: a share of them from 0 to `most`."""
    chosen = rng.random(level.shape) < rng.uniform(0.0, most)
    return np.where(chosen, rng.integers(len(TILES), size=level.shape, dtype=np.uint8), level)


@dataclass(frozen=True, kw_only=True)
class PlayEpisodes(ModelData):
    """Episodes of the small world, drawn from `seed`, as the codes of a codec for its tiles."""

    episodes: int
    """how many episodes there are"""
    frames: int
    """frames of an episode"""
    seed: int
    """draws levels and actions"""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.frames < 2:
            raise InputError(
                f"{self.episodes} episodes of {self.frames} frames teach nothing: use at least one "
                "of two frames"
            )

    def check(self, stage: ModelStage, source: Path | None) -> None:
        """Raise InputError when a share names no source, or an episode fits no row."""
        check_shares({PLAY: None}, stage.shares)
        if source is None:
            return
        action_ids(load_tokenizer(source))
        length = episode_tokens(self.frames, open_model(source).config.vocabulary)
        if length > stage.context + 1:
            raise InputError(
                f"an episode has {length} tokens and a row {stage.context}: use fewer frames or a "
                "longer context"
            )

    def open(
        self, stage: ModelStage, source: Path, cache: Path, announce: Announce
    ) -> list[Example]:
        """The episodes as examples; the levels are kept in `cache`.

        A codec for the tiles has one code for each, whose number is the tile's (`MergedCodes`), so
        a level is the codes of its frame. Raises InputError when the codec encodes levels
        otherwise.
        """
        tokenizer, vocabulary = load_tokenizer(source), open_model(source).config.vocabulary
        ids = action_ids(tokenizer)
        with first_goes_first():
            levels, actions = self.play(cache, announce)
        check_codec(load_codec(source / CODEC), levels[:CHECKED_EPISODES])
        codes = levels.reshape(*levels.shape[:2], -1).astype(np.int32)
        names = np.array([*ids.values()], np.int32)
        return [
            episode_example(some, names[acted], tokenizer, vocabulary)
            for some, acted in zip(codes, actions, strict=True)
        ]

    def play(
        self, cache: Path, announce: Announce
    ) -> tuple[UInt8[np.ndarray, "N Z 8 8"], Int[np.ndarray, "N Z-1"]]:
        """The levels of every episode, and its actions by their number; kept in `cache`."""
        kept = cache / f"episodes-{self.seed}-{self.episodes}-{self.frames}-levels.npz"
        if not kept.exists():
            announce(f"playing {self.episodes} episodes of {self.frames} frames")
            played = draw_episodes(self.episodes, self.frames - 1, self.seed, held_out=False)
            numbers = {action: number for number, action in enumerate(ACTIONS)}
            write_arrays(
                kept,
                levels=np.stack([each.levels for each in played]),
                actions=np.array([[numbers[x] for x in each.actions] for each in played], np.int32),
            )
        with np.load(kept) as arrays:
            return arrays["levels"], arrays["actions"]


def check_codec(codec: Codec, episodes: UInt8[np.ndarray, "N Z 8 8"]) -> None:
    """Raise InputError when the codes of the frames of episodes are not their tiles."""
    levels = episodes.reshape(-1, CELLS, CELLS)
    codes = codec.encode(np.stack([draw_level(level) for level in levels]))
    if codes.shape[1:] != (CELLS**2,) or (codes != levels.reshape(len(levels), -1)).any():
        raise InputError(
            "the codes of the codec are not the numbers of the tiles: use the codec of nano-play, "
            "or train play-codec for more steps"
        )


@dataclass(frozen=True, kw_only=True)
class MergedCodes(Stage[PlayPictures]):
    """The codec of the stage before, with one code for each tile, whose number is the tile's.

    A code stands for the tile that it is most often found at in levels; those of one tile become
    their mean, each as heavy as it is frequent.
    """

    levels: int
    """how many levels are looked at"""
    seed: int
    """draws them"""

    def check(self, data: PlayPictures, source: Path | None, folder: Path) -> None:
        """Raise InputError when there is nothing to look at."""
        if self.levels < 1:
            raise InputError(f"levels is {self.levels}: use 1 or more", setting="levels")

    def kept(self, folder: Path) -> bool:
        """Whether the codec is there."""
        return (folder / self.name / CODEC).exists()

    @on_a_mesh
    def run(
        self, data: PlayPictures, source: Path | None, folder: Path, announce: Announce
    ) -> Path:
        """Write the codec, unless it is there; returns its path.

        Raises InputError when there is a tile that no code stands for.
        """
        done = folder / self.name / CODEC
        if done.exists() or source is None:
            return done
        rng = np.random.default_rng(self.seed)
        levels = np.stack([draw_start(rng, held_out=False) for _ in range(self.levels)])
        merged = merge_codes(load_codec(source), levels)
        save_folder(done, "vqgan", merged.config, merged.weights, jnp.bfloat16)
        return done


def merge_codes(codec: Codec, levels: UInt8[np.ndarray, "N 8 8"]) -> Codec:
    """The codec with a code for each tile. Raises InputError when a tile has no code of its own."""
    codes = codec.encode(np.stack([draw_level(level) for level in levels]))
    found = np.zeros((codec.config.codebook, len(TILES)))
    np.add.at(found, (codes.reshape(-1), levels.reshape(-1)), 1)
    means = found.sum(1)[:, None] * (found.argmax(1)[:, None] == np.arange(len(TILES)))
    if not (total := means.sum(0)).all():
        raise InputError("a tile has no code of its own: train the codec for more steps")
    book = np.asarray(codec.weights.codebook, np.float32)
    return Codec(
        replace(codec.config, codebook=len(TILES)),
        replace(codec.weights, codebook=jnp.asarray((means / total).T @ book)),
    )


def play_codec() -> Recipe:
    """The codec of the shipped model of the small world: one code for each tile."""
    return Recipe(
        name="play-codec",
        stages=(
            CodecStage(
                name="codec",
                model=replace(PLAY_VQGAN, codebook=LEARNED_CODES),
                training=CodecTraining(
                    steps=900, warmup=50, learning_rate=3e-3, worst=0.01, dead=0.3, soften=150
                ),
            ),
            MergedCodes(name="merged", levels=400, seed=0),
        ),
        data=PlayPictures(batch=8, seed=0, scattered=0.8),
    )


def nano_play() -> Recipe:
    """The shipped model of the small world, from fresh weights: frames after actions, at 664."""
    return Recipe(
        name="nano-play",
        stages=(
            FreshModel(name="fresh", model=PLAY_SIZES, parts=NANO_PLAY, seed=1),
            ModelStage(
                name="play",
                context=CONTEXT,
                rope_theta=PLAY_SIZES.llama.rope_theta,
                batch=8,
                loop=Loop(steps=1000, save_every=40),
                optimizer=Muon(
                    schedule="cosine",
                    peak_lr=2e-3,
                    end_lr=0.0,
                    warmup_steps=30,
                    weight_decay=0.02,
                    update_rms=0.6,
                ),
                mesh=MeshShape(),
                vision_share=1.0,
                shares={PLAY: 1.0},
                seed=1,
            ),
        ),
        data=PlayEpisodes(episodes=8000, frames=FRAMES, seed=31),
    )
