/** Builds elements. Text goes in as text nodes alone: nothing here, or anywhere on this page, parses HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, listeners (`onclick`), and children that are nodes or text. True is an attribute without a value. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A picture of index.html's collection; decoration, which screen readers pass over. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A small button with a picture; `label` is its name for everyone. */
export function iconButton(name, label, onclick) {
  return element("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick }, icon(name));
}

/** Copies text and shows on the button that it did, or could not. */
export async function copyFrom(button, text) {
  const label = button.getAttribute("aria-label") ?? button.textContent;
  const told = (await copied(text)) ? "Copied" : "Could not copy";
  tell(told);
  button.classList.add("done");
  button.setAttribute("aria-label", told);
  setTimeout(() => {
    button.classList.remove("done");
    button.setAttribute("aria-label", label);
  }, 1500);
}

/** The clipboard's interface exists on secure pages alone; a server on the local network is none. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea", { class: "visually-hidden", "aria-hidden": "true" });
    const focused = document.activeElement;
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const isDone = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return isDone;
  }
}

/** Says something to screen readers. */
export function tell(text) {
  document.getElementById("announcements").textContent = text;
}
