// The page: a conversation, its messages, and what the person does with them.

import { ask, drawPicture, findModel } from "./api.js";
import { goTo, showFilm, showFrames } from "./film.js";
import { openConversation, readFile, saveJson } from "./files.js";
import { showWords } from "./moments.js";

const $ = (id) => document.getElementById(id);
let model = null;
let messages = []; // {role, text, files, picture, failed}
let attached = []; // files of the next message
let running = null; // the AbortController of what is being asked

function tell(words, failed = false) {
  $("status").textContent = words;
  $("status").classList.toggle("failed", failed);
}

function make(name, settings = {}, ...children) {
  const element = Object.assign(document.createElement(name), settings);
  element.append(...children);
  return element;
}

function showMeter(tokens) {
  if (!model) return;
  const [used, all] = [tokens, model.max_model_len].map((n) => n.toLocaleString("en"));
  $("used").textContent = `${used} of ${all} tokens`;
  $("meter").value = Math.min(tokens / model.max_model_len, 1);
}

// ---- messages

function showMessage(message, index) {
  const words = make("div", { className: "text" });
  const article = make("article", { className: message.role }, words);
  article.classList.toggle("failed", Boolean(message.failed));
  article.setAttribute("aria-label", message.role === "user" ? "You" : "Answer");
  if (message.role === "user") words.textContent = message.text;
  else showWords(words, message.text || (running ? "…" : ""), goTo);
  if (message.picture) words.replaceChildren(make("img", { src: message.picture, alt: "Drawn picture" }));
  if (message.files.length) {
    article.append(make("ul", {}, ...message.files.map((file) => make("li", {}, file.name))));
  }
  if (!running) {
    const tools = make("div", { className: "tools" });
    const tool = (name, work) => {
      const button = make("button", { type: "button", textContent: name });
      button.addEventListener("click", work);
      tools.append(button);
    };
    if (message.role === "user") tool("Edit", () => edit(index));
    else if (index === messages.length - 1 && !message.picture) tool("Regenerate", () => regenerate());
    article.append(tools);
  }
  return article;
}

function showAll() {
  $("welcome").hidden = messages.length > 0;
  $("messages").replaceChildren(...messages.map(showMessage));
  $("attached").replaceChildren(
    ...attached.map((file, i) => {
      const remove = make("button", { type: "button", className: "moment", textContent: "×" });
      remove.setAttribute("aria-label", `Take ${file.name} off`);
      remove.addEventListener("click", () => {
        attached.splice(i, 1);
        showAll();
      });
      return make("li", {}, file.name, " ", remove);
    }),
  );
  for (const id of ["new", "export", "import", "draw"]) $(id).disabled = Boolean(running);
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  $("talk").scrollTop = $("talk").scrollHeight;
}

function showLast() {
  const last = messages.at(-1);
  $("messages").lastElementChild.replaceWith(showMessage(last, messages.length - 1));
  const { scrollTop, clientHeight, scrollHeight } = $("talk");
  if (scrollHeight - scrollTop - clientHeight < 160) $("talk").scrollTop = scrollHeight;
}

function lastMedium() {
  const files = messages.flatMap((message) => message.files).filter((file) => file.type !== "text");
  return files.at(-1) ?? null;
}

// ---- asking

/** A message as the API has it: a text before the question, films and pictures behind it. */
function toApi({ role, text, files }) {
  const texts = files.filter((file) => file.type === "text").map((file) => file.text);
  const words = [...texts, text].join("\n\n");
  const media = files.filter((file) => file.type !== "text");
  if (!media.length) return { role, content: words };
  const parts = media.map(({ type, url }) => ({ type: `${type}_url`, [`${type}_url`]: { url } }));
  return { role, content: [{ type: "text", text: words }, ...parts] };
}

function settings() {
  const number = (id) => ($(id).value === "" ? null : Number($(id).value));
  const body = { model: model.id };
  if (number("temperature") !== null) body.temperature = number("temperature");
  if (number("longest") !== null) body.max_tokens = number("longest");
  if (number("fps") !== null) body.mm_processor_kwargs = { fps: number("fps") };
  return body;
}

