// A world to play with: what the model dreams of each action, and the truth beside it.

import { beginGame, playAction } from "./api.js";
import { $, button, make } from "./elements.js";

const SEEDS = 2 ** 32;
const KEYS = { ArrowUp: "up", ArrowDown: "down", ArrowLeft: "left", ArrowRight: "right", " ": "stay" };
const MOST_WAITING = 4; // presses that wait for the frame before theirs
// Where a key has a meaning of its own.
const OWN_ARROWS = "input:not([type=checkbox]), textarea, [role=tab]";
const OWN_SPACE = "input, textarea, button";
let model = null;
let game = null; // as the server told it last
let asking = false;
const waiting = []; // what is asked next; one request at a time is sent

/** Use this model from now on. A model without actions has no such view. */
export function setPlayed(found) {
  model = found;
  const actions = found.actions ?? [];
  $("tab-play").hidden = !actions.length;
  const called = (action) => action[0].toUpperCase() + action.slice(1);
  $("pad").replaceChildren(
    ...actions.map((action) => {
      const made = button(called(action), () => act(action), { icon: action });
      made.classList.add(action);
      return made;
    }),
  );
}

/** Begin a level where none was begun. */
export function startPlaying() {
  if (!game && !asking) beginLevel();
}

function tellPlay(words, kind = "") {
  $("play-status").textContent = words;
  $("play-status").className = kind;
}

function beginLevel() {
  const chosen = $("level-seed");
  const seed = chosen.value === "" ? Math.floor(Math.random() * SEEDS) : Number(chosen.value);
  waiting.length = 0;
  tellPlay("dreaming the first frame");
  ask(() => beginGame({ model: model.id, seed }));
}

/** Do an action, behind those that wait; a key that is held down adds none of them. */
function act(action, held = false) {
  if (!game || (asking && (held || waiting.length >= MOST_WAITING))) return;
  ask(() => playAction(game.id, action));
}

async function ask(work) {
  waiting.push(work);
  if (asking) return;
  asking = true;
  try {
    while (waiting.length) show(await waiting.shift()());
  } catch (error) {
    waiting.length = 0;
    tellPlay(error.message, "failed");
  }
  asking = false;
}

function show(told) {
  game = told;
  for (const [name, url] of Object.entries({ dream: told.frame, truth: told.truth })) {
    $(name).src = url;
    $(name).alt = `The ${name} after ${told.step === 1 ? "1 step" : `${told.step} steps`}`;
  }
  $("world").classList.toggle("differs", !told.agrees);
  const step = `step ${told.step}, ${told.action}`;
  if (!told.step) tellPlay(`level ${told.seed} begins`);
  else if (told.agrees) tellPlay(`${step}: agrees with the truth`, "agrees");
  else tellPlay(`${step}: differs from the truth`, "failed");
  const counts = {
    Level: told.seed,
    Steps: told.step,
    "Frames that agree": `${told.agreed} of ${told.step}`,
    "Boxes on goals": `${told.boxes_on_goals} of ${told.goals}`,
    "Passes for this frame": told.passes,
  };
  const rows = Object.entries(counts).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, `${value}`)));
  $("play-counts").replaceChildren(...rows);
}

function takeKey(event) {
  const action = KEYS[event.key];
  if (!action || $("view-play").hidden || document.querySelector("dialog[open]")) return;
  if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
  if (event.target.closest(action === "stay" ? OWN_SPACE : OWN_ARROWS)) return;
  event.preventDefault();
  act(action, event.repeat);
}

/** Make the view work. */
export function listenToPlay() {
  document.addEventListener("keydown", takeKey);
  $("level").addEventListener("submit", (event) => {
    event.preventDefault();
    beginLevel();
    $("world").focus({ preventScroll: true });
  });
  $("show-truth").addEventListener("change", () => {
    $("truth-shown").hidden = !$("show-truth").checked;
  });
  // Who opens the view by hand goes on with the arrow keys; by the keyboard they walk the tabs.
  $("tab-play").addEventListener("click", (event) => {
    if (event.detail) $("world").focus({ preventScroll: true });
  });
}
