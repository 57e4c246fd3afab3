// Files of a person: films and pictures as data: URLs, texts as text; and conversations as JSON.

const MOST_BYTES = 100 * 2 ** 20;

/** A file as {type: "video" | "image" | "text", name, url | text}. Throws an Error with a sentence. */
export async function readFile(file) {
  if (file.size > MOST_BYTES) throw new Error(`${file.name} is larger than 100 MiB`);
  const type = /^(video|image)\//.exec(file.type)?.[1] ?? "text";
  if (type === "text") {
    const bytes = await file.arrayBuffer();
    try {
      return { type, name: file.name, text: new TextDecoder("utf-8", { fatal: true }).decode(bytes) };
    } catch {
      throw new Error(`${file.name} is neither a film, nor a picture, nor UTF-8 text`);
    }
  }
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
  return { type, name: file.name, url };
}

/** Let the browser save an object as a JSON file. */
export function saveJson(name, object) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(object)], { type: "application/json" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

/** The messages of a saved conversation. Throws an Error when the file is none. */
export async function openConversation(file) {
  const wrong = new Error(`${file.name} is no conversation of this page`);
  const held = await file.text().then(JSON.parse).catch(() => null);
  if (!Array.isArray(held?.messages)) throw wrong;
  return held.messages.map((message) => {
    const fits = ["user", "assistant"].includes(message?.role) && typeof message.text === "string";
    const files = (message.files ?? []).map(({ type, name, url, text }) => {
      const media = (type === "video" || type === "image") && /^data:(video|image)\//.test(url);
      if (!media && !(type === "text" && typeof text === "string")) throw wrong;
      return media ? { type, name: String(name), url } : { type, name: String(name), text };
    });
    if (!fits) throw wrong;
    return { role: message.role, text: message.text, files };
  });
}
