// The film beside the conversation: a player, and the frames that the model has seen with their times.

import { spellTime } from "./moments.js";

const $ = (id) => document.getElementById(id);
const SIDE = 96; // pixels of a thumbnail
const MOST_THUMBNAILS = 400; // beyond it frames have times only
let times = [];
let shownUrl = null;
let drawing = 0; // counts the films, so that thumbnails of an earlier one stop

/** A data: URL as a blob: URL, which a player can seek in. */
function toBlobUrl(url) {
  const [head, body] = url.split(",");
  const bytes = Uint8Array.from(atob(body), (c) => c.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: head.slice(5).split(";")[0] }));
}

/** Show a film or a picture ({type, name, url}) without frames; null shows none. */
export function showFilm(medium) {
  drawing += 1;
  times = [];
  $("frames").replaceChildren();
  if (shownUrl) URL.revokeObjectURL(shownUrl);
  shownUrl = medium && medium.type === "video" ? toBlobUrl(medium.url) : null;
  $("film").hidden = !medium;
  $("player").hidden = !shownUrl;
  $("still").hidden = !medium || Boolean(shownUrl);
  $("about-film").textContent = medium ? medium.name : "";
  if (shownUrl) $("player").src = shownUrl;
  else $("player").removeAttribute("src");
  if (medium && !shownUrl) {
    $("still").src = medium.url;
    $("still").alt = medium.name;
  }
}

/** Show the frames that the server took of the film: `seen` has their seconds and tokens. */
export function showFrames(seen, name) {
  if (!shownUrl || seen.type !== "video") return;
  times = seen.seconds;
  const rate = seen.sampled_fps ? `, ${Number(seen.sampled_fps.toFixed(2))} a second` : "";
  $("about-film").textContent =
    `${name}: ${times.length} frames${rate}, ${seen.tokens.toLocaleString("en")} tokens`;
  const rows = times.map((seconds) => {
    const [row, button, canvas] = ["li", "button", "canvas"].map((n) => document.createElement(n));
    canvas.width = canvas.height = SIDE;
    button.type = "button";
    button.setAttribute("aria-label", `Frame at ${spellTime(seconds)}`);
    button.append(canvas, spellTime(seconds));
    button.addEventListener("click", () => goTo(seconds));
    button.addEventListener("keydown", walk);
    row.append(button);
    return row;
  });
  $("frames").replaceChildren(...rows);
  drawThumbnails(++drawing, shownUrl);
}

/** Move the player and the timeline to a time in seconds. */
export function goTo(seconds) {
  if (!shownUrl) return;
  $("player").currentTime = seconds;
  let frame = times.findLastIndex((time) => time <= seconds + 1e-3);
  if (frame < 0 && times.length) frame = 0;
  const buttons = [...$("frames").querySelectorAll("button")];
  buttons.forEach((button, i) => button.setAttribute("aria-current", String(i === frame)));
  buttons[frame]?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/** Arrow keys walk along the timeline. */
function walk(event) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const row = event.currentTarget.parentElement;
  const next = steps[event.key] > 0 ? row.nextElementSibling : row.previousElementSibling;
  next?.firstElementChild.focus();
}

/** Draw the frames one after another, from a second player that nobody sees. */
async function drawThumbnails(own, url) {
  const source = document.createElement("video");
  source.muted = true;
  source.preload = "auto";
  source.src = url;
  const happens = (name) =>
    new Promise((resolve) => {
      source.addEventListener(name, () => resolve(true), { once: true });
      source.addEventListener("error", () => resolve(false), { once: true });
    });
  if (!(await happens("loadeddata"))) return; // a codec that this browser does not play
  const canvases = [...$("frames").querySelectorAll("canvas")].slice(0, MOST_THUMBNAILS);
  for (const [i, canvas] of canvases.entries()) {
    if (own !== drawing) return;
    const sought = happens("seeked");
    source.currentTime = times[i] + 1e-3;
    if (!(await sought)) return;
    const side = Math.min(source.videoWidth, source.videoHeight);
    const [x, y] = [(source.videoWidth - side) / 2, (source.videoHeight - side) / 2];
    canvas.getContext("2d").drawImage(source, x, y, side, side, 0, 0, SIDE, SIDE);
  }
}
