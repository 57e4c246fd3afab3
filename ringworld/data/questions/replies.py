"""What a model has answered, kept on disk: a request that was answered once is never sent again.

An entry is named by the sha256 of the request's body, so that another prompt, model or limit is
another entry, and moving the endpoint is not. It holds the reply alone. Entries are whole or
absent; a damaged one is absent. The first two hex digits name its folder, so that a million entries
are 256 folders of four thousand. The folder is its owner's alone: replies tell of the documents.
"""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path

from ringworld.data.questions.completion import Reply
from ringworld.files import whole, writing_to

PRIVATE = 0o700


class Replies:
    """The replies of a folder; made when the first is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, body: bytes) -> Reply | None:
        """The reply to this request, if it was kept whole."""
        try:
            kept = json.loads(self._path(body).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        types = {field.name: field.type for field in fields(Reply)}
        if not isinstance(kept, dict) or {k: type(v) for k, v in kept.items()} != types:
            return None
        return Reply(**kept)

    def keep(self, body: bytes, reply: Reply) -> None:
        """Write the reply. Raises InputError when the disk is full or fails."""
        with writing_to(self.folder):
            self.folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        with whole(self._path(body)) as draft:
            draft.write_text(json.dumps(asdict(reply)), "utf-8")

    def _path(self, body: bytes) -> Path:
        name = hashlib.sha256(body).hexdigest()
        return self.folder / name[:2] / f"{name}.json"
