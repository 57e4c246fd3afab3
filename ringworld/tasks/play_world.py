"""A small world with actions and exact truth: a player, boxes that it pushes, goals, and walls.

A level is CELLS x CELLS cells, its rim all wall. An action moves the player by one cell. A box in
the way moves along, unless a wall or another box is behind it; then, as before a wall, nothing
moves. What a step does depends on the level and the action alone. A frame shows each cell as one of
seven tiles, so the whole level can be read off a frame, and the action off two.
"""

import zlib
from collections import deque

import numpy as np
from jaxtyping import UInt8

CELLS = 8  # cells in a row, and rows
TILE_SIDE = 8  # pixels of a cell's side
# The step of each action, as rows down and columns right.
ACTIONS: dict[str, tuple[int, int]] = {
    "up": (-1, 0),
    "down": (1, 0),
    "left": (0, -1),
    "right": (0, 1),
    "stay": (0, 0),
}
FLOOR, WALL, GOAL, PLAYER, BOX, PLAYER_ON_GOAL, BOX_ON_GOAL = range(7)
PLAYERS, BOXES = (PLAYER, PLAYER_ON_GOAL), (BOX, BOX_ON_GOAL)
GOALS = (GOAL, PLAYER_ON_GOAL, BOX_ON_GOAL)
MOST_WALLS = 8  # inside the rim
MOST_BOXES = 2
MOST_GOALS = 2
GOAL_ODDS = 4.0  # how much likelier a thing begins on a goal than on another cell
# One level in so many is held out: nothing is trained on an episode that begins with it.
HELD_OUT = 8

PlayLevel = UInt8[np.ndarray, "8 8"]

TILE_COLOURS = {
    "_": (36, 40, 56),
    "w": (136, 144, 160),
    "W": (100, 106, 122),
    "m": (214, 70, 190),
    "M": (130, 44, 120),
    "y": (250, 220, 50),
    "o": (206, 104, 36),
    "O": (140, 66, 20),
    "p": (240, 246, 255),
    "g": (60, 200, 90),
    "G": (28, 120, 54),
}
_BARE = "________"
TILE_PICTURES = (
    (_BARE,) * 8,
    ("wwwwwwwW",) * 7 + ("WWWWWWWW",),
    ("_MMMMMM_", *("MmmmmmmM",) * 6, "_MMMMMM_"),
    (_BARE, "__yyyy__", *("_yyyyyy_",) * 4, "__yyyy__", _BARE),
    ("OOOOOOOO", *("OooooooO",) * 6, "OOOOOOOO"),
    ("MM____MM", "M_pppp_M", *("_pppppp_",) * 4, "M_pppp_M", "MM____MM"),
    ("GGGGGGGG", *("GggggggG",) * 6, "GGGGGGGG"),
)
TILES = np.array(
    [[[TILE_COLOURS[letter] for letter in row] for row in picture] for picture in TILE_PICTURES],
    np.uint8,
)


def is_level(level: PlayLevel) -> bool:
    """Whether the rim is all wall and there is one player inside."""
    inside = level[1:-1, 1:-1]
    rim = (level == WALL).sum() - (inside == WALL).sum() == CELLS**2 - (CELLS - 2) ** 2
    return bool(rim and np.isin(level, PLAYERS).sum() == 1)


def sample_level(rng: np.random.Generator) -> PlayLevel:
    """A random level: up to MOST_WALLS walls inside, one or two boxes, one or two goals.

    The player and the boxes may begin on goals.
    """
    level = np.full((CELLS, CELLS), WALL, np.uint8)
    inside = np.full((CELLS - 2) ** 2, FLOOR, np.uint8)
    inside[rng.permutation(len(inside))[: rng.integers(MOST_WALLS + 1)]] = WALL
    free = np.flatnonzero(inside == FLOOR)
    inside[rng.choice(free, rng.integers(1, MOST_GOALS + 1), replace=False)] = GOAL
    odds = np.where(inside[free] == GOAL, GOAL_ODDS, 1.0)
    things = rng.integers(2, MOST_BOXES + 2)
    player, *boxes = rng.choice(free, things, replace=False, p=odds / odds.sum())
    inside[player] = PLAYER_ON_GOAL if inside[player] == GOAL else PLAYER
    for box in boxes:
        inside[box] = BOX_ON_GOAL if inside[box] == GOAL else BOX
    level[1:-1, 1:-1] = inside.reshape(CELLS - 2, CELLS - 2)
    return level


