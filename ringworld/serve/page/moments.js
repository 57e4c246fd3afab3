// Times of a film in words: MM:SS and H:MM:SS become buttons. Words are text nodes, never HTML.

const TIME = /(?<![\d:])(?:(\d{1,2}):)?([0-5]?\d):([0-5]\d)(?![\d:])/g;

/** Seconds as MM:SS, or as H:MM:SS from an hour on. */
export function spellTime(seconds) {
  const whole = Math.floor(seconds + 1e-6);
  const two = (n) => String(n).padStart(2, "0");
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h}:${two(m)}:${two(s)}` : `${two(m)}:${two(s)}`;
}

/** Fill an element with words; `onTime` is called with the seconds of a time that is pressed. */
export function showWords(element, words, onTime) {
  const nodes = [];
  let end = 0;
  for (const found of words.matchAll(TIME)) {
    const [spelled, h, m, s] = found;
    nodes.push(document.createTextNode(words.slice(end, found.index)));
    const button = document.createElement("button");
    button.type = "button";
    button.className = "moment";
    button.textContent = spelled;
    button.setAttribute("aria-label", `Show ${spelled} of the film`);
    button.addEventListener("click", () => onTime(Number(h ?? 0) * 3600 + Number(m) * 60 + Number(s)));
    nodes.push(button);
    end = found.index + spelled.length;
  }
  nodes.push(document.createTextNode(words.slice(end)));
  element.replaceChildren(...nodes);
}
