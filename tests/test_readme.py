"""What the pages show works: their Python runs, their commands exist, their tree is the tree."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from ringworld.cli.verbs import VERBS
from ringworld.fetch import ASSETS
from ringworld.recipes.codec import nano_codec, shapes_codec
from ringworld.recipes.nano import (
    REACH,
    demo,
    nano_base,
    nano_text,
    nano_world,
    nano_world_chat,
    reach_theta,
)
from ringworld.recipes.play import PLAY_VQGAN, nano_play, play_codec
from ringworld.recipes.recipe import Recipe
from ringworld.recipes.registry import RECIPES, TEMPLATES
from ringworld.train.model_stage import ModelStage
from tests.test_house import RANKS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language; "" are those that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    return [block for named, block in fenced if named == language]


PYTHON = [
    pytest.param(block, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, block in enumerate(blocks(page.read_text(encoding="utf-8"), "python"), 1)
]
COMMANDS = [
    line.split("#")[0].split()
    for page in PAGES
    for block in blocks(page.read_text(encoding="utf-8"), "sh")
    for line in block.splitlines()
    if line.startswith("ringworld ")
]


@pytest.mark.parametrize("block", PYTHON)
def test_the_python_of_the_pages_runs(block: str, tmp_path: Path) -> None:
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", block],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": search},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"^print\(.*\)  # (.+)$", block, re.M)
    assert done.stdout.splitlines()[: len(promised)] == promised


def test_the_readme_shows_python() -> None:
    assert blocks(README, "python")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_commands_of_the_pages_exist(words: list[str]) -> None:
    verb, *rest = words[1:]
    if verb == "train":
        assert rest[0] in RECIPES | TEMPLATES
    elif verb == "fetch":
        assert rest[0] in ASSETS
    else:
        assert verb in VERBS or f"{verb} {rest[0]}" in VERBS


@cache
def known_options(*words: str) -> frozenset[str]:
    """The options that the help of a verb, or of a recipe, lists."""
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "ringworld", *words, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": search, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    return frozenset(re.findall(r"(?<![\w-])--?[a-z][\w.-]*", done.stdout))


def of_any_stage(option: str) -> str:
    """An option of a stage, whichever stage it is."""
    return re.sub(r"^--stages[.](?:all|[0-9]+)[.]", "--stages.N.", option)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_options_of_the_commands_of_the_pages_exist(words: list[str]) -> None:
    verb = words[1:3] if words[1] in ("train", "data", "eval", "generate") else words[1:2]
    given = {of_any_stage(word.split("=")[0]) for word in words if re.match(r"--?[a-z]", word)}
    known = known_options(*verb)
    if verb[-1] in TEMPLATES:  # the stages that it makes are those of any training on shards
        known |= {o for o in known_options("train", "shards") if o.startswith("--stages.")}
    assert given <= {of_any_stage(option) for option in known}


def test_every_command_is_in_the_readme() -> None:
    shown = "\n".join(blocks(README, "sh"))
    for verb in ("train", *VERBS):
        assert f"ringworld {verb} " in shown


def test_the_rooms_of_the_readme_are_the_folders_of_the_package_from_the_ground_up() -> None:
    table = README.split("## The rooms")[1].split("\n## ")[0]
    rooms = re.findall(r"`(\w+)/`", table.replace("`ringworld/`", ""))
    folders = {path.parent.name for path in (ROOT / "ringworld").glob("*/__init__.py")}
    assert set(rooms) == folders
    assert [RANKS[room] for room in rooms] == sorted(RANKS[room] for room in rooms)


def test_the_links_of_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_codec_recipe_is_that_of_the_training_page() -> None:
    recipe, (stage,) = nano_codec().data, nano_codec().stages
    cells = [
        f"{recipe.fps:g} a second",
        f"{recipe.rows} x {recipe.columns}",
        f"{recipe.end:g}",
        str(recipe.mix.batch),
        f"{recipe.mix.shapes:g}",
        str(stage.training.steps),
        f"{stage.training.learning_rate:g}",
        str(stage.training.warmup),
        f"{stage.training.colour:g}",
        str(stage.training.seed),
    ]
    assert f"| {' | '.join(cells)} |" in TRAINING


def test_the_codec_of_shapes_is_that_of_the_training_page() -> None:
    recipe, (stage,) = shapes_codec().data, shapes_codec().stages
    assert stage.model.tiles
    cells = [
        f"{stage.model.codebook:,}",
        f"{recipe.mix.shapes:g}",
        f"{recipe.mix.on_film:g}",
        str(stage.training.steps),
        f"{stage.training.learning_rate:g}",
        str(stage.training.warmup),
        f"{stage.training.worst:g}",
        str(stage.training.seed),
    ]
    assert f"| {' | '.join(cells)} |" in TRAINING


def test_the_codec_of_the_small_world_is_that_of_the_training_page() -> None:
    recipe, (stage, merged) = play_codec().data, play_codec().stages
    cells = [
        f"{stage.model.codebook} -> {PLAY_VQGAN.codebook}",
        str(recipe.batch),
        f"{recipe.scattered:g}",
        str(stage.training.steps),
        f"{stage.training.learning_rate:g}",
        str(stage.training.warmup),
        str(stage.training.soften),
        f"{stage.training.dead:g}",
        str(merged.levels),
        f"{stage.training.worst:g}",
        str(stage.training.seed),
    ]
    assert f"| {' | '.join(cells)} |" in TRAINING


@pytest.mark.parametrize(
    "recipe",
    [nano_base(), nano_text(), nano_world(), nano_world_chat(), nano_play(), demo()],
    ids=lambda recipe: recipe.name,
)
def test_the_stages_of_a_recipe_are_those_of_the_training_page(recipe: Recipe) -> None:
    for stage in recipe.stages:
        if not isinstance(stage, ModelStage):
            continue
        shares = ", ".join(f"{source} {share:g}" for source, share in stage.shares.items())
        cells = [
            stage.name,
            f"{stage.context:,}",
            f"{stage.rope_theta or reach_theta(stage.rope_context or REACH):,.0f}",
            str(stage.batch),
            str(stage.loop.steps),
            f"{stage.tokens:,}",
            f"{stage.optimizer.peak_lr:g}",
            "x".join(map(str, stage.mesh.sizes)),
            shares,
            f"{stage.vision_share:g}",
        ]
        assert f"| {' | '.join(cells)} |" in TRAINING
