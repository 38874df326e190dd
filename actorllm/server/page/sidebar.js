/** The list of conversations: beside the chat, and on narrow screens a drawer over it. Knows no connection. */

import { element, iconButton } from "./dom.js";

const narrow = matchMedia("(max-width: 48rem)");

export class Sidebar {
  /** `actions` are {pick(name), remove(name), start()}. */
  constructor(root, { toggle, scrim, actions }) {
    this.root = root;
    this.toggle = toggle;
    this.scrim = scrim;
    this.actions = actions;
    this.list = root.querySelector("ul");
    root.querySelector("#new-chat").addEventListener("click", () => this.#leaveFor(() => actions.start()));
    toggle.addEventListener("click", () => this.#setOpen(!this.isOpen));
    scrim.addEventListener("click", () => this.#setOpen(false));
    root.addEventListener("keydown", (event) => event.key === "Escape" && this.#closeByKey(event));
    narrow.addEventListener("change", () => this.#setOpen(!narrow.matches));
    this.#setOpen(!narrow.matches);
  }

  /** Shows these conversations; `current` is the one that is open, `busy` those that answer. */
  show(conversations, { current, busy }) {
    const focused = this.root.contains(document.activeElement) ? (document.activeElement.closest("li")?.dataset.name ?? null) : null;
    this.list.replaceChildren(...conversations.map((each) => this.#entry(each, each === current, busy.includes(each))));
    if (focused === null) return;
    const entry = [...this.list.children].find((each) => each.dataset.name === focused);
    (entry?.querySelector("button") ?? this.root.querySelector("#new-chat")).focus();
  }

  #entry(conversation, isCurrent, isBusy) {
    const { name, title } = conversation;
    const pick = element(
      "button",
      { type: "button", class: "pick", "aria-current": isCurrent ? "page" : null, onclick: () => this.#leaveFor(() => this.actions.pick(name)) },
      title,
      isBusy ? element("span", { class: "busy", role: "img", "aria-label": "answering" }) : null,
    );
    const remove = iconButton("delete", `Delete chat: ${title}`, () => {
      if (confirm(`Delete this chat?\n\n${title}`)) this.actions.remove(name);
    });
    return element("li", { "data-name": name, class: isCurrent ? "current" : null }, pick, remove);
  }

  /** A drawer has done its work once something is chosen. */
  #leaveFor(action) {
    if (narrow.matches) this.#setOpen(false);
    action();
  }

  #closeByKey(event) {
    if (!narrow.matches) return;
    event.stopPropagation();
    this.#setOpen(false);
    this.toggle.focus();
  }

  #setOpen(isOpen) {
    this.isOpen = isOpen;
    this.root.inert = !isOpen;
    this.toggle.setAttribute("aria-expanded", String(isOpen));
    document.body.classList.toggle("sidebar-open", isOpen);
    this.scrim.hidden = !(isOpen && narrow.matches);
    if (isOpen && narrow.matches) this.root.querySelector("#new-chat").focus();
  }
}
