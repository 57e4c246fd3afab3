"""From a spec to a folder of shards, by any number of workers, going on from any death.

Every portion of the input is one task and one shard; a note says that the shard is whole. A build
that is started again does the portions that have no note, or whose shard is not what the note says.
The manifest is written last, and the notes are then removed; from there on it says what is whole.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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
    hash_codec,
    note_tokenizer,
    read_json,
    read_manifest,
    write_json,
)
from ringworld.data.corpora.partition import (
    NOTES,
    Bad,
    Job,
    PortionNote,
    build_portion,
    load_codec_once,
    note_path,
)
from ringworld.data.corpora.processes import run_in_processes
from ringworld.data.corpora.provenance import check_media
from ringworld.data.corpora.ray import run_on_ray
from ringworld.data.corpora.reader import Input, Portion, cut_portions
from ringworld.data.corpora.spec import Spec, count_forms, read_spec
from ringworld.errors import InputError
from ringworld.files import alone_in, hash_file, whole
from ringworld.progress import Announce, make_progress
from ringworld.text.load import TOKENIZER, read_tokenizer
from ringworld.weights.file_names import CODEC
from ringworld.weights.shipped import NANO

Engine = Literal["local", "ray"]
# How portions are done: each by the function, told in the order of the portions.
Run = Callable[[Callable[[Portion], PortionNote], Sequence[Portion]], Iterator[PortionNote]]

BUILD = "build.json"
# Bad rows that a report names; the others are counted.
LISTED = 10_000


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a folder is the build of: another spec, input, tokenizer or codec is another build.

    What is done with bad rows is not part of it, so that a refused build can go on.
    """

    spec: Spec
    inputs: tuple[Input, ...]
    tokenizer: TokenizerNote
    codec: CodecNote | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was left out of a build, in the order of the input, and why."""

    bad_rows: int
    bad: tuple[Bad, ...]


def build(
    spec_path: Path,
    out: Path,
    announce: Announce,
    *,
    workers: int = 1,
    engine: Engine = "local",
) -> Manifest:
    """Build the shards of a spec in the folder `out`, or go on with them; returns the manifest.

    The same input gives the same bytes, whatever the workers and the engine. Raises InputError when
    the spec or a row is bad, `out` holds another build or another process builds in it, a film
    that was read is another now, a worker dies, or the disk is full; and KeyboardInterrupt, with a
    sentence, when it is stopped by one.
    """
    try:
        return go_on(spec_path, out, announce, workers, engine)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped: the same command goes on with what is whole in {out}"
        ) from None


def go_on(spec_path: Path, out: Path, announce: Announce, workers: int, engine: Engine) -> Manifest:
    """What `build` does, until it is stopped."""
    spec, folder = read_spec(spec_path), spec_path.parent
    job = make_job(spec, folder, out)
    run = choose_engine(engine, workers)
    announce(f"reading what {spec_path} names")
    inputs, portions = cut_portions(spec, folder)
    identity = Identity(
        spec=replace(spec, on_bad="skip", max_bad=0),
        inputs=tuple(inputs),
        tokenizer=job.tokenizer_note,
        codec=job.codec_note,
    )
    check_place(out)
    with alone_in(out):
        claim(out, identity)
        made = find_made(out)
        if made is not None:
            check_media(out, folder, portions, workers)
            mend(made, job, portions, run, announce)
            shutil.rmtree(out / NOTES, ignore_errors=True)
            announce(f"{out} is built")
            return made
        found = {portion.shard: find_note(out, portion) for portion in portions}
        done = {shard: note for shard, note in found.items() if note is not None}
        if done:
            announce(f"{len(done)} of {len(portions)} portions are done")
        check_media(out, folder, [p for p in portions if p.shard in done], workers)
        todo = [portion for portion in portions if portion.shard not in done]
        notes = [*collect(run(partial(build_portion, job), todo), job, done, len(portions))]
        made = {note.portion: note for note in (*done.values(), *notes)}
        return conclude(job, [made[portion.shard] for portion in portions])


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


def claim(out: Path, identity: Identity) -> None:
    """Write what the folder is the build of. Raises InputError when it is that of another.

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


