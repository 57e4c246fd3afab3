"""The tokenizer of a model folder, from all the files that say something about it.

    tokenizer.json           the whole tokenizer
    tokenizer.model          SentencePiece's, read where there is no tokenizer.json
    tokenizer_config.json    the tokens around a text, and tokens added to the tokenizer's own
    special_tokens_map.json  the tokens around a text, in older folders
    added_tokens.json        the added tokens, in older folders

Ids are those that transformers gives. A token that a tokenizer.json has already is as it says
there; one that is missing is added, provided that it gets the id that the folder gives it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from ringworld.errors import BadFileError
from ringworld.files import read_json_object
from ringworld.text.sentencepiece import load_sentencepiece
from ringworld.text.tokenizer import Tokenizer

TOKENIZER = "tokenizer.json"
SENTENCEPIECE = "tokenizer.model"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model folder, of a tokenizer.json or of a tokenizer.model.

    Raises BadFileError when a file is missing or broken, or the files contradict each other.
    """
    file = _find(path)
    if file is None or not file.is_file():
        raise BadFileError(
            f"there is no tokenizer at {path}: give a model folder with a tokenizer.json or a "
            "tokenizer.model"
        )
    if file.suffix == ".model":
        words = load_sentencepiece(file)
        ends = {"bos_token": words.bos_name, "eos_token": words.eos_name}
    else:
        words, ends = Tokenizer(parse_tokenizer(file.read_bytes(), str(file))), {}
    add_tokens(words.backend, file.parent, replaces=file.suffix == ".model")
    return Tokenizer(words.backend, ends | read_names(file.parent))


def read_tokenizer(path: Path) -> bytes | None:
    """The same tokenizer as the bytes of a tokenizer.json; None where a folder has none.

    They are the bytes of the tokenizer.json that is there, unless tokens are added to it. Raises
    BadFileError as `load_tokenizer` does.
    """
    file = _find(path)
    if file is None:
        return None
    if file.suffix != ".model" and file.is_file():
        data = file.read_bytes()
        backend = parse_tokenizer(data, str(file)) if _read_added(file.parent) else None
        if backend is None or not add_tokens(backend, file.parent, replaces=False):
            return data
        return backend.to_str().encode()
    return load_tokenizer(path).backend.to_str().encode()


def parse_tokenizer(data: bytes, name: str) -> Backend:
    """The tokenizer of a tokenizer.json's bytes. Raises BadFileError, with `name`, for others."""
    try:
        return Backend.from_buffer(data)
    except Exception:
        raise BadFileError(
            f"{name} is not a tokenizer.json: fetch or copy the model again"
        ) from None


def read_names(folder: Path) -> dict[str, Any]:
    """The entries of a folder's tokenizer_config.json, and of its special_tokens_map.json those
    that the first lacks.

    Raises BadFileError when one of them is broken.
    """
    names = _read_table(folder / SPECIAL_TOKENS) | _read_table(folder / TOKENIZER_CONFIG)
    return {key: value for key, value in names.items() if value != ""}  # LLaMA's first folders


def add_tokens(backend: Backend, folder: Path, *, replaces: bool) -> int:
    """Add the tokens that a folder's files list and `backend` lacks; returns how many.

    With `replaces`, as behind a tokenizer.model, a piece of the vocabulary that is listed becomes a
    token too, and all of them are found in a text as it is written, before its spaces are replaced.
    Raises BadFileError when a token would get another id than the folder gives it.
    """
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    added = 0
    for i, token in sorted(_read_added(folder).items()):
        found = backend.token_to_id(token.content)
        if found is not None and not replaces:
            continue
        if token.content not in known:
            added += backend.add_tokens([_raw(token) if replaces else token])
        given = backend.token_to_id(token.content)
        if given != i:
            raise BadFileError(
                f"{folder} gives the added token {token.content!r} the id {i}, and its tokenizer "
                f"the id {given}: copy the model again, all files of one tokenizer"
            )
    return added


def _find(path: Path) -> Path | None:
    """The file that holds the tokenizer of a folder, or `path` itself where that is no folder."""
    if not path.is_dir():
        return path
    return next((path / n for n in (TOKENIZER, SENTENCEPIECE) if (path / n).is_file()), None)


def _read_added(folder: Path) -> dict[int, AddedToken]:
    """The added tokens of a folder, by id. Raises BadFileError when their files are broken."""
    listed = _read_table(folder / TOKENIZER_CONFIG).get("added_tokens_decoder")
    if listed:
        return {_id(key, folder): _token(said, folder) for key, said in _items(listed, folder)}
    older = _read_table(folder / ADDED_TOKENS)
    special = _special_names(read_names(folder)) if older else set()
    return {
        _id(i, folder): AddedToken(name, special=name in special, normalized=False)
        for name, i in older.items()
        if name
    }


def _token(said: Any, folder: Path) -> AddedToken:
    """An entry of `added_tokens_decoder`."""
    flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
    table = said if isinstance(said, Mapping) else {}
    own = {flag: table[flag] for flag in flags if isinstance(table.get(flag), bool)}
    content = table.get("content")
    if not isinstance(content, str) or not content:
        raise _broken(folder)
    return AddedToken(content, **{"normalized": not own.get("special", False), **own})


def _raw(token: AddedToken) -> AddedToken:
    """The same token, looked for in the text before it is normalized."""
    return AddedToken(
        token.content,
        special=token.special,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
        normalized=False,
    )


def _special_names(names: Mapping[str, Any]) -> set[str]:
    """The spellings under the keys that name special tokens, such as `eos_token`."""
    said = [value for key, value in names.items() if key.endswith("_token")]
    more = names.get("additional_special_tokens")
    said += more if isinstance(more, list) else []
    spelled = [one.get("content") if isinstance(one, Mapping) else one for one in said]
    return {one for one in spelled if isinstance(one, str)}


def _items(listed: Any, folder: Path) -> list[tuple[Any, Any]]:
    if not isinstance(listed, Mapping):
        raise _broken(folder)
    return list(listed.items())


def _id(said: Any, folder: Path) -> int:
    """A token id, written as a number or as its digits."""
    if isinstance(said, str) and said.isdecimal() and len(said) < 10:
        return int(said)
    if type(said) is not int or not 0 <= said < 1 << 31:
        raise _broken(folder)
    return said


def _broken(folder: Path) -> BadFileError:
    return BadFileError(
        f"the added tokens that the files of {folder} list are not spellings with ids: fetch or "
        "copy the model again"
    )


def _read_table(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty without one. Raises BadFileError if it is none."""
    return read_json_object(file) if file.is_file() else {}
