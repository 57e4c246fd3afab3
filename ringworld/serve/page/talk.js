// The messages of the open conversation, and what can be done with each.

import { answer, isAnswering, regenerate } from "./asking.js";
import { startEdit } from "./composer.js";
import { keep, openFork, openOne } from "./conversations.js";
import { $, button, make } from "./elements.js";
import { goTo, showFilm, showFrames } from "./film.js";
import { showMeter } from "./meter.js";
import { showWords } from "./moments.js";
import { branches, choose, mediaOf, path } from "./tree.js";

const NEAR_END = 160; // pixels from the end within which new words are followed
let model = null;
let newest = ""; // the conversation and the film that it has last
let pending = null; // the message that is drawn anew at the next frame

/** Use this model from now on. */
export function setModel(found) {
  model = found;
  showConversation(openOne());
}

/** Ask what stands in the composer: {text, files, parent}. */
export function askNew(conversation, question) {
  answer(conversation, question, model);
}

/** Show a conversation from its first message to its last, and its film. */
export function showConversation(conversation) {
  if (conversation !== openOne()) return;
  const messages = path(conversation);
  $("welcome").hidden = messages.length > 0;
  $("messages").replaceChildren(...messages.map((message) => showMessage(conversation, message)));
  const busy = isAnswering();
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  $("export").disabled = !messages.length || busy;
  const counted = messages.findLast((message) => message.tokens);
  showMeter(counted?.tokens ?? null, model?.max_model_len);
  const medium = mediaOf(messages).at(-1) ?? null;
  const latest = `${conversation.id} ${medium?.key}`;
  if (latest === newest) showFrames(); // the person may have chosen another film
  else showFilm(medium);
  newest = latest;
  $("fork-film").hidden = busy || !findFilmAnswer(messages);
  $("talk").scrollTop = $("talk").scrollHeight;
}

/** Show the message that is being written as it is now. */
export function showGrown(conversation, message) {
  if (conversation !== openOne()) return;
  if (!pending) requestAnimationFrame(draw);
  pending = { conversation, message };
}

function draw() {
  const { conversation, message } = pending;
  pending = null;
  if (conversation !== openOne()) return;
  const place = $("messages").lastElementChild;
  if (place?.dataset.id !== message.id) return;
  const { scrollTop, clientHeight, scrollHeight } = $("talk");
  place.replaceWith(showMessage(conversation, message));
  if (scrollHeight - scrollTop - clientHeight < NEAR_END) $("talk").scrollTop = $("talk").scrollHeight;
}

/** The first answer behind a film or a picture: up to it conversations can share their prefix. */
function findFilmAnswer(messages) {
  const asked = messages.findIndex((message) => mediaOf([message]).length);
  return asked < 0 ? null : (messages.slice(asked).find((m) => m.role === "assistant" && !m.failed) ?? null);
}

/** Begin another conversation on the film of the open one: what was read of it is not read again. */
export function forkFilm() {
  const conversation = openOne();
  const shared = findFilmAnswer(path(conversation));
  if (shared) openFork(conversation, shared);
}

function showMessage(conversation, message) {
  const own = message.role === "user";
  const words = make("div", { className: "text" });
  const article = make("article", { className: message.role }, words);
  article.dataset.id = message.id;
  article.classList.toggle("failed", Boolean(message.failed));
  article.setAttribute("aria-label", own ? "You" : "Answer");
  if (own) words.textContent = message.text;
  else if (message.text) showWords(words, message.text, (seconds) => showMoment(conversation, message, seconds));
  else words.append(make("span", { className: "thinking" }, "…"));
  if (message.files.length) article.append(showFiles(message.files));
  article.append(showTools(conversation, message));
  return article;
}

function showFiles(files) {
  const shown = files.map((file) => {
    if (file.type === "text") return make("li", { className: "chip" }, file.name);
    const opener = button(`Show ${file.name}`, () => showFilm(file), { icon: "film", words: file.name, className: "chip" });
    return make("li", {}, opener);
  });
  return make("ul", { className: "files" }, ...shown);
}

/** Move the last film before an answer to a time that the answer names. */
async function showMoment(conversation, message, seconds) {
  const messages = path(conversation);
  const films = mediaOf(messages.slice(0, messages.indexOf(message)));
  const film = films.findLast((file) => file.type === "video");
  if (!film) return;
  await showFilm(film);
  goTo(seconds);
}

function showTools(conversation, message) {
  const tools = make("div", { className: "tools" });
  if (isAnswering()) return tools;
  const among = branches(conversation, message);
  if (among.length > 1) tools.append(showBranches(conversation, message, among));
  if (message.role === "user") {
    tools.append(button("Edit", () => startEdit(message), { icon: "edit", words: "Edit" }));
    const last = path(conversation).at(-1) === message;
    if (last) tools.append(button("Answer", () => answer(conversation, message, model), { icon: "again", words: "Answer" }));
    return tools;
  }
  const again = () => regenerate(conversation, message, model);
  tools.append(button("Regenerate", again, { icon: "again", words: "Regenerate" }));
  if (message.failed) return tools;
  tools.append(button("Copy", () => navigator.clipboard?.writeText(message.text), { icon: "copy", words: "Copy" }));
  tools.append(button("Fork", () => openFork(conversation, message), { icon: "fork", words: "Fork" }));
  return tools;
}

function showBranches(conversation, message, among) {
  const here = among.indexOf(message);
  const step = (name, by, drawn) => {
    const arrow = button(`${name} version`, () => {
      const chosen = among[here + by];
      choose(conversation, chosen);
      keep(conversation);
      showConversation(conversation);
      const shown = $("messages").querySelector(`[data-id="${chosen.id}"]`);
      shown.querySelector(`.branches button:enabled${by > 0 ? ":last-of-type" : ""}`)?.focus();
      shown.scrollIntoView({ block: "nearest" });
    }, { icon: drawn });
    arrow.disabled = !among[here + by];
    return arrow;
  };
  const place = make("span", { className: "quiet" }, `${here + 1} of ${among.length}`);
  const whole = make("span", { className: "branches" }, step("Earlier", -1, "left"), place, step("Later", 1, "right"));
  whole.setAttribute("role", "group");
  whole.setAttribute("aria-label", "Versions of this message");
  return whole;
}
