// What the model says of itself. Words that it quotes are buttons that put them to use.

import { button, make } from "./elements.js";

/** Show a model's words, a paragraph for each line; pressing a quoted sentence calls `use` with it. */
export function showAbout(place, words, use) {
  const lines = (words ?? "").split("\n").filter((line) => line.trim());
  place.hidden = !lines.length;
  place.replaceChildren(
    ...lines.map((line) => {
      const parts = line.split(/"([^"]+)"/);
      const shown = parts.map((part, i) => (i % 2 ? showSentence(part, use) : part));
      return make("p", {}, ...shown);
    }),
  );
}

function showSentence(sentence, use) {
  return button(sentence, () => use(sentence), { className: "sentence" });
}
