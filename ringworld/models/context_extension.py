"""Context extension: a model at a longer context than it was trained for, by a change of its RoPE.

    theta   a larger base, by the law in `rope`: slow pairs stay within the angles of training
    ntk     base' = base s^(H / (H - 2)): the slowest pair is slowed by s, the fastest is not
    yarn    pairs that made no full turn in training are slowed by s, and logits are sharpened
    plain   no change: the baseline for the others

Here s is the new context over the trained one, also where the base was chosen for more than that
(`Llama.rope_reach`): pairs have met the angles of the trained context only (docs/log.md). theta is
a choice of base, and changes nothing within its reach. A model may be trained so
(`train.model_stage`) or not; `evals.perplexity` measures what the latter costs. Sources: ntk is
bloc97, "NTK-aware scaled RoPE" (2023), as given in Peng et al., "YaRN" (arXiv 2309.00071); yarn is
`rope_scaling.YaRN`.
"""

from dataclasses import replace

from ringworld.errors import InputError
from ringworld.models.world import World
from ringworld.rope import rope_theta
from ringworld.rope_scaling import YaRN
from ringworld.settings import Extension

MOST_POSITIONS = 2**31 - 1  # positions are int32


def extend_context(c: World, context: int, rule: Extension) -> World:
    """The model's config at `context` tokens. Within the trained context RoPE stays as it is.

    A model that YaRN has extended is extended further by the same YaRN with a larger factor. Raises
    InputError for a context below 2 or above `MOST_POSITIONS`, or a rule that cannot be added to
    the model's own RoPE scaling.
    """
    if context < 2:
        raise InputError(
            f"a context of {context} holds no question: use 2 tokens or more", setting="context"
        )
    if context > MOST_POSITIONS:
        raise InputError(
            f"a context of {context:,} has more positions than the model counts: use at most "
            f"{MOST_POSITIONS:,} tokens",
            setting="context",
        )
    trained, base, width = c.llama.context, c.llama.rope_theta, c.llama.head_width
    longer = replace(c, llama=replace(c.llama, context=context))
    if context <= trained or rule == "plain":
        return longer
    if rule == "theta":
        reach = c.llama.rope_reach
        theta = base if context <= reach else rope_theta(context, width, base, reach)
        return c.at(context, theta, max(context, reach))
    if rule == "ntk":
        return c.at(context, base * (context / trained) ** (width / (width - 2)))
    return replace(longer, llama=replace(longer.llama, rope_scaling=_yarn(c, context)))


def _yarn(c: World, context: int) -> YaRN:
    """The scaling by which YaRN takes the model to `context` tokens."""
    own = c.llama.rope_scaling
    if own is None:
        return YaRN(factor=context / c.llama.context, trained_context=c.llama.context)
    if not isinstance(own, YaRN):
        raise InputError(
            "this model's RoPE is scaled already, and yarn would replace that: use the rule theta",
            setting="rope",
        )
    return replace(own, factor=max(own.factor, context / own.trained_context))
