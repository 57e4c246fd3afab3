"""Perplexity of a text by position: what a longer context is worth, and what stretching costs.

The text is cut into passages of `context` tokens, each read as one document from position 0 on
(behind the tokens that the model wants before every text). The loss of predicting each token is
kept by the token's position, so the curve shows where a rotary that was not trained so far breaks.
Rows are divided over the ring as in training, and read in chunks of positions for the logits: the
logits of all tokens never exist.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ringworld.attention.layout import deal, invert, striped_order
from ringworld.attention.mask import Where
from ringworld.errors import InputError, TooLargeError
from ringworld.evals.config import Perplexity
from ringworld.evals.heatmap import name_length
from ringworld.files import whole_once
from ringworld.mesh import axis_size, fetch_whole, make_mesh, place, shard, spec
from ringworld.models.context_extension import extend_context
from ringworld.models.world import World, WorldWeights, forward, gather_heads, token_nll
from ringworld.progress import Announce
from ringworld.text.tokenizer import Tokenizer
from ringworld.weights.model import load_model

# Tokens of a device whose logits exist at one time: 256 x 49152 float32 are 50 MB.
LOGITS = 256
# The first bucket: positions are told apart by ratio, so the buckets grow with them. From QUARTERED
# on there are four to a doubling, to see where beyond its context a model breaks.
FIRST_BUCKET, QUARTERED = 128, 1024


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Mean loss in nats of the tokens in each bucket of positions `[start, past)`."""

    rule: str
    context: int
    tokens: int
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


@partial(jax.jit, static_argnames="c")
def _measure(
    weights: WorldWeights,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    where: Where,
    c: World,
) -> Float[Array, "B T"]:
    """The loss of predicting each place's target, in the order of the places."""
    x = forward(weights, tokens, jnp.zeros_like(tokens, bool), where, c)
    head = gather_heads(weights, c).text
    head = shard(head, None, None)

    def local(x: Array, targets: Array, head: Array) -> Array:
        return _read_losses(x, targets, head)

    rows = spec("batch", "seq")
    places = (spec("batch", "seq", None), rows, spec(None, None))
    return jax.shard_map(local, in_specs=places, out_specs=rows)(x, targets, head)


def _read_losses(
    x: Float[Array, "B T D"], targets: Int[Array, "B T"], head: Float[Array, "D V"]
) -> Float[Array, "B T"]:
    """-log p of each target, from the logits of some tokens at a time; sizes are local."""
    flat, wanted = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    pad = -len(flat) % LOGITS
    flat = jnp.pad(flat, ((0, pad), (0, 0))).reshape(-1, LOGITS, x.shape[-1])
    wanted = jnp.pad(wanted, (0, pad)).reshape(-1, LOGITS)

    def some(chunk: tuple[Array, Array]) -> Array:
        x, targets = chunk
        return token_nll(x.astype(jnp.float32), head, targets, None)

    losses = lax.map(some, (flat, wanted)).reshape(-1)
    return losses[: targets.size].reshape(targets.shape)


def measure_losses(
    weights: WorldWeights, rows: Int[np.ndarray, "B T"], c: World
) -> Float[np.ndarray, "B T-1"]:
    """The loss of each token of each row but the first, on the mesh that is set.

    Rows are read one after another, divided over `seq`.
    """
    length, ring = rows.shape[1], axis_size("seq")
    order = striped_order(length, ring)
    back = invert(order, length)

    def deal_row(x: np.ndarray) -> Array:
        return place(deal(x[None].astype(np.int32), order), "batch", "seq")

    where = Where(deal_row(np.arange(length)), deal_row(np.ones(length)))
    losses = []
    for row in rows:
        targets = np.append(row[1:], 0)
        found = fetch_whole(_measure(weights, deal_row(row), deal_row(targets), where, c))[0]
        losses.append(found[back][:-1])
    return np.stack(losses)


def make_curve(losses: Float[np.ndarray, "B T"], opening: int, rule: str, context: int) -> Curve:
    """The mean loss by position; what the tokens of the opening cost is left out."""
    positions = np.arange(1, losses.shape[1] + 1)
    told = positions >= max(opening, 1)
    buckets = make_buckets(context)
    inside = [told & (positions >= start) & (positions < past) for start, past in buckets]
    return Curve(
        rule=rule,
        context=context,
        tokens=int(told.sum()) * len(losses),
        perplexity=float(np.exp(min(losses[:, told].mean(), 700.0))),
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
        losses = measure_losses(weights, rows, extend_context(c, config.context, rule))
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


def measure_perplexity(config: Perplexity, announce: Announce) -> list[Curve]:
    """The curves of a model, also as `perplexity.json` and `perplexity.png` in `config.folder`.

    Raises InputError when a file cannot be used, or the text is shorter than the context.
    """
    try:
        written = config.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{config.text} is no UTF-8 text that can be read: check it") from None
    with jax.set_mesh(make_mesh(**asdict(config.mesh))):
        model = load_model(config.model)
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
