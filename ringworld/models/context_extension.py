"""Context extension: a model at a longer context than it was trained for, by a change of its RoPE.

    theta   a larger base, by the law in `rope`: slow pairs stay within the angles of training
    ntk     base' = base s^(H / (H - 2)): the slowest pair is slowed by s, the fastest is not
    yarn    pairs that made no full turn in training are slowed by s, and logits are sharpened
    plain   no change: the baseline for the others

Here s is the new context over the trained one. Nothing is trained; `evals.perplexity` measures the
cost. Sources: ntk is bloc97, "NTK-aware scaled RoPE" (2023), as given in Peng et al., "YaRN" (arXiv
2309.00071); yarn is `rope_scaling.YaRN`.
"""

from dataclasses import replace

from ringworld.errors import InputError
from ringworld.models.world import World
from ringworld.rope import rope_theta
from ringworld.rope_scaling import YaRN
from ringworld.settings import Extension


def extend_context(c: World, context: int, rule: Extension) -> World:
    """The model's config at `context` tokens. Within the trained context RoPE stays as it is.

    Raises InputError for a context below 2, or a rule that cannot be added to the model's own RoPE
    scaling.
    """
    if context < 2:
        raise InputError(
            f"a context of {context} holds no question: use 2 tokens or more", setting="context"
        )
    trained, base, width = c.llama.context, c.llama.rope_theta, c.llama.head_width
    longer = replace(c, llama=replace(c.llama, context=context))
    if context <= trained or rule == "plain":
        return longer
    factor = context / trained
    if rule == "theta":
        reach = c.llama.rope_reach
        theta = base if context <= reach else rope_theta(context, width, base, reach)
        return c.at(context, theta, max(context, reach))
    if rule == "ntk":
        return c.at(context, base * factor ** (width / (width - 2)))
    if c.llama.rope_scaling is not None:
        raise InputError(
            "this model's RoPE is scaled already, and yarn would replace that: use the rule theta",
            setting="rope",
        )
    scaling = YaRN(factor=factor, trained_context=trained)
    return replace(longer, llama=replace(longer.llama, rope_scaling=scaling))
