"""How long a device's piece must be for the ring to cost nothing: computing hides the sending.

In one ring step a device computes with c queries and c keys while it sends and receives c keys and
values. Half of the pairs are masked away (causal, balanced), so with `g` query heads to a key head

    forward     2 c^2 N H / F  >=  2 b c K H / B        c >= b F / (g B)
    backward    5 c^2 N H / F  >=  2 (b + 4) c K H / B  c >= 2 (b + 4) F / (5 g B)

for F operations and B bytes a second in one direction, and b bytes a number. The backward makes
five products for the forward's two, and sends dK and dV in float32 beside K and V.
Source: Liu et al., "Ring Attention" (arXiv 2310.01889), section 3, for g = 1 and without a mask.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """A device with what it reaches its neighbour by: peak bfloat16 operations/s, bytes/s one way.

    Bandwidths of TPUs are those of both directions of one axis of the torus, which a ring can use.
    """

    name: str
    flops: float
    bandwidth: float


LINKS = (
    Link("A100, NVLink", 312e12, 300e9),
    Link("H100, NVLink", 989e12, 450e9),
    Link("H100, InfiniBand 400 Gbit/s", 989e12, 50e9),
    Link("B200, NVLink", 2250e12, 900e9),
    Link("B200, InfiniBand 800 Gbit/s", 2250e12, 100e9),
    Link("TPU v4, one axis", 275e12, 90e9),
    Link("TPU v5e, one axis", 197e12, 90e9),
    Link("TPU v5p, one axis", 459e12, 180e9),
    Link("TPU v6e, one axis", 918e12, 180e9),
)


def shortest_piece(link: Link, group: int, *, number: int = 2) -> tuple[int, int]:
    """The tokens that a device must hold for the forward and for the backward to hide the ring.

    `group` query heads read one key head; `number` is the bytes of a key's number. At full use of
    the device: at half of its peak, half as many will do.
    """
    ratio = link.flops / (group * link.bandwidth)
    return round(number * ratio), round(2 * (number + 4) / 5 * ratio)
