"""A model at a longer context than it was trained for, by a named rule for its rotary.

    theta   the base that keeps slow pairs within what they met, and scores in order; see `rope`
    ntk     base' = base s^(H / (H - 2)): the slowest pair is slowed by s, the fastest is not
    yarn    pairs that never made a turn are slowed by s, and scores are sharpened; see `YaRN`
    plain   nothing changes: what the others are compared with

Here s is the new context over the trained one. Nothing is trained: what it costs is measured by
`evals.perplexity`. Source of ntk: bloc97, "NTK-aware scaled RoPE" (2023), as in Peng et al.,
"YaRN" (arXiv 2309.00071).
"""

from dataclasses import replace
from typing import Literal

from ringworld.errors import InputError
from ringworld.models.world import World
from ringworld.rope import rope_theta
from ringworld.rope_scaling import YaRN

Rule = Literal["theta", "ntk", "yarn", "plain"]


def stretch(c: World, context: int, rule: Rule) -> World:
    """The model for `context` tokens. A shorter context than its own changes no rotary.

    Raises InputError for a context below 2, or a rule that cannot follow the model's own scaling.
    """
    if context < 2:
        raise InputError(f"a context of {context} holds no question: use 2 tokens or more")
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
            "this model's RoPE is scaled already, and yarn would replace that: use --rope theta"
        )
    scaling = YaRN(factor=factor, trained_context=trained)
    return replace(longer, llama=replace(longer.llama, rope_scaling=scaling))
