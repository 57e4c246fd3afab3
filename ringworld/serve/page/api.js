// The server's HTTP API, as the page uses it.

/** The headers of a request, with the key where there is one. */
function headers(key) {
  const own = { "Content-Type": "application/json" };
  return key ? { ...own, Authorization: `Bearer ${key}` } : own;
}

/** The JSON of an answer. Throws an Error with the server's sentence. */
async function read(answer) {
  const body = await answer.json().catch(() => null);
  if (answer.ok && body) return body;
  throw new Error(body?.error?.message ?? `the server answered with status ${answer.status}`);
}

/** The model that is served: its id, `max_model_len` and `vision`. */
export async function findModel(key) {
  return (await read(await fetch("/v1/models", { headers: headers(key) }))).data[0];
}

/** The picture of a prompt, as a data: URL. */
export async function drawPicture(prompt, key, signal) {
  const body = JSON.stringify({ prompt });
  const asked = { method: "POST", headers: headers(key), body, signal };
  const drawn = await read(await fetch("/v1/images/generations", asked));
  return `data:image/png;base64,${drawn.data[0].b64_json}`;
}

/**
 * Ask, and call `onEvent` for each event of the answer and `onNote` for each comment on progress.
 * Throws an Error with the server's sentence, and an AbortError when `signal` stops it.
 */
export async function ask(body, key, signal, onEvent, onNote) {
  const whole = { ...body, stream: true, stream_options: { include_usage: true } };
  const answer = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: headers(key),
    body: JSON.stringify(whole),
    signal,
  });
  if (!answer.ok) await read(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (part.startsWith(": ")) onNote(part.slice(2));
      if (!part.startsWith("data: ")) continue;
      if (part === "data: [DONE]") return;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      onEvent(event);
    }
  }
}
