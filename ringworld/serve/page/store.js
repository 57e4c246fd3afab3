// What the browser keeps: conversations, and the content of their files, each once by its hash.

const CONVERSATIONS = "conversations";
const FILES = "files";
const held = { [CONVERSATIONS]: new Map(), [FILES]: new Map() }; // where the browser keeps nothing
let base = null;

/** Open the store. Returns whether what is kept outlives the page. */
export async function openStore() {
  base = await new Promise((resolve) => {
    let asked;
    try {
      asked = indexedDB.open("ringworld", 1);
    } catch {
      return resolve(null);
    }
    asked.onupgradeneeded = () => {
      asked.result.createObjectStore(CONVERSATIONS, { keyPath: "id" });
      asked.result.createObjectStore(FILES);
    };
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = asked.onblocked = () => resolve(null);
  });
  return base !== null;
}

function done(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(new Error(`the browser does not keep it: ${asked.error?.message}`));
  });
}

function table(name, mode = "readonly") {
  return base.transaction(name, mode).objectStore(name);
}

/** All conversations, the latest first. */
export async function loadConversations() {
  const all = base ? await done(table(CONVERSATIONS).getAll()) : [...held[CONVERSATIONS].values()];
  return all.sort((a, b) => b.updated - a.updated);
}

/** Keep a conversation as it is now. */
export async function keepConversation(conversation) {
  if (base) await done(table(CONVERSATIONS, "readwrite").put(conversation));
  else held[CONVERSATIONS].set(conversation.id, conversation);
}

/** Forget a conversation, and the files that no other one has. */
export async function forgetConversation({ id }) {
  if (base) await done(table(CONVERSATIONS, "readwrite").delete(id));
  else held[CONVERSATIONS].delete(id);
  const used = new Set(
    (await loadConversations()).flatMap((c) => c.messages.flatMap((m) => m.files.map((f) => f.key))),
  );
  const keys = base ? await done(table(FILES).getAllKeys()) : [...held[FILES].keys()];
  for (const key of keys.filter((each) => !used.has(each))) {
    if (base) await done(table(FILES, "readwrite").delete(key));
    else held[FILES].delete(key);
  }
}

/** Keep the content of a file, and return its key. */
export async function keepContent(blob) {
  // A page that is not from this machine and not encrypted has no hashes: each file is kept anew.
  const hash = crypto.subtle && (await crypto.subtle.digest("SHA-256", await blob.arrayBuffer()));
  const bytes = hash ? new Uint8Array(hash) : crypto.getRandomValues(new Uint8Array(32));
  const key = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  if (base) await done(table(FILES, "readwrite").put(blob, key));
  else held[FILES].set(key, blob);
  return key;
}

/** The content of a file as a Blob. Throws an Error when the browser has lost it. */
export async function loadContent({ key, name }) {
  const blob = base ? await done(table(FILES).get(key)) : held[FILES].get(key);
  if (!blob) throw new Error(`the browser no longer has ${name}: add it again`);
  return blob;
}
