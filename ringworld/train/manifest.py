"""The integrity manifest: what a checkpoint holds, with the hash of every file.

It is the last file written into a checkpoint and the first one read. A folder without a valid
manifest is not a checkpoint. The manifest has a hash of its own content too, so that a flipped bit
in it is detected.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ringworld.distributed import exchange_texts, is_first, own_part
from ringworld.files import hash_file, sync

MANIFEST_NAME = "manifest.json"
SCHEMA = 1


class Damaged(Exception):
    """A checkpoint that is not what was written; says in a few words what is wrong with it."""


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Make `folder` durable and describe it: every file is flushed, hashed and listed.

    `content` is JSON; "schema" and "files" (size in bytes and sha256, by path) are added to it.
    Where several processes compute together, all call this: each reads its share of the files, and
    process 0 writes the manifest.
    """
    files: dict[str, Any] = {}
    for path in own_part(sorted(_files(folder))):
        sync(path)
        files[_name(folder, path)] = _fingerprint(path)
    for told in exchange_texts(json.dumps(files)):
        files |= json.loads(told)
    if not is_first():
        return
    files = {name: files[name] for name in sorted(files)}
    content = {"schema": SCHEMA, **content, "files": files}
    with open(folder / MANIFEST_NAME, "w") as file:
        json.dump({"content": content, "sha256": _digest(content)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of the folder's manifest.

    Raises Damaged when it is missing, is not what was written, or has an unknown schema.
    """
    try:
        whole = json.loads((folder / MANIFEST_NAME).read_bytes())
        content, digest = whole["content"], whole["sha256"]
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST_NAME} is missing") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise Damaged(f"{MANIFEST_NAME} cannot be read") from None
    if digest != _digest(content):
        raise Damaged(f"{MANIFEST_NAME} was changed after it was written")
    if content["schema"] != SCHEMA:
        raise Damaged(
            f"{MANIFEST_NAME} has schema {content['schema']} and this program reads {SCHEMA}"
        )
    return content


def verify(folder: Path, content: dict[str, Any]) -> None:
    """Compare every file listed in `content` with its hash.

    Where several processes compute together, all call this, and each compares its share. Raises
    Damaged, in all of them, naming a file that is missing, has another size or another hash.
    """
    said = [told for told in exchange_texts(_find_damage(folder, content)) if told]
    if said:
        raise Damaged(said[0])


def _find_damage(folder: Path, content: dict[str, Any]) -> str:
    """What is wrong with this process's share of the files, or nothing."""
    own = own_part(list(content["files"].items()))
    for name, stored in own:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != stored["size"]:
            return f"{name} has {path.stat().st_size} bytes and not {stored['size']}"
    for name, stored in own:
        if _fingerprint(folder / name) != stored:
            return f"the bytes of {name} have changed"
    return ""


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": hash_file(path)}


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
