// The report of a run inside the page. Its file is parsed without being shown, and only elements,
// attributes and styles of these lists are made anew, in a tree of their own with the report's look.

const ELEMENTS = new Set(
  ("a b blockquote dd div dl dt em figcaption figure g h1 h2 h3 h4 header i img li line ol p path " +
    "picture polyline rect section small source span strong svg table tbody td text th thead tr ul").split(" "),
);
const ATTRIBUTES = new Set(
  ("alt aria-hidden aria-label class colspan d data-head height id media points preserveAspectRatio " +
    "role rowspan scope tabindex viewBox width x x1 x2 y y1 y2").split(" "),
);
const SOURCES = new Set(["src", "srcset"]);
const PICTURE = /^data:image\/(png|gif|jpeg|webp);base64,[A-Za-z0-9+/=]+$/;
const PLACES = /^(--[a-z]+|left|top|width)$/;
const AMOUNT = /^[\d.]+%?$/;

/** Show the text of a report in `place`, in the place of what was there. */
export function showReport(place, text) {
  const parsed = new DOMParser().parseFromString(text, "text/html");
  const sheet = new CSSStyleSheet();
  const rules = [...parsed.querySelectorAll("style")].map((style) => style.textContent).join("\n");
  sheet.replaceSync(rules.replace(/:root\b/g, ":host").replace(/\bbody\b/g, ".body"));
  const root = place.shadowRoot ?? place.attachShadow({ mode: "open" });
  root.adoptedStyleSheets = [sheet];
  const body = document.createElement("div");
  body.className = "body";
  body.append(...cleanChildren(parsed.body));
  root.replaceChildren(body);
}

function cleanChildren(element) {
  return [...element.childNodes].flatMap((node) => {
    if (node.nodeType === Node.TEXT_NODE) return [document.createTextNode(node.data)];
    if (node.nodeType !== Node.ELEMENT_NODE || ["script", "style", "template"].includes(node.localName)) return [];
    return ELEMENTS.has(node.localName) ? [cleanElement(node)] : cleanChildren(node);
  });
}

function cleanElement(element) {
  const clean = document.createElementNS(element.namespaceURI, element.localName);
  for (const { name, value } of element.attributes) {
    const picture = SOURCES.has(name) && PICTURE.test(value);
    if (picture || ATTRIBUTES.has(name)) clean.setAttribute(name, value);
  }
  for (const rule of (element.getAttribute("style") ?? "").split(";")) {
    const [name, value] = rule.split(":").map((part) => part.trim());
    if (PLACES.test(name) && AMOUNT.test(value ?? "")) clean.style.setProperty(name, value);
  }
  clean.append(...cleanChildren(element));
  return clean;
}
