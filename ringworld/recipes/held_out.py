"""What is measured of a model while it is trained: the loss of a text that it does not learn, by
position, and needles that are hidden in it.

It is what `ringworld eval perplexity` and `ringworld eval needle` measure, on the devices of the
stage, without stretching. The numbers depend on the weights alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int

from ringworld.errors import InputError
from ringworld.evals.needle import hide_needles
from ringworld.evals.perplexity import cut_passages, make_curve, measure_losses
from ringworld.inference.generate import write_text
from ringworld.mesh import Rules, make_mesh
from ringworld.models.world import World, WorldWeights, specs
from ringworld.params import shardings, specs_of
from ringworld.settings import Sampling
from ringworld.tasks.needle import make_form, max_answer_tokens
from ringworld.text.tokenizer import Tokenizer
from ringworld.train.model_stage import ModelStage
from ringworld.weights.model import read_words
from ringworld.weights.open import open_model

SEED = 0  # of the needles: every evaluation of every run asks for the same


def measure_held_out(
    stage: ModelStage,
    source: Path,
    config: World,
    read: Callable[[Tokenizer], Sequence[Int[np.ndarray, "_"]]],
) -> Callable[[WorldWeights], dict[str, float]]:
    """The function that measures weights of this config during the stage.

    `read` gives the ids of the held-out texts. The numbers: `eval_loss` in nats a token,
    `eval_loss_A_B` of the positions from A to below B, and `eval_needles`, the share of the needles
    that were found. Raises InputError when a passage or a needle does not fit.
    """
    opened = open_model(source)
    tokenizer = read_words(opened, source.is_dir())
    if tokenizer is None:
        raise InputError(f"{source} has no tokenizer.json, which evaluations need: add it")
    decode, template = tokenizer.decode, opened.chat_template
    form = None if template is None else make_form(template, tokenizer)
    pages = np.concatenate(list(read(tokenizer)))
    opening = tokenizer.opening
    rows = cut_passages(pages, opening, stage.context, stage.eval_passages)
    depths = np.linspace(0, 1, stage.eval_needles).tolist()
    asked = hide_needles(tokenizer, form, pages, stage.context, depths, (SEED,)) if depths else []

    def measure_loss(weights: WorldWeights) -> dict[str, float]:
        curve = make_curve(
            measure_losses(weights, rows, config), len(opening), "plain", stage.context
        )
        named = {
            f"eval_loss_{start}_{past}": loss
            for (start, past), loss in zip(curve.buckets, curve.losses, strict=True)
        }
        return {"eval_loss": curve.loss, **named}

    def find_needles(weights: WorldWeights) -> float:
        written = write_text(
            weights,
            [prompt for _, prompt in asked],
            config,
            steps=max_answer_tokens(form),
            sampling=Sampling(),
            seed=SEED,
        )
        found = [
            needle.found_in(decode(ids)) for ([needle], _), ids in zip(asked, written, strict=True)
        ]
        return sum(found) / len(found)

    def measure(weights: WorldWeights) -> dict[str, float]:
        ring, tensor = stage.mesh.devices // stage.mesh.tensor, stage.mesh.tensor
        # Texts are read one by one, so all devices that divide the batch join the ring.
        mesh = make_mesh(seq=ring, tensor=tensor)
        rules = Rules(embed=("seq",)) if config.llama.model % ring == 0 else Rules()
        with jax.set_mesh(mesh):
            table = specs_of(specs(config), weights)
            placed = jax.device_put(weights, shardings(table, mesh, rules))
            numbers = measure_loss(placed)
            return {**numbers, "eval_needles": find_needles(placed)} if asked else numbers

    return measure