def find_made(out: Path) -> Manifest | None:
    """The manifest of a build that was finished, unless it or what belongs to it is not whole."""
    try:
        made = read_manifest(out)
        from_dict(Report, read_json(out / REPORT), str(out / REPORT))
        return made if hash_file(out / TOKENIZER) == made.tokenizer.sha256 else None
    except InputError:
        return None


def mend(
    made: Manifest, job: Job, portions: Sequence[Portion], run: Run, announce: Announce
) -> None:
    """Build again the shards that are not what the manifest says.

    Raises InputError when they come out other than they were.
    """
    shards = {shard.file: shard for shard in made.shards}
    known = [portion for portion in portions if portion.shard in shards]
    harmed = [p for p in known if not is_whole(job.out, shards[p.shard])]
    if not harmed:
        return
    names = ", ".join(portion.shard for portion in harmed)
    announce(f"not what was written, so built again: {names}")
    for note in run(partial(build_portion, job), harmed):
        if note.shard != shards[note.portion]:
            raise InputError(
                f"{job.out / note.portion} comes out other than it was, perhaps by another version "
                f"of a library: remove {job.out} to build all of it again"
            )


def is_whole(out: Path, shard: ShardNote) -> bool:
    """Whether a shard is there and what was written."""
    path = out / shard.file
    return path.is_file() and hash_file(path) == shard.sha256


def find_note(out: Path, portion: Portion) -> PortionNote | None:
    """The note of a portion that is done and whole, else None."""
    path = note_path(out, portion)
    try:
        note = from_dict(PortionNote, read_json(path), str(path))
    except InputError:
        return None
    return note if note.shard is None or is_whole(out, note.shard) else None


def choose_engine(engine: Engine, workers: int) -> Run:
    """How portions are done: here, in processes of this machine, or on a cluster of Ray."""
    if workers < 1:
        raise InputError(f"{workers} workers can do nothing: ask for 1 or more")
    if engine == "ray":
        return partial(run_on_ray, workers=workers)
    return map if workers == 1 else partial(run_in_processes, workers=workers)


def collect(
    notes: Iterable[PortionNote], job: Job, done: dict[str, PortionNote], total: int
) -> Iterator[PortionNote]:
    """Pass each note on as it comes, and show how far the build is.

    Raises InputError, and leaves a report, when more rows are bad than may be.
    """
    bad = [row for note in done.values() for row in note.bad]
    most = job.spec.max_bad if job.spec.on_bad == "skip" else 0
    with make_progress(TextColumn("portions"), BarColumn(), MofNCompleteColumn()) as progress:
        task = progress.add_task("", total=total, completed=len(done))
        for note in notes:
            bad += note.bad
            progress.advance(task)
            if len(bad) > most:
                break
            yield note
    if len(bad) > most:
        write_report(job.out, bad)
        raise InputError(
            f"{len(bad)} bad rows are more than the {most} allowed, the first is {bad[0].origin}: "
            f"{bad[0].why}; {job.out / REPORT} lists them: correct them or raise max_bad"
        )


def conclude(job: Job, notes: Sequence[PortionNote]) -> Manifest:
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
    write_report(job.out, bad)
    with whole(job.out / TOKENIZER) as draft:
        draft.write_bytes(read_tokenizer(job.tokenizer) or b"")
    write_json(job.out / MANIFEST, manifest)
    shutil.rmtree(job.out / NOTES, ignore_errors=True)
    return manifest


def write_report(out: Path, bad: Sequence[Bad]) -> None:
    """The bad rows, as `report.json`."""
    write_json(out / REPORT, Report(bad_rows=len(bad), bad=tuple(bad[:LISTED])))
