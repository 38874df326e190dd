/**
 * Shows the turns of the branch on show, and offers what can be done to each.
 *
 * `actions` are {edit(turn, text), regenerate(turn), select(turn, direction)}. Knows no connection: whoever owns it says what is allowed.
 */

import { isSendKey } from "./composer.js";
import { copyFrom, element, iconButton } from "./dom.js";
import { renderMarkdown } from "./markdown.js";
import { endOf, figuresOf } from "./words.js";

/** How near to its end, in pixels, the page has to be for the end to be followed. */
const NEAR = 80;

export class Transcript {
  #views = new Map();
  #isWaitingForFrame = false;
  #isFollowing = true;

  /** `scroller` scrolls the list of turns `root`; `jump` is the button that leads to its end. */
  constructor(root, { scroller, jump, actions }) {
    this.root = root;
    this.scroller = scroller;
    this.jump = jump;
    this.actions = actions;
    scroller.addEventListener("scroll", () => this.#noteScroll(), { passive: true });
    jump.addEventListener("click", () => this.follow());
  }

  /** Another conversation: nothing of the last one is kept. */
  clear() {
    this.#views.clear();
    this.root.replaceChildren();
    this.#isFollowing = true;
  }

  /** Shows the conversation's branch; `canAct` says whether turns may be changed now, `canLook` whether other branches may be shown. */
  show(conversation, { canAct, canLook }) {
    const path = conversation.path;
    const shown = new Set(path.map((turn) => turn.id));
    for (const [id, view] of this.#views) {
      if (!shown.has(id)) {
        view.root.remove();
        this.#views.delete(id);
      }
    }
    path.forEach((turn, number) => {
      const view = this.#views.get(turn.id) ?? new TurnView(turn, this.actions);
      this.#views.set(turn.id, view);
      view.update({
        siblings: conversation.siblings(turn),
        isAnswering: conversation.answering === turn.id,
        canAct,
        canLook,
        isUnanswered: turn.role === "user" && number === path.length - 1,
      });
      if (this.root.children[number] !== view.root) this.root.insertBefore(view.root, this.root.children[number] ?? null);
    });
    this.#keepEnd();
  }

  /** More text of a turn has come; drawn once a frame. */
  grow(turn) {
    this.#views.get(turn.id)?.mark();
    if (this.#isWaitingForFrame) return;
    this.#isWaitingForFrame = true;
    const draw = () => {
      this.#isWaitingForFrame = false;
      for (const view of this.#views.values()) view.draw();
      this.#keepEnd();
    };
    if (document.hidden) setTimeout(draw, 250);
    else requestAnimationFrame(draw);
  }

  /** Goes to the end, and stays there while more comes. */
  follow() {
    this.#isFollowing = true;
    this.#keepEnd();
  }

  /** Opens the editor of a user's turn, with `text` if that is not the turn's. */
  edit(turn, text = turn.text) {
    this.#views.get(turn.id)?.openEditor(text);
  }

  /** The button of a turn that shows the next (1) or last (-1) branch gets the focus. */
  focusBranch(turn, direction) {
    this.#views.get(turn.id)?.focusBranch(direction);
  }

  #noteScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.#isFollowing = scrollHeight - scrollTop - clientHeight < NEAR;
    this.jump.hidden = this.#isFollowing;
  }

  #keepEnd() {
    if (this.#isFollowing) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#noteScroll();
  }
}

class TurnView {
  #isStale = true;
  #editor = null;

  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    const isAnswer = turn.role === "assistant";
    const title = element("h3", { class: "visually-hidden" }, isAnswer ? "Answer" : "You");
    this.body = element("div", { class: "text" });
    this.note = element("p", { class: "note", hidden: true });
    this.figures = element("span", { class: "figures" });
    this.branch = new BranchSwitch(turn, actions);
    this.change = isAnswer
      ? iconButton("again", "Answer again", () => actions.regenerate(turn))
      : iconButton("edit", "Edit", () => this.openEditor(turn.text));
    this.retry = element("button", { type: "button", class: "plain", hidden: true, onclick: () => actions.regenerate(turn) }, "Try again");
    const copy = iconButton("copy", "Copy", () => copyFrom(copy, turn.text));
    const foot = element("div", { class: "foot" }, this.branch.root, copy, this.change, this.figures);
    this.root = element("li", { class: `turn ${turn.role}` }, title, this.body, this.note, this.retry, foot);
  }

  mark() {
    this.#isStale = true;
  }

  draw() {
    if (!this.#isStale) return;
    this.#isStale = false;
    if (this.turn.role === "assistant") renderMarkdown(this.body, this.turn.text);
    else this.body.textContent = this.turn.text;
  }

  update({ siblings, isAnswering, canAct, canLook, isUnanswered }) {
    this.mark();
    this.draw();
    const note = isAnswering ? "" : endOf(this.turn);
    this.root.classList.toggle("answering", isAnswering);
    this.root.classList.toggle("failed", Boolean(this.turn.error));
    this.root.setAttribute("aria-busy", String(isAnswering));
    this.note.textContent = note;
    this.note.hidden = !note;
    this.figures.textContent = figuresOf(this.turn);
    this.retry.hidden = !(this.turn.error || isUnanswered) || isAnswering;
    this.change.disabled = this.retry.disabled = !canAct;
    this.branch.update(siblings, canLook);
  }

  openEditor(text) {
    this.#closeEditor();
    const area = element("textarea", { "aria-label": "Edit your message", rows: Math.min(12, text.split("\n").length + 1) });
    const cancel = element("button", { type: "button", class: "plain", onclick: () => this.#leaveEditor() }, "Cancel");
    const save = element("button", { type: "submit", class: "primary" }, "Send");
    this.#editor = element("form", { class: "editor" }, area, element("div", { class: "buttons" }, cancel, save));
    area.value = text;
    this.#editor.addEventListener("submit", (event) => {
      event.preventDefault();
      if (area.value === this.turn.text) this.#leaveEditor(); // nothing to ask again: that is "Answer again"
      else if (area.value.trim() && this.actions.edit(this.turn, area.value)) this.#closeEditor();
    });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        this.#leaveEditor();
      } else if (isSendKey(event)) {
        event.preventDefault();
        this.#editor.requestSubmit();
      }
    });
    this.root.classList.add("editing");
    this.body.after(this.#editor);
    area.focus();
  }

  focusBranch(direction) {
    this.branch.focus(direction);
  }

  #leaveEditor() {
    this.#closeEditor();
    this.change.focus();
  }

  #closeEditor() {
    this.#editor?.remove();
    this.#editor = null;
    this.root.classList.remove("editing");
  }
}

/** "2 / 3" with a button to either side, where a turn has siblings. */
class BranchSwitch {
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.previous = iconButton("left", "Previous version", () => this.#go(-1));
    this.next = iconButton("right", "Next version", () => this.#go(1));
    this.place = element("span");
    this.root = element("span", { class: "branch", role: "group", "aria-label": "Versions" }, this.previous, this.place, this.next);
  }

  update(siblings, canLook) {
    this.siblings = siblings;
    this.number = siblings.indexOf(this.turn);
    this.root.hidden = siblings.length < 2;
    this.place.textContent = `${this.number + 1} / ${siblings.length}`;
    this.previous.disabled = !canLook || this.number === 0;
    this.next.disabled = !canLook || this.number === siblings.length - 1;
  }

  focus(direction) {
    const [wanted, other] = direction > 0 ? [this.next, this.previous] : [this.previous, this.next];
    (wanted.disabled ? other : wanted).focus();
  }

  #go(direction) {
    this.actions.select(this.siblings[this.number + direction], direction);
  }
}