def is_held_out(level: PlayLevel) -> bool:
    """Whether nothing may be trained on episodes that begin with this level."""
    return zlib.crc32(level.tobytes()) % HELD_OUT == 0


def draw_start(rng: np.random.Generator, *, held_out: bool) -> PlayLevel:
    """A random level of those that are held out, or of the others."""
    while is_held_out(level := sample_level(rng)) != held_out:
        pass
    return level


def find_player(level: PlayLevel) -> tuple[int, int]:
    """The row and the column of the player."""
    row, column = np.argwhere(np.isin(level, PLAYERS))[0].tolist()
    return row, column


def step(level: PlayLevel, action: str) -> PlayLevel:
    """The level after an action; the same level where nothing can move."""
    down, right = ACTIONS[action]
    row, column = find_player(level)
    ahead, behind = (row + down, column + right), (row + 2 * down, column + 2 * right)
    pushes = level[ahead] in BOXES
    if action == "stay" or level[ahead] == WALL:
        return level
    if pushes and level[behind] not in (FLOOR, GOAL):
        return level
    after = level.copy()
    if pushes:
        after[behind] = BOX_ON_GOAL if level[behind] in GOALS else BOX
    after[ahead] = PLAYER_ON_GOAL if level[ahead] in GOALS else PLAYER
    after[row, column] = GOAL if level[row, column] in GOALS else FLOOR
    return after


def draw_level(level: PlayLevel) -> UInt8[np.ndarray, "64 64 3"]:
    """The frame that shows a level."""
    return TILES[level].transpose(0, 2, 1, 3, 4).reshape(CELLS * TILE_SIDE, CELLS * TILE_SIDE, 3)


def read_level(frame: UInt8[np.ndarray, "64 64 3"]) -> PlayLevel:
    """What each cell of a frame shows: the tile whose pixels are nearest by their squares."""
    cells = frame.reshape(CELLS, TILE_SIDE, CELLS, TILE_SIDE, 3).swapaxes(1, 2).astype(np.int64)
    apart = ((cells[:, :, None] - TILES.astype(np.int64)) ** 2).sum((3, 4, 5))
    return apart.argmin(-1).astype(np.uint8)


def possible_actions(before: PlayLevel, after: PlayLevel) -> tuple[str, ...]:
    """The actions that make `after` of `before`: several where nothing moves, none if none does."""
    if not is_level(before):
        return ()
    return tuple(action for action in ACTIONS if np.array_equal(step(before, action), after))


def count_goals(level: PlayLevel) -> tuple[int, int]:
    """How many goals have a box on them, and how many there are."""
    return int((level == BOX_ON_GOAL).sum()), int(np.isin(level, GOALS).sum())


def find_path(level: PlayLevel, to: tuple[int, int]) -> list[str]:
    """The fewest moves that bring the player to a cell without a push; empty without a way."""
    start = find_player(level)
    came: dict[tuple[int, int], tuple[tuple[int, int], str]] = {}
    seen, edge = {start}, deque([start])
    while edge and to not in seen:
        row, column = edge.popleft()
        for action, (down, right) in ACTIONS.items():
            there = (row + down, column + right)
            if there in seen or level[there] not in (FLOOR, GOAL):
                continue
            seen.add(there)
            came[there] = ((row, column), action)
            edge.append(there)
    moves: list[str] = []
    while to in came and to != start:
        to, action = came[to]
        moves.append(action)
    return moves[::-1]
