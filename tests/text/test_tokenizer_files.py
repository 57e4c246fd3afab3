"""The tokenizer of a folder: all its files are read, and no setting of a training run is."""

import json
from pathlib import Path

import pytest
from sentencepiece_files import SMALL, model_folder
from tokenizers import Tokenizer as Backend
from tokenizers import models

from ringworld.errors import InputError
from ringworld.text.load import load_tokenizer, read_tokenizer
from ringworld.text.sentencepiece import read_sentencepiece
from ringworld.text.tokenizer import Tokenizer
from ringworld.weights.shipped import NANO

WORDS = load_tokenizer(NANO)
BOOK = "The ring went round, and the boats came in. " * 50


def write_json(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


# ---- settings that were saved after training


@pytest.mark.parametrize(
    "saved",
    [
        {"truncation": {"max_length": 8, "strategy": "LongestFirst"}},
        {"padding": {"strategy": {"Fixed": 600}}},
        {"padding": {"strategy": "BatchLongest"}},
    ],
    ids=["truncation", "fixed", "longest"],
)
def test_a_saved_truncation_or_padding_is_ignored(tmp_path: Path, saved: dict) -> None:
    table = json.loads((NANO / "tokenizer.json").read_text())
    for own in saved.values():
        own |= {"direction": "Right", "stride": 0, "pad_id": 0, "pad_type_id": 0}
        own |= {"pad_token": "<unk>", "pad_to_multiple_of": None}
    write_json(tmp_path, "tokenizer.json", table | saved)
    tokenizer = load_tokenizer(tmp_path)
    wanted = WORDS.encode(BOOK)
    assert len(wanted) > 600
    assert tokenizer.encode(BOOK) == tokenizer.encode_spelled(BOOK) == wanted
    batch = tokenizer.backend.encode_batch_fast(["a", BOOK], add_special_tokens=False)
    assert [one.ids for one in batch] == [WORDS.encode("a"), wanted]


def test_a_saved_dropout_is_ignored(tmp_path: Path) -> None:
    table = json.loads((NANO / "tokenizer.json").read_text())
    table["model"]["dropout"] = 0.5
    write_json(tmp_path, "tokenizer.json", table)
    random = Backend.from_file(str(tmp_path / "tokenizer.json"))
    assert random.encode(BOOK).ids != random.encode(BOOK).ids
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(BOOK) == tokenizer.encode_spelled(BOOK) == WORDS.encode(BOOK)


def test_random_segmentation_of_a_unigram_model_is_ignored() -> None:
    letters = [("<unk>", 0.0), ("a", -1.0), ("aa", -1.1), ("aaa", -1.2)]
    model = models.Unigram(letters, 0, False)
    model.alpha, model.nbest_size = 0.1, 8
    random = Backend(model)
    assert len({tuple(random.encode("a" * 40).ids) for _ in range(20)}) > 1
    tokenizer = Tokenizer(random)
    assert len({tuple(tokenizer.encode("a" * 40)) for _ in range(20)}) == 1


# ---- the files of a folder


def test_a_sentencepiece_folder_has_its_added_tokens_and_their_names(tmp_path: Path) -> None:
    tokenizer, plain = load_tokenizer(model_folder(tmp_path / "m")), read_sentencepiece(SMALL)
    first, last = plain.size, plain.size + 1
    assert (tokenizer.id("<|im_start|>"), tokenizer.id("<|im_end|>")) == (first, last)
    assert (tokenizer.bos, tokenizer.eos) == (plain.bos, last)
    said = tokenizer.encode_spelled("a b<|im_start|>a<|im_end|>")
    assert said == [*plain.encode("a b"), first, *plain.encode("a"), last]
    assert tokenizer.special == plain.special | {"<|im_end|>": last}
    assert load_tokenizer(tmp_path / "m" / "tokenizer.model").special == tokenizer.special


def test_added_tokens_are_special_as_the_newer_file_says(tmp_path: Path) -> None:
    folder, size = model_folder(tmp_path / "m"), read_sentencepiece(SMALL).size
    listed = {
        str(size): {"content": "<|im_start|>", "special": True},
        str(size + 1): {"content": "<tool>", "special": False, "normalized": True},
    }
    names = {"added_tokens_decoder": listed, "eos_token": "</s>"}
    write_json(folder, "tokenizer_config.json", names)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.special["<|im_start|>"] == size
    assert "<tool>" not in tokenizer.special
    assert tokenizer.id("<tool>") == size + 1
    assert tokenizer.encode("a<tool>")[-1] == size + 1, "within a word too, as where it was added"
    assert tokenizer.eos == read_sentencepiece(SMALL).eos


def test_a_folder_is_the_bytes_of_one_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "tokenizer.json").write_bytes(
        read_tokenizer(model_folder(tmp_path / "m")) or b""
    )
    said = "abc é cab<|im_end|>"
    again, wanted = load_tokenizer(tmp_path / "again"), load_tokenizer(tmp_path / "m")
    assert again.encode_spelled(said) == wanted.encode_spelled(said)
    assert read_tokenizer(NANO) == (NANO / "tokenizer.json").read_bytes()
    (tmp_path / "none").mkdir()
    assert read_tokenizer(tmp_path / "none") is None
    with pytest.raises(InputError, match=r"no tokenizer at .*/none"):
        load_tokenizer(tmp_path / "none")


def test_a_token_that_a_tokenizer_json_lacks_is_added(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((NANO / "tokenizer.json").read_bytes())
    listed = {"0": {"content": "<unk>"}, "2048": {"content": "<|end|>", "special": True}}
    write_json(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": listed})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special == WORDS.special | {"<|end|>": 2048}
    assert Backend.from_buffer(read_tokenizer(tmp_path) or b"").token_to_id("<|end|>") == 2048


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ({"<|im_end|>": 9000}, "the id 9000, and its tokenizer the id"),
        ({"<s>": 7}, "the id 7, and its tokenizer the id 1"),
        ({"<|im_end|>": "many"}, "not spellings with ids"),
        ([1], "is not whole JSON"),
    ],
)
def test_added_tokens_that_do_not_fit_are_one_sentence(
    tmp_path: Path, listed: object, said: str
) -> None:
    folder = model_folder(tmp_path / "m")
    write_json(folder, "added_tokens.json", listed)
    with pytest.raises(InputError, match=said):
        load_tokenizer(folder)


def test_a_text_opens_as_add_bos_token_says(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    assert load_tokenizer(folder).opening == [1]
    write_json(folder, "tokenizer_config.json", {"add_bos_token": False})
    assert load_tokenizer(folder).opening == []
    write_json(
        folder, "tokenizer_config.json", {"add_bos_token": True, "bos_token": "<|im_start|>"}
    )
    assert load_tokenizer(folder).opening == [load_tokenizer(folder).id("<|im_start|>")]
