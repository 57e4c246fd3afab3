"""The models that ship are known by their names."""

from pathlib import Path

import pytest

from ringworld.errors import InputError
from ringworld.weights.open import find_model, hash_model, open_model
from ringworld.weights.shipped import ASSETS, SHIPPED_MODELS


@pytest.mark.parametrize("name", SHIPPED_MODELS)
def test_a_shipped_model_is_opened_by_its_name(name: str) -> None:
    folder = SHIPPED_MODELS[name]
    opened = open_model(Path(name))
    sees = opened.config.vocabulary.codes > 0
    assert opened.home == folder and opened.codec == (folder / "codec" if sees else None)
    assert sees == (name != "nano-text")
    assert hash_model(Path(name)) == hash_model(folder) is not None


def test_a_folder_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert find_model(Path("nano")) == Path("nano")
    with pytest.raises(InputError, match=r"name of a model \(nano, nano-text, "):
        open_model(Path("nano-word"))


def test_what_ships_is_small() -> None:
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) < 24e6
