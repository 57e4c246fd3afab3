"""From a spec to a folder of token shards, by any number of workers, resumable after any crash.

Every partition of the input is one task and one shard; a note says that the shard is complete. A
build that is started again does the partitions that have no note, or whose shard does not match
its note. The manifest is written last, and the notes are then removed.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from ringworld.config import from_dict
from ringworld.data.corpora.manifest import (
    MANIFEST,
    REPORT,
    SCHEMA_VERSION,
    CodecNote,
    Counts,
    Manifest,
    ShardNote,
    TokenizerNote,
    add_up,
    check_media,
    hash_codec,
    note_tokenizer,
    read_json,
    read_shard_manifest,
    write_json,
)
from ringworld.data.corpora.partition import (
    NOTES_FOLDER,
    Bad,
    Job,
    PartitionNote,
    build_partition,
    load_codec_once,
    partition_note_path,
)
from ringworld.data.corpora.processes import run_in_processes
from ringworld.data.corpora.ray import run_on_ray
from ringworld.data.corpora.reader import Input, LeftOut, Partition, cut_partitions
from ringworld.data.corpora.spec import Spec, count_forms, read_spec
from ringworld.errors import InputError
from ringworld.files import alone_in, hash_file, whole
from ringworld.progress import Announce, make_progress
from ringworld.text.load import TOKENIZER, read_tokenizer
from ringworld.weights.file_names import CODEC
from ringworld.weights.shipped import NANO

BuildEngine = Literal["local", "ray"]
# Runs a function on each partition, and yields the notes in the order of the partitions.
Run = Callable[[Callable[[Partition], PartitionNote], Sequence[Partition]], Iterator[PartitionNote]]

BUILD = "build.json"
# Bad rows that a report names; the others are counted.
LISTED = 10_000
# Reasons that are told; the rows of others are in the list.
REASONS = 20


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a build is made from; a folder holds one build, and refuses another.

    What is done with bad rows is not part of it, so that a refused build can go on.
    """

    spec: Spec
    inputs: tuple[Input, ...]
    tokenizer: TokenizerNote
    codec: CodecNote | None


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What was left out of a build, in the order of the input, and why.

    `reasons` counts the bad rows by reason, names and numbers in it replaced by "...". Of rows and
    of files as many are listed as `LISTED` says.
    """

    bad_rows: int
    bad: tuple[Bad, ...]
    reasons: dict[str, int] = field(default_factory=dict)
    files: tuple[LeftOut, ...] = ()


def build_shards(
    spec_path: Path,
    out: Path,
    announce: Announce,
    *,
    workers: int = 1,
    engine: BuildEngine = "local",
) -> Manifest:
    """Build the shards of a spec in the folder `out`, or go on with them; returns the manifest.

    The same input gives the same bytes, whatever the workers and the engine. Raises InputError when
    the spec or a row is bad, `out` holds another build or another process builds in it, a film
    that was read is another now, a worker dies, or the disk is full; and KeyboardInterrupt, with a
    sentence, when it is stopped by one.
    """
    try:
        return continue_build(spec_path, out, announce, workers, engine)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped: the same command goes on with what is whole in {out}"
        ) from None


def continue_build(
    spec_path: Path, out: Path, announce: Announce, workers: int, engine: BuildEngine
) -> Manifest:
    """The work of `build_shards`, without what it says when it is interrupted."""
    spec, folder = read_spec(spec_path), spec_path.parent
    job = make_job(spec, folder, out)
    run = choose_engine(engine, workers)
    announce(f"reading what {spec_path} names")
    inputs = cut_partitions(spec, folder)
    partitions, left_out = inputs.partitions, inputs.left_out
    for line in describe_left_out(left_out):
        announce(line)
    identity = Identity(
        spec=replace(spec, on_bad="skip", max_bad=0),
        inputs=inputs.files,
        tokenizer=job.tokenizer_note,
        codec=job.codec_note,
    )
    check_place(out)
    with alone_in(out):
        check_identity(out, identity)
        made = find_finished(out)
        if made is not None:
            check_media(out, folder, partitions, workers)
            rebuild_damaged(made, job, partitions, run, announce)
            shutil.rmtree(out / NOTES_FOLDER, ignore_errors=True)
            announce(f"{out} is built")
            return made
        found = {partition.shard: find_note(out, partition) for partition in partitions}
        done = {shard: note for shard, note in found.items() if note is not None}
        if done:
            announce(f"{len(done)} of {len(partitions)} partitions are done")
        check_media(out, folder, [p for p in partitions if p.shard in done], workers)
        todo = [partition for partition in partitions if partition.shard not in done]
        notes = [
            *collect(run(partial(build_partition, job), todo), job, done, len(partitions), left_out)
        ]
        made = {note.partition: note for note in (*done.values(), *notes)}
        manifest = finish_build(job, [made[partition.shard] for partition in partitions], left_out)
        if manifest.skipped:
            announce(describe_skipped(out))
        return manifest


def make_job(spec: Spec, folder: Path, out: Path) -> Job:
    """The job of a spec, its tokenizer and codec loaded once to know what they are.

    Raises InputError when one of them is missing or broken.
    """
    place = folder / spec.tokenizer if spec.tokenizer else NANO
    tokenizer_note = note_tokenizer(place)
    codec_path = (folder / spec.codec if spec.codec else NANO / CODEC) if spec.sees else None
    codec_note = None
    if codec_path is not None:
        config = load_codec_once(codec_path).config
        codec_note = CodecNote(
            sha256=hash_codec(codec_path),
            size=config.size,
            codes=config.codebook,
            codes_per_frame=config.side**2,
        )
    return Job(
        spec=spec,
        folder=folder,
        tokenizer=place,
        codec=codec_path,
        tokenizer_note=tokenizer_note,
        codec_note=codec_note,
        out=out,
    )


def check_place(out: Path) -> None:
    """Raise InputError where a folder cannot be, because a file is there."""
    if file := next((path for path in (out, *out.parents) if path.is_file()), None):
        raise InputError(f"{file} is a file, so {out} cannot be a folder: use another path")


def check_identity(out: Path, identity: Identity) -> None:
    """Record what the folder is built from. Raises InputError when it holds another build.

    A build that was refused before any shard was whole has nothing to lose: once its input is
    corrected, the same command begins anew.
    """
    record = out / BUILD
    if record.exists() and json.loads(json.dumps(asdict(identity))) == read_json(record):
        return
    held = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    if record.exists() and held - {BUILD, REPORT}:
        raise InputError(
            f"{out} holds the build of another spec or of another input: use another folder, or "
            "remove it to start anew"
        )
    if held and not record.exists():
        raise InputError(f"{out} holds something else: use a new folder")
    write_json(record, identity)


def find_finished(out: Path) -> Manifest | None:
    """The manifest of a finished build; None when it, the report or the tokenizer is not whole."""
    try:
        made = read_shard_manifest(out)
        from_dict(BuildReport, read_json(out / REPORT), str(out / REPORT))
        return made if hash_file(out / TOKENIZER) == made.tokenizer.sha256 else None
    except InputError:
        return None


def rebuild_damaged(
    made: Manifest, job: Job, partitions: Sequence[Partition], run: Run, announce: Announce
) -> None:
    """Build again the shards that are not what the manifest says.

    Raises InputError when they come out other than they were.
    """
    shards = {shard.file: shard for shard in made.shards}
    known = [partition for partition in partitions if partition.shard in shards]
    harmed = [p for p in known if not is_whole(job.out, shards[p.shard])]
    if not harmed:
        return
    names = ", ".join(partition.shard for partition in harmed)
    announce(f"not what was written, so built again: {names}")
    for note in run(partial(build_partition, job), harmed):
        if note.shard != shards[note.partition]:
            raise InputError(
                f"{job.out / note.partition} comes out other than it was, perhaps by another "
                f"version of a library: remove {job.out} to build all of it again"
            )


def is_whole(out: Path, shard: ShardNote) -> bool:
    """Whether a shard is there and what was written."""
    path = out / shard.file
    return path.is_file() and hash_file(path) == shard.sha256


def find_note(out: Path, partition: Partition) -> PartitionNote | None:
    """The note of a partition that is done and whole, else None."""
    path = partition_note_path(out, partition)
    try:
        note = from_dict(PartitionNote, read_json(path), str(path))
    except InputError:
        return None
    return note if note.shard is None or is_whole(out, note.shard) else None


def choose_engine(engine: BuildEngine, workers: int) -> Run:
    """The function that runs partitions: in this process, in others, or on a Ray cluster.

    Raises InputError for less than one worker.
    """
    if workers < 1:
        raise InputError(f"{workers} workers can do nothing: ask for 1 or more")
    if engine == "ray":
        return partial(run_on_ray, workers=workers)
    return map if workers == 1 else partial(run_in_processes, workers=workers)


def collect(
    notes: Iterable[PartitionNote],
    job: Job,
    done: dict[str, PartitionNote],
    total: int,
    left_out: Sequence[LeftOut],
) -> Iterator[PartitionNote]:
    """Pass each note on as it comes, and show how far the build is.

    Raises InputError, and leaves a report, when more rows are bad than may be.
    """
    bad = [row for note in done.values() for row in note.bad]
    most = job.spec.max_bad if job.spec.on_bad == "skip" else 0
    with make_progress(TextColumn("partitions"), BarColumn(), MofNCompleteColumn()) as progress:
        task = progress.add_task("", total=total, completed=len(done))
        for note in notes:
            bad += note.bad
            progress.advance(task)
            if len(bad) > most:
                break
            yield note
    if len(bad) > most:
        write_build_report(job.out, bad, left_out)
        raise InputError(
            f"{len(bad)} bad rows are more than the {most} allowed, the first is {bad[0].origin}: "
            f"{bad[0].why}; {job.out / REPORT} lists them: correct them or raise max_bad"
        )


def finish_build(job: Job, notes: Sequence[PartitionNote], left_out: Sequence[LeftOut]) -> Manifest:
    """Write the report, the tokenizer and, last, the manifest; remove the notes."""
    bad = [row for note in notes for row in note.bad]
    shards = tuple(note.shard for note in notes if note.shard is not None)
    if not shards:
        raise InputError("every row is bad, so there is nothing to write: correct the input")
    sources = add_up([source.name for source in job.spec.sources], shards)
    manifest = Manifest(
        schema=SCHEMA_VERSION,
        tokenizer=job.tokenizer_note,
        codec=job.codec_note,
        counts=sum(sources.values(), Counts()),
        sources=sources,
        skipped=len(bad),
        shards=shards,
        forms={s.name: count_forms(s) for s in job.spec.sources if count_forms(s) > 1},
    )
    write_build_report(job.out, bad, left_out)
    with whole(job.out / TOKENIZER) as draft:
        draft.write_bytes(read_tokenizer(job.tokenizer) or b"")
    write_json(job.out / MANIFEST, manifest)
    shutil.rmtree(job.out / NOTES_FOLDER, ignore_errors=True)
    return manifest


def write_build_report(out: Path, bad: Sequence[Bad], left_out: Sequence[LeftOut]) -> None:
    """What was left out, as `report.json`."""
    reasons = Counter(generalize(row.why) for row in bad)
    report = BuildReport(
        bad_rows=len(bad),
        bad=tuple(bad[:LISTED]),
        reasons=dict(reasons.most_common(REASONS)),
        files=tuple(left_out[:LISTED]),
    )
    write_json(out / REPORT, report)


def generalize(why: str) -> str:
    """A reason without what differs from row to row: quoted names and numbers become "..."."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d[\d,.]*(?<!\.)", "...", why.rpartition(": ")[0] or why)


def describe_skipped(out: Path) -> str:
    """One sentence: how many rows were skipped for which reasons, and where they are listed."""
    report = from_dict(BuildReport, read_json(out / REPORT), str(out / REPORT))
    reasons = "; ".join(f"{why} ({_rows(count)})" for why, count in report.reasons.items())
    return f"{_rows(report.bad_rows)} skipped, listed in {out / REPORT}: {reasons}"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def describe_left_out(left_out: Sequence[LeftOut]) -> Iterator[str]:
    """A sentence for each source and reason: how many files are not read, and the first of them."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in left_out:
        groups.setdefault((one.source, one.why), []).append(one.file)
    for (source, why), files in groups.items():
        count = "1 file is" if len(files) == 1 else f"{len(files):,} files are"
        yield f"{source}: {count} not read ({why}), first {files[0]}"
