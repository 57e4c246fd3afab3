"""Several folders of token shards as one sequence of examples, with the names of their sources.

A source is called by its name, or by `FOLDER/NAME` where two folders have one of that name; a whole
folder is called by its own. FOLDER is the last part of the path.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from ringworld.data.corpora.shards import Shards
from ringworld.data.example import Example
from ringworld.data.packing.mix import draw_forms
from ringworld.errors import InputError


class ShardFolders:
    """The examples of several folders of shards, one folder after another.

    Raises InputError when a folder is no data, or two have the same last part of their path.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.parts = [Shards(folder) for folder in folders]
        self._names = names = [shards.folder.name for shards in self.parts]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(
                f"two folders of shards are called {twice[0]}: rename one, so that their sources "
                "can be told apart"
            )
        self._first = np.cumsum([0, *map(len, self.parts)])
        self._sources = [
            (part, source)
            for part, shards in enumerate(self.parts)
            for source in dict.fromkeys(shard.source for shard in shards.manifest.shards)
        ]

    def __len__(self) -> int:
        """The number of examples in all folders."""
        return int(self._first[-1])

    def __getitem__(self, i: int) -> Example:
        """Example i, those of the first folder first."""
        part = int(np.searchsorted(self._first, i, side="right")) - 1
        return self.parts[part][i - int(self._first[part])]

    @property
    def lengths(self) -> Int[np.ndarray, "N"]:
        """The tokens of every example, in order, without reading them."""
        return np.concatenate([np.zeros(0, np.int64), *(shards.lengths for shards in self.parts)])

    @property
    def have_forms(self) -> bool:
        """Whether any source has several forms of each example."""
        return any(shards.manifest.forms for shards in self.parts)

    def draw(self, name: str | None, seed: int) -> Int[np.ndarray, "n"]:
        """The numbers of the examples that `name` means; of several forms `seed` draws one.

        None means all. Raises InputError when it means nothing, or sources of more than one folder.
        """
        return np.concatenate(
            [
                self._first[part]
                + draw_forms(shards.indices(source), shards.manifest.forms.get(source, 1), seed)
                for part, source in (self._sources if name is None else self._find(name))
                for shards in [self.parts[part]]
            ]
        )

    def _find(self, name: str) -> list[tuple[int, str]]:
        """The number of the folder and the source, of each source that `name` means."""
        folder, _, wanted = name.rpartition("/")
        found = [
            (part, source)
            for part, source in self._sources
            if source == wanted and folder in ("", self._names[part])
        ]
        if len(found) > 1:
            there = [f"{self._names[part]}/{source}" for part, source in found]
            raise InputError(f"the source {name} is in several folders: use {' or '.join(there)}")
        whole = [(part, source) for part, source in self._sources if self._names[part] == name]
        if not found and not whole:
            known = sorted(source for _, source in self._sources)
            raise InputError(
                f"{', '.join(str(shards.folder) for shards in self.parts)} has no example of a "
                f"source {name}: use {', '.join(dict.fromkeys(known)) or 'another folder'}"
            )
        return found or whole