/** Do what may be stopped; an error is shown in the answer that stands last. */
async function run(work) {
  if (running) return;
  const last = { role: "assistant", text: "", files: [] };
  const known = messages.filter((message) => !message.failed && !message.picture);
  running = new AbortController();
  messages.push(last);
  showAll();
  tell("waiting");
  let said = "";
  try {
    model ??= await findModel($("key").value);
    await work(last, known, running.signal);
  } catch (error) {
    said = error.name === "AbortError" ? "stopped" : error.message;
    if (error.name !== "AbortError" && !last.text) Object.assign(last, { text: said, failed: true });
  }
  running = null;
  if (!last.text && !last.picture) messages.pop();
  tell(said, Boolean(said) && said !== "stopped");
  showAll();
  $("question").focus();
}

function answer() {
  return run(async (last, known, signal) => {
    const body = { ...settings(), messages: known.map(toApi) };
    const media = known.flatMap((message) => message.files).filter((file) => file.type !== "text");
    const take = (event) => {
      if (event.media?.length) showFrames(event.media.at(-1), media.at(-1).name);
      if (event.usage) showMeter(event.usage.total_tokens);
      const piece = event.choices[0]?.delta?.content;
      if (!piece) return;
      tell("answering");
      last.text += piece;
      showLast();
    };
    await ask(body, $("key").value, signal, take, tell);
  });
}

function send() {
  const text = $("question").value.trim();
  if (running || !(text || attached.length)) return;
  messages.push({ role: "user", text, files: attached });
  const shown = attached.findLast((file) => file.type !== "text");
  if (shown) showFilm(shown);
  attached = [];
  $("question").value = "";
  answer();
}

function regenerate() {
  messages.pop();
  answer();
}

function edit(index) {
  const { text, files } = messages[index];
  messages = messages.slice(0, index);
  attached = [...files];
  $("question").value = text;
  showFilm(lastMedium());
  showAll();
  $("question").focus();
}

function draw() {
  const text = $("question").value.trim();
  if (running || !text) return tell("write what the picture shows first", true);
  $("question").value = "";
  messages.push({ role: "user", text, files: [], picture: null });
  run(async (last, known, signal) => {
    last.picture = await drawPicture(text, $("key").value, signal);
    messages.at(-2).failed = false;
  });
}

// ---- files

async function attach(files) {
  for (const file of files) {
    try {
      attached.push(await readFile(file));
      tell("");
    } catch (error) {
      tell(error.message, true);
    }
  }
  showAll();
  $("question").focus();
}

async function restore(file) {
  try {
    messages = await openConversation(file);
    attached = [];
    showFilm(lastMedium());
    tell("");
  } catch (error) {
    tell(error.message, true);
  }
  showAll();
}

function listen() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  $("stop").addEventListener("click", () => running?.abort());
  $("draw").addEventListener("click", draw);
  $("new").addEventListener("click", () => {
    [messages, attached] = [[], []];
    showFilm(null);
    showMeter(0);
    tell("");
    showAll();
  });
  $("export").addEventListener("click", () => {
    const kept = messages.filter((message) => !message.failed && !message.picture);
    saveJson("conversation.json", { model: model?.id, messages: kept });
  });
  for (const [id, work] of [["files", attach], ["import", ([file]) => restore(file)]]) {
    $(id).addEventListener("change", async () => {
      const chosen = [...$(id).files];
      $(id).value = "";
      if (chosen.length) await work(chosen);
    });
  }
  let depth = 0;
  const holds = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragenter", (event) => holds(event) && ($("drop").hidden = !++depth));
  document.addEventListener("dragleave", (event) => holds(event) && ($("drop").hidden = !--depth));
  document.addEventListener("dragover", (event) => holds(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!holds(event)) return;
    event.preventDefault();
    depth = 0;
    $("drop").hidden = true;
    attach([...event.dataTransfer.files]);
  });
  $("key").addEventListener("change", connect);
}

async function connect() {
  try {
    model = await findModel($("key").value);
    $("model").textContent = model.id;
    $("draw").hidden = !model.vision;
    showMeter(0);
    tell("");
  } catch (error) {
    tell(error.message, true);
  }
}

listen();
connect();
showAll();
