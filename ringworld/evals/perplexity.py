"""Perplexity of a text by position: what a longer context is worth, and what stretching costs.

The text is cut into passages of `context` tokens, each read as one document from position 0 on
(behind the tokens that the model wants before every text). The loss of predicting each token is
kept by the token's position, so the curve shows where a rotary that was not trained so far breaks.
Rows are divided over the ring and read in chunks by the engine: the logits of all tokens never
exist.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ringworld.errors import InputError, TooLargeError
from ringworld.evals.config import Perplexity
from ringworld.evals.heatmap import name_length
from ringworld.files import check_writable, whole_once
from ringworld.inference.generate import score_texts
from ringworld.mesh import axis_size, make_mesh
from ringworld.models.context_extension import extend_context
from ringworld.models.world import World, WorldWeights
from ringworld.progress import Announce
from ringworld.text.tokenizer import Tokenizer
from ringworld.weights.model import load_model

# The first bucket: positions are told apart by ratio, so the buckets grow with them. From QUARTERED
# on there are four to a doubling, to see where beyond its context a model breaks.
FIRST_BUCKET, QUARTERED = 128, 1024


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Mean loss in nats of all tokens, and of those in each bucket of positions `[start, past)`."""

    rule: str
    context: int
    tokens: int
    loss: float
    perplexity: float
    buckets: tuple[tuple[int, int], ...]
    losses: tuple[float, ...]


def cut_passages(
    ids: Int[np.ndarray, "n"], opening: Sequence[int], context: int, most: int
) -> Int[np.ndarray, "B T"]:
    """Rows of `context` tokens: the opening, then text, spread evenly without overlap.

    Raises InputError when the text is shorter than one row.
    """
    length = context - len(opening)
    count = min(len(ids) // max(length, 1), most)
    if length < 2 or count < 1:
        raise TooLargeError(
            f"the text has {len(ids):,} tokens and a passage needs {max(length, 2):,}: give a "
            "longer text or a shorter context",
            setting="context",
        )
    starts = np.linspace(0, len(ids) - length, count).astype(np.int64)
    rows = [np.concatenate([opening, ids[start : start + length]]) for start in starts]
    return np.stack(rows).astype(np.int32)


def make_buckets(context: int) -> tuple[tuple[int, int], ...]:
    """0 to 128, to 256, to 512, to 1024, and by quarters: to 1280, ... 2048, 2560, ... the end."""
    edges = [0, FIRST_BUCKET]
    while edges[-1] < context:
        power = 1 << (edges[-1].bit_length() - 1)
        edges.append(edges[-1] + (power if power < QUARTERED else power // 4))
    return tuple((a, min(b, context)) for a, b in zip(edges, edges[1:], strict=False))


def measure_losses(
    weights: WorldWeights, rows: Int[np.ndarray, "B T"], c: World, *, int8: bool = False
) -> Float[np.ndarray, "B T-1"]:
    """The loss of each token of each row but the first, on the mesh that is set.

    Rows are read one after another, divided over `seq`; `int8` is how keys and values are kept.
    """
    return -score_texts(weights, rows, c, int8=int8)


def make_curve(losses: Float[np.ndarray, "B T"], opening: int, rule: str, context: int) -> Curve:
    """The mean loss by position; what the tokens of the opening cost is left out."""
    positions = np.arange(1, losses.shape[1] + 1)
    told = positions >= max(opening, 1)
    buckets, mean = make_buckets(context), float(losses[:, told].mean())
    inside = [told & (positions >= start) & (positions < past) for start, past in buckets]
    return Curve(
        rule=rule,
        context=context,
        tokens=int(told.sum()) * len(losses),
        loss=mean,
        perplexity=float(np.exp(min(mean, 700.0))),
        buckets=buckets,
        losses=tuple(float(losses[:, mask].mean()) for mask in inside),
    )


def run_perplexity(
    weights: WorldWeights,
    c: World,
    words: Tokenizer,
    written: str,
    config: Perplexity,
    announce: Announce,
) -> list[Curve]:
    """A curve for each rule. `weights` may lie on a mesh that is set.

    Raises InputError when the text is too short, or the mesh divides the batch.
    """
    if axis_size("data") * axis_size("fsdp") > 1:
        raise InputError("passages are read one by one: use a mesh of seq and tensor")
    ids = np.asarray(words.encode(written), np.int32)
    opening = words.opening
    rows, curves = cut_passages(ids, opening, config.context, config.passages), []
    for rule in config.rules:
        extended = extend_context(c, config.context, rule)
        losses = measure_losses(weights, rows, extended, int8=config.int8)
        curves.append(make_curve(losses, len(opening), rule, config.context))
        announce(
            f"perplexity: {rule} at {config.context:,} tokens: {curves[-1].perplexity:.3f}, and "
            f"{math.exp(min(curves[-1].losses[-1], 700.0)):.3f} in its last bucket"
        )
    return curves


def draw_curves(curves: Sequence[Curve], trained: int, title: str) -> bytes:
    """A PNG of loss by position, a line for each rule and context."""
    figure = Figure(figsize=(6.4, 4.0), dpi=144)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for curve in curves:
        middles = [math.sqrt(max(start, 1) * past) for start, past in curve.buckets]
        label = f"{curve.rule}, {name_length(curve.context)}: {curve.perplexity:.2f}"
        axes.plot(middles, curve.losses, marker="o", label=label)
    axes.axvline(trained, color="grey", linestyle=":", label=f"trained to {name_length(trained)}")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position (tokens)")
    axes.set_ylabel("loss (nats a token)")
    axes.set_title(title)
    axes.legend(title="rule, context: perplexity")
    out = BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight")
    return out.getvalue()


def read_text(path: Path) -> str:
    """The text of a file. Raises InputError when it cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path} is no UTF-8 text that can be read: check it") from None


def measure_perplexity(config: Perplexity, announce: Announce) -> list[Curve]:
    """The curves of a model, also as `perplexity.json` and `perplexity.png` in `config.folder`.

    Raises InputError when a file or the folder cannot be used, or the text is shorter than the
    context.
    """
    check_writable(config.folder / "perplexity.json")
    written = read_text(config.text)
    with jax.set_mesh(make_mesh(**asdict(config.mesh))):
        model = load_model(config.model, config.weights.dtype, config.weights.adapter)
        weights = model.sharded_weights()
        curves = run_perplexity(weights, model.config, model.tokenizer, written, config, announce)
    trained = model.config.llama.context
    told = {"model": str(config.model), "text": config.text.name, "trained": trained}
    with whole_once(config.folder / "perplexity.json") as draft:
        body = {**told, "curves": [asdict(curve) for curve in curves]}
        draft.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    with whole_once(config.folder / "perplexity.png") as draft:
        draft.write_bytes(draw_curves(curves, trained, f"{config.model.name}: {config.text.name}"))
    announce(f"wrote {config.folder / 'perplexity.json'} and {config.folder / 'perplexity.png'}")
    return curves
