"""Lines of every kind that a tokenizer meets, drawn from a seed: code, digits, emoji, scripts."""

import random
from collections.abc import Callable

# First and last characters of blocks; unassigned ones among them are as good as any.
SCRIPTS = {
    "latin": (0xC0, 0x24F),
    "greek": (0x370, 0x3FF),
    "cyrillic": (0x400, 0x4FF),
    "hebrew": (0x590, 0x5FF),
    "arabic": (0x600, 0x6FF),
    "devanagari": (0x900, 0x97F),
    "thai": (0xE00, 0xE7F),
    "kana": (0x3040, 0x30FF),
    "han": (0x4E00, 0x9FFF),
    "hangul": (0xAC00, 0xD7A3),
    "gothic": (0x10330, 0x1034F),
}
EMOJI = (
    "🙂",
    "👩‍👩‍👧‍👦",
    "👍🏽",
    "🇩🇪",
    "🇯🇵🇧🇷",
    "🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "❤️",
    "1️⃣",
    "👨🏿‍🚀",
    "☕",
)
TEXT = """
    the The THE it's I'll WE'RE don't naïve café e\u0301 ﬁre Straße ǅ İstanbul o'clock rock'n'roll
    well-known e.g. U.S.A. https://example.org/a?b=c&d=%20 me@example.org snake_case camelCase x
"""
WORDS = tuple(TEXT.split())
CODE = (
    "def f(x: int) -> str:",
    "    return x ** 2 if x else None  # 0x1F",
    "\tfor (int i = 0; i < n; ++i) { a[i] += 1.5e-3f; }",
    "std::map<std::string, std::vector<int>> m{{}};",
    "SELECT * FROM t WHERE a='b' AND c<>10;",
    "fn main() -> Result<(), Box<dyn Error>> {",
    '<div class="a">&nbsp;&lt;/div&gt;</div>',
    "\\frac{\\partial f}{\\partial x_{12}} \\leq 10^{-3}",
    "0b1010 0o17 0xDEADBEEF 1_000_000 .5 1e9 -7",
    'if [[ $# -gt 1 ]]; then echo "${x//a/b}" >&2; fi',
)
SPACES = (
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    "\n\n\n",
    " \n ",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\v",
)
ODD = (
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u202e",
    "\u0301",
    "\x00",
    "\x7f",
    "\x85",
    "\ufffd",
    "\ufdd0",
    "\U0010ffff",
    "½",
    "²",
    "①",
    "٣",
    "३",
    "Ⅷ",
    "▁",
    "Ġ",
)


def _word(draw: random.Random) -> str:
    return draw.choice(WORDS)


def _digits(draw: random.Random) -> str:
    sign, point = (
        draw.choice(("", "-", "+", "$", "#", "€")),
        draw.choice(("", ".", ",", "/", ":", "e")),
    )
    ends = (str(draw.randrange(10 ** draw.randint(1, 9))) for _ in range(2))
    return sign + point.join(ends)


def _script(draw: random.Random) -> str:
    first, last = draw.choice(list(SCRIPTS.values()))
    return "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 12)))


def _any(draw: random.Random) -> str:
    drawn = (draw.randrange(0x110000) for _ in range(draw.randint(1, 6)))
    return "".join(chr(c) for c in drawn if not 0xD800 <= c < 0xE000)


def draw_lines(count: int, special: tuple[str, ...] = (), seed: int = 0) -> list[str]:
    """Lines of one to twelve pieces, with spaces of any kind between them, or none.

    `special` are spellings that mean something to the tokenizer.
    """
    draw = random.Random(seed)
    kinds: list[Callable[[random.Random], str]] = [
        _word,
        _word,
        _digits,
        _script,
        _any,
        lambda draw: draw.choice(EMOJI),
        lambda draw: draw.choice(CODE),
        lambda draw: draw.choice(ODD),
        lambda draw: draw.choice(special or WORDS),
    ]
    lines = []
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 12)):
            parts.append(draw.choice(kinds)(draw))
            parts.append(draw.choice((*SPACES, " ", " ", " ", " ", "", "")))
        lines.append("".join(parts))
    return lines
