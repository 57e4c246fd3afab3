"""Context extension: a model at a longer context than it was trained for, by a change of its RoPE.

    theta   a larger base, by the law in `rope`: slow pairs stay within the angles of training
    ntk     base' = base s^(H / (H - 2)): the slowest pair is slowed by s, the fastest is not
    yarn    pairs that made no full turn in training are slowed by s, and logits are sharpened
    plain   no change: the baseline for the others

Here s is the new context over the reach of the model's base: its trained context, or the longer
one that the base was chosen for (`Llama.rope_reach`). Within the reach nothing changes. A model may
be trained so (`train.model_stage`) or not; `evals.perplexity` measures what the latter costs.
Sources: ntk is bloc97, "NTK-aware scaled RoPE" (2023), as given in Peng et al., "YaRN" (arXiv
2309.00071); yarn is `rope_scaling.YaRN`.
"""

from dataclasses import replace

from ringworld.errors import InputError
from ringworld.models.world import World
from ringworld.rope import rope_theta
from ringworld.rope_scaling import YaRN
from ringworld.settings import Extension


def extend_context(c: World, context: int, rule: Extension) -> World:
    """The model's config at `context` tokens. Within the reach of its base RoPE stays as it is.

    A model that YaRN has extended is extended further by the same YaRN with a larger factor. Raises
    InputError for a context below 2, or a rule that cannot be added to the model's own RoPE
    scaling.
    """
    if context < 2:
        raise InputError(
            f"a context of {context} holds no question: use 2 tokens or more", setting="context"
        )
    reach, base, width = c.llama.rope_reach, c.llama.rope_theta, c.llama.head_width
    if context <= reach or rule == "plain":
        return replace(c, llama=replace(c.llama, context=context))
    if rule == "theta":
        return c.at(context, rope_theta(context, width, base, reach))
    if rule == "ntk":
        return c.at(context, base * (context / reach) ** (width / (width - 2)))
    longer = c.at(context, base)
    return replace(longer, llama=replace(longer.llama, rope_scaling=_yarn(c, context)))


def _yarn(c: World, context: int) -> YaRN:
    """The scaling by which YaRN takes the model to `context` tokens, beyond its reach."""
    own = c.llama.rope_scaling
    if own is None:
        reach = c.llama.rope_reach
        return YaRN(factor=context / reach, trained_context=reach)
    if not isinstance(own, YaRN):
        raise InputError(
            "this model's RoPE is scaled already, and yarn would replace that: use the rule theta",
            setting="rope",
        )
    return replace(own, factor=max(own.factor, context / own.trained_context))
