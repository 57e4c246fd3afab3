// Elements of the page. Words always become text nodes, never HTML.

export const $ = (id) => document.getElementById(id);

/** An element with properties, and children that are elements or words. */
export function make(name, settings = {}, ...children) {
  const element = Object.assign(document.createElement(name), settings);
  element.append(...children);
  return element;
}

/** One of the icons that index.html holds, for the eye only. */
export function icon(name) {
  const [picture, use] = ["svg", "use"].map((n) => document.createElementNS("http://www.w3.org/2000/svg", n));
  picture.setAttribute("class", "icon");
  picture.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  picture.append(use);
  return picture;
}

/** A button with an icon, or with words where there is no icon; `label` is what it is called. */
export function button(label, work, { icon: drawn, words = drawn ? "" : label, className = "" } = {}) {
  const made = make("button", { type: "button", className: drawn && !words ? `bare ${className}` : className });
  if (drawn) made.append(icon(drawn));
  made.append(words);
  if (words !== label) {
    made.setAttribute("aria-label", label);
    made.title = label;
  }
  made.addEventListener("click", work);
  return made;
}

/** Say something about what goes on, below the conversation. */
export function tell(words, failed = false) {
  $("status").textContent = words;
  $("status").classList.toggle("failed", failed);
}

/** Whether a person agrees to what `question` asks; `deed` is what the button is called. */
export function confirmDeed(question, deed) {
  const dialog = $("confirm");
  $("confirm-question").textContent = question;
  $("confirm-yes").textContent = deed;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Arrow keys walk along the elements of a list; each holds `selector` once. */
export function walkWithArrows(list, selector) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  list.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    const all = [...list.querySelectorAll(selector)];
    const here = all.indexOf(event.target);
    if (here < 0) return;
    event.preventDefault();
    all[Math.min(Math.max(here + steps[event.key], 0), all.length - 1)].focus();
  });
}
