// Pictures and clips from words.

import { drawClip, drawPictures } from "./api.js";
import { attach } from "./composer.js";
import { $, button, make } from "./elements.js";
import { saveBlob, toBlob } from "./files.js";
import { openTab } from "./tabs.js";

const SEEDS = 2 ** 31;
let model = null;
let running = null; // the AbortController of what is being drawn

const FIELDS = { guidance: "guidance_scale", "draw-temperature": "temperature", "top-k": "top_k", "min-p": "min_p" };

/** Use this model from now on; empty fields mean what it says in `drawing`. */
export function setDrawer(found) {
  model = found;
  for (const [id, name] of Object.entries(FIELDS)) $(id).placeholder = found.drawing[name];
  $("drawing").hidden = !found.vision;
  $("draws-nothing").hidden = found.vision;
}

function tellDrawing(words, failed = false) {
  $("draw-status").textContent = words;
  $("draw-status").classList.toggle("failed", failed);
}

function readWish() {
  const number = (id, own) => ($(id).value === "" ? own : Number($(id).value));
  return {
    kind: $("kind-clip").checked ? "clip" : "picture",
    prompt: $("wish").value.trim(),
    count: number("count", $("kind-clip").checked ? 6 : 1),
    seed: number("seed", Math.floor(Math.random() * SEEDS)),
    ...Object.fromEntries(Object.entries(FIELDS).map(([id, name]) => [name, number(id, model.drawing[name])])),
  };
}

function useWish(wish) {
  $(wish.kind === "clip" ? "kind-clip" : "kind-picture").checked = true;
  showKind();
  $("wish").value = wish.prompt;
  for (const [id, name] of Object.entries({ count: "count", seed: "seed", ...FIELDS })) $(id).value = wish[name];
  $("wish").focus();
}

function showKind() {
  const clip = $("kind-clip").checked;
  $("count-name").textContent = clip ? "Frames" : "Pictures";
  $("count").max = clip ? 1024 : 4;
  $("count").placeholder = clip ? "6" : "1";
  $("wish").placeholder = clip ? "a red circle moves left" : "a red circle at the left";
  if (!clip && Number($("count").value) > 4) $("count").value = "";
}

async function draw(event) {
  event.preventDefault();
  const { kind, count, ...body } = readWish();
  if (running) return;
  if (!body.prompt) {
    tellDrawing("say first what is to be drawn", true);
    return $("wish").focus();
  }
  running = new AbortController();
  setBusy(true);
  const place = showDrawing({ kind, count, ...body });
  try {
    if (kind === "clip") await fillClip(place, { ...body, frames: count });
    else await fillPictures(place, { ...body, n: count });
    tellDrawing(kind === "clip" ? "the clip is drawn" : "drawn");
  } catch (error) {
    const stopped = error.name === "AbortError";
    tellDrawing(stopped ? "stopped" : error.message, !stopped);
    if (!place.shown.childElementCount) place.whole.remove();
  }
  running = null;
  setBusy(false);
}

function setBusy(busy) {
  $("draw").hidden = busy;
  $("stop-drawing").hidden = !busy;
  $(busy ? "stop-drawing" : "draw").focus();
  $("no-drawings").hidden = $("drawings").childElementCount > 0;
}

/** An empty drawing with its words, first in the list: {whole, shown, deeds}. */
function showDrawing(wish) {
  const shown = make("div", { className: "shown" });
  const deeds = make("div", { className: "tools" });
  const numbers = `seed ${wish.seed} · guidance ${wish.guidance_scale} · temperature ${wish.temperature} · top-k ${wish.top_k} · min-p ${wish.min_p}`;
  const caption = make("figcaption", {}, make("q", {}, wish.prompt), make("span", { className: "quiet" }, numbers));
  deeds.append(button("Use again", () => useWish(wish), { icon: "again", words: "Use again" }));
  const whole = make("li", {}, make("figure", {}, shown, caption, deeds));
  $("drawings").prepend(whole);
  $("no-drawings").hidden = true;
  return { whole, shown, deeds, wish };
}

function showPicture(data, alt) {
  return make("img", { src: `data:image/png;base64,${data}`, alt, className: "drawn" });
}

/** Buttons to save a drawing and to ask about it; `which` tells it from others of the same words. */
function makeDeeds({ prompt, seed }, data, type, which = "") {
  const ending = type.split("/")[1];
  const name = `${prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}-${seed}${which}.${ending}`;
  const blob = toBlob(`data:${type};base64,${data}`, type.split("/")[0]);
  const save = button("Download", () => saveBlob(name, blob), { icon: "save", words: "Download" });
  const asking = async () => {
    openTab("talk");
    await attach([new File([blob], name, { type })]);
  };
  return [save, button("Ask about it", asking, { icon: "talk", words: "Ask about it" })];
}

async function fillPictures(place, body) {
  tellDrawing("drawing");
  const drawn = await drawPictures({ model: model.id, ...body }, running.signal);
  place.shown.classList.add("several");
  for (const [i, data] of drawn.entries()) {
    const which = drawn.length > 1 ? `-${i + 1}` : "";
    const deeds = make("div", { className: "tools" }, ...makeDeeds(body, data, "image/png", which));
    place.shown.append(make("div", {}, showPicture(data, `Drawn: ${body.prompt}`), deeds));
  }
}

/** Frames are shown as they come, and the whole clip in a player at the end. */
async function fillClip(place, body) {
  tellDrawing(`drawing frame 1 of ${body.frames}`);
  const strip = make("ol", { className: "strip" });
  for (let i = 0; i < body.frames; i++) strip.append(make("li", {}, make("span", { className: "waiting" })));
  const take = (event) => {
    if (event.b64_mp4) return finish(event.b64_mp4);
    if (!strip.isConnected) place.shown.append(make("div", { className: "stage" }), strip);
    const frame = showPicture(event.b64_json, `Frame ${event.frame} of ${event.frames}: ${body.prompt}`);
    strip.children[event.frame - 1].replaceChildren(frame);
    place.shown.firstElementChild.replaceChildren(make("img", { src: frame.src, alt: "", className: "drawn" }));
    if (event.frame < event.frames) tellDrawing(`drawing frame ${event.frame + 1} of ${event.frames}`);
  };
  const finish = (data) => {
    const moving = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    const src = URL.createObjectURL(toBlob(`data:video/mp4;base64,${data}`, "video"));
    const player = make("video", { src, controls: true, loop: true, muted: true, autoplay: moving, playsInline: true, className: "drawn" });
    player.setAttribute("aria-label", `Drawn clip: ${body.prompt}`);
    place.shown.firstElementChild.replaceChildren(player);
    place.deeds.prepend(...makeDeeds(body, data, "video/mp4"));
  };
  await drawClip({ model: model.id, ...body }, running.signal, take, () => {});
}

/** Make the tab work. */
export function listenToDrawing() {
  $("drawing").addEventListener("submit", draw);
  $("wish").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("drawing").requestSubmit();
  });
  for (const id of ["kind-clip", "kind-picture"]) $(id).addEventListener("change", showKind);
  $("stop-drawing").addEventListener("click", stopDrawing);
  showKind();
}

/** Stop what is being drawn. */
export function stopDrawing() {
  running?.abort();
}
