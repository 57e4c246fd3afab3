// Files of a person: films, pictures and texts; and conversations as JSON.

import { keepContent, loadContent } from "./store.js";
import { newConversation } from "./tree.js";

const MOST_BYTES = 100 * 2 ** 20;
const TYPES = ["video", "image", "text"];

/** A file as {type, name, key, size}, its content kept. Throws an Error with a sentence. */
export async function takeFile(file) {
  if (file.size > MOST_BYTES) throw new Error(`${file.name} is larger than 100 MiB`);
  const type = /^(video|image)\//.exec(file.type)?.[1] ?? "text";
  if (type === "text") {
    try {
      new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    } catch {
      throw new Error(`${file.name} is neither a film, nor a picture, nor UTF-8 text`);
    }
  }
  return { type, name: file.name, key: await keepContent(file), size: file.size };
}

/** The content of a kept file as a data: URL, or as text where it is text. */
export async function readContent(file) {
  const blob = await loadContent(file);
  if (file.type === "text") return blob.text();
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(blob);
  });
}

/** Let the browser save a Blob as a file. */
export function saveBlob(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A conversation with the contents of its files in it, as a Blob of JSON. */
export async function packConversation({ title, messages, chosen }, model) {
  const contents = {};
  for (const file of messages.flatMap((message) => message.files)) {
    contents[file.key] ??= await readContent(file);
  }
  const whole = { ringworld: 1, model, title, messages, chosen, contents };
  return new Blob([JSON.stringify(whole)], { type: "application/json" });
}

/** The conversation of a saved file, its files kept. Throws an Error when the file is none. */
export async function unpackConversation(file) {
  const wrong = new Error(`${file.name} is no conversation of this page`);
  const whole = await file.text().then(JSON.parse).catch(() => null);
  if (whole?.ringworld !== 1 || !Array.isArray(whole.messages)) throw wrong;
  const own = { ...newConversation(), title: String(whole.title ?? "") };
  const known = new Set([""]);
  for (const { id, parent, role, text, files, tokens } of whole.messages) {
    const words = [id, parent, text].every((each) => typeof each === "string");
    const fits = words && known.has(parent) && id && !known.has(id);
    if (!fits || !["user", "assistant"].includes(role) || !Array.isArray(files)) throw wrong;
    known.add(id);
    const kept = [];
    for (const each of files) kept.push(await unpackFile(each, whole.contents?.[each.key], wrong));
    const count = Number.isFinite(tokens) ? { tokens } : {};
    own.messages.push({ id, parent, role, text, files: kept, ...count });
  }
  for (const [parent, id] of Object.entries(whole.chosen ?? {})) {
    if (known.has(parent) && known.has(id)) own.chosen[parent] = id;
  }
  return own;
}

async function unpackFile({ type, name, seen }, content, wrong) {
  if (!TYPES.includes(type) || typeof content !== "string") throw wrong;
  const blob = type === "text" ? new Blob([content], { type: "text/plain" }) : toBlob(content, type);
  if (!blob) throw wrong;
  const times = Array.isArray(seen?.seconds) && seen.seconds.every(Number.isFinite);
  const shown = times ? { seen: { type, ...seen } } : {};
  return { type, name: String(name), key: await keepContent(blob), size: blob.size, ...shown };
}

/** A data: URL of a film or a picture as a Blob; null when it is none. */
export function toBlob(url, type) {
  const found = /^data:((video|image)\/[\w.+-]+);base64,([A-Za-z0-9+/=]*)$/.exec(url);
  if (!found || found[2] !== type) return null;
  return new Blob([Uint8Array.from(atob(found[3]), (c) => c.charCodeAt(0))], { type: found[1] });
}
