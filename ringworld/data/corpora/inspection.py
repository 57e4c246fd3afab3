"""What a folder of shards holds, in numbers and in samples, every file's hash compared first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int, UInt8

from ringworld.config import from_dict
from ringworld.data.corpora.build import BuildReport
from ringworld.data.corpora.manifest import REPORT, Counts, Manifest, hash_codec, read_json
from ringworld.data.corpora.partition import Bad
from ringworld.data.corpora.shards import Record, Shards
from ringworld.data.packing.pack import efficiency, plan_rows
from ringworld.errors import InputError
from ringworld.media.codec import Codec
from ringworld.text.load import TOKENIZER, load_tokenizer
from ringworld.text.tokenizer import NO_CHARACTER, Tokenizer
from ringworld.weights.codecs import load_codec
from ringworld.weights.file_names import CODEC
from ringworld.weights.shipped import NANO

# What is shown of a list that may be long: tokens, and letters and frames of a sample.
SHOWN_TOKENS, SHOWN_LETTERS, SHOWN_FRAMES = 20, 600, 12
# Letters of each piece of a sample that has many: the ends of a long document and every answer.
LEAST_LETTERS = 80


@dataclass(frozen=True, kw_only=True)
class LengthSummary:
    """How long examples are, in tokens; `bars` counts those of at most each power of two."""

    shortest: int
    median: float
    mean: float
    longest: int
    bars: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class RowFill:
    """How well the examples fill rows of `context` tokens."""

    context: int
    rows: int
    efficiency: float


@dataclass(frozen=True, kw_only=True)
class Often:
    """A text id and how often it stands in the data."""

    id: int
    token: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Uses:
    """How many ids stand in the data at most so often, and more often than the line before says.

    `times` is 0 or a power of ten.
    """

    times: int
    text: int
    codes: int


@dataclass(frozen=True, kw_only=True)
class SamplePart:
    """Neighbouring tokens of a sample: "given" or "learned" text, or frames "seen" or "drawn"."""

    kind: str
    tokens: int
    written: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One example as people read it."""

    index: int
    source: str
    origin: str
    tokens: int
    seconds: tuple[float, ...]
    pieces: tuple[SamplePart, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that is said of a folder. `codes_used` of `codes` stand in the data."""

    folder: str
    counts: Counts
    sources: dict[str, Counts]
    skipped: int
    lengths: LengthSummary
    packing: RowFill
    often: tuple[Often, ...]
    uses: tuple[Uses, ...]
    text_ids_used: int
    text_ids: int
    codes_used: int
    codes: int
    bad: tuple[Bad, ...]
    samples: tuple[Sample, ...]


def inspect_shards(folder: Path, *, context: int, samples: int) -> Inspection:
    """Compare every hash and read every token of a folder.

    Raises InputError for the first file or example that is not what was written.
    """
    if context < 1 or samples < 0:
        raise InputError("a context is at least 1 and samples at least 0: raise what is not")
    shards = Shards(folder)
    shards.verify()
    manifest, tokenizer = shards.manifest, load_tokenizer(folder / TOKENIZER)
    shards.check_tokenizer(folder / TOKENIZER)
    text_counts, code_counts = count_token_ids(shards)
    lengths = shards.lengths
    plan = plan_rows(lengths, context)
    order = np.argsort(-text_counts, kind="stable")[:SHOWN_TOKENS]
    return Inspection(
        folder=str(folder),
        counts=manifest.counts,
        sources=manifest.sources,
        skipped=manifest.skipped,
        lengths=measure_lengths(lengths),
        packing=RowFill(context=context, rows=len(plan), efficiency=efficiency(plan, context)),
        often=tuple(
            Often(id=int(i), token=name_token(tokenizer, int(i)), count=int(text_counts[i]))
            for i in order
            if text_counts[i]
        ),
        uses=measure_uses(text_counts, code_counts[:-2]),
        text_ids_used=int(np.count_nonzero(text_counts)),
        text_ids=manifest.text_ids,
        codes_used=int(np.count_nonzero(code_counts[:-2])),
        codes=max(manifest.vision_ids - 2, 0),
        bad=from_dict(BuildReport, read_json(folder / REPORT), str(folder / REPORT)).bad,
        samples=tuple(
            describe_sample(shards, i, tokenizer) for i in choose_samples(shards.manifest, samples)
        ),
    )


def count_token_ids(shards: Shards) -> tuple[Int[np.ndarray, "V"], Int[np.ndarray, "U"]]:
    """How often each text id and each vision id stands in the data."""
    text = np.zeros(shards.manifest.text_ids, np.int64)
    vision = np.zeros(max(shards.manifest.vision_ids, 2), np.int64)
    for example in shards:
        text += np.bincount(example.tokens[~example.vision], minlength=len(text))
        vision += np.bincount(example.tokens[example.vision], minlength=len(vision))
    return text, vision


def measure_uses(text: Int[np.ndarray, "V"], codes: Int[np.ndarray, "U"]) -> tuple[Uses, ...]:
    """The histogram of how often each text id and each code stands in the data."""
    powers = [np.ceil(np.log10(np.maximum(kind, 0.1))).astype(int) for kind in (text, codes)]
    most = max(int(power.max(initial=-1)) for power in powers)
    return tuple(
        Uses(
            times=0 if power < 0 else 10**power,
            text=int((powers[0] == power).sum()),
            codes=int((powers[1] == power).sum()),
        )
        for power in range(-1, most + 1)
    )


def measure_lengths(lengths: Int[np.ndarray, "n"]) -> LengthSummary:
    """The distribution of lengths."""
    powers = np.ceil(np.log2(lengths)).astype(int)
    return LengthSummary(
        shortest=int(lengths.min()),
        median=float(np.median(lengths)),
        mean=float(lengths.mean()),
        longest=int(lengths.max()),
        bars={
            f"{2**power}": int((powers == power).sum())
            for power in range(powers.min(), powers.max() + 1)
        },
    )


def choose_samples(manifest: Manifest, count: int) -> list[int]:
    """Examples from every source in turn, spread evenly over each."""
    chosen: list[list[int]] = []
    first = dict.fromkeys(manifest.sources, np.zeros(0, np.int64))
    at = 0
    for shard in manifest.shards:
        size = shard.counts.examples
        first[shard.source] = np.append(first[shard.source], np.arange(at, at + size))
        at += size
    for held in first.values():
        chosen.append(held[spread_evenly(len(held), count)].tolist())
    turns = [row[i] for i in range(count) for row in chosen if i < len(row)]
    return turns[:count]


def spread_evenly(count: int, most: int) -> Int[np.ndarray, "n"]:
    """The numbers of at most `most` of `count` things: evenly spread, with the first and last."""
    return np.linspace(0, count - 1, min(most, count)).astype(int)


def describe_sample(shards: Shards, index: int, tokenizer: Tokenizer) -> Sample:
    """One example as people read it, long pieces without their middle."""
    record = shards.record(index)
    pieces, cuts = [], cut_example(record)
    most = max(SHOWN_LETTERS // sum(not vision for _, vision, _ in cuts), LEAST_LETTERS)
    for cut, vision, learned in cuts:
        tokens = record.example.tokens[cut]
        if vision:
            frames = len(tokens) // shards.manifest.vocabulary.frame_length
            kind, written = "drawn" if learned else "seen", f"{frames} frame{'s' * (frames > 1)}"
        else:
            kind = "learned" if learned else "given"
            written = shorten_middle(tokenizer.decode(tokens.tolist()), most)
        pieces.append(SamplePart(kind=kind, tokens=len(tokens), written=written))
    return Sample(
        index=index,
        source=shards.source(index),
        origin=record.origin,
        tokens=len(record.example),
        seconds=tuple(record.seconds.tolist()),
        pieces=tuple(pieces),
    )


def cut_example(record: Record) -> list[tuple[slice, bool, bool]]:
    """The runs of an example: where, whether they are vision, and whether they are learned."""
    vision, learned = record.example.vision, record.example.weights > 0
    edges = np.flatnonzero((vision[1:] != vision[:-1]) | (learned[1:] != learned[:-1])) + 1
    ends = [0, *edges.tolist(), len(vision)]
    return [
        (slice(a, b), bool(vision[a]), bool(learned[a]))
        for a, b in zip(ends, ends[1:], strict=False)
    ]


def shorten_middle(written: str, most: int) -> str:
    """The first and the last letters of a text that has more than `most`."""
    if len(written) <= most:
        return written
    return f"{written[: most // 2]} [...] {written[-(most // 2) :]}"


def name_token(tokenizer: Tokenizer, id: int) -> str:
    """The text of a token in quotes, its spaces kept; part of a character or a special token as it
    stands in the vocabulary.
    """
    before = tokenizer.encode("a")  # a decoder drops the space before the first word
    text = tokenizer.decode([*before, id])[len(tokenizer.decode(before)) :]
    if text and NO_CHARACTER not in text:
        return repr(text)
    return tokenizer.backend.id_to_token(id) or str(id)


def find_codec(manifest: Manifest, codec: Path | None) -> Codec | None:
    """The codec that made the codes: the given one, or the shipped one if it is that, or none.

    Raises InputError when the given one is another.
    """
    if manifest.codec is None or manifest.counts.vision == 0:
        return None
    path = codec or NANO / CODEC
    if hash_codec(path) == manifest.codec.sha256:
        return load_codec(path)
    if codec is None:
        return None
    raise InputError(f"{codec} is not the codec that made the shards: give that one, or none")


def draw_samples(
    folder: Path, samples: Sequence[Sample], codec: Codec
) -> dict[int, tuple[UInt8[np.ndarray, "Z Y X 3"], list[str]]]:
    """Frames spread evenly over each sample that has some, and when the film shows them."""
    shards = Shards(folder)
    each = shards.manifest.vocabulary.codes_per_frame
    drawn = {}
    for sample in samples:
        record = shards.record(sample.index)
        codes = record.example.tokens[record.example.vision]
        if len(codes):
            frames = codes.reshape(-1, each + 1)[:, :each]
            shown = spread_evenly(len(frames), SHOWN_FRAMES)
            moments = [name_moment(record.seconds, number) for number in shown.tolist()]
            drawn[sample.index] = (codec.decode(frames[shown]), moments)
    return drawn


def name_moment(seconds: Float64[np.ndarray, "Z"], number: int) -> str:
    """The timestamp of a frame, or its number where that is unknown."""
    return f"{seconds[number]:.2f} s" if number < len(seconds) else f"frame {number}"
