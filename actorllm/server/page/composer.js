/** Where a message is written: grows with its text, sends by Enter, and turns its button into Stop while an answer is written. */

import { icon } from "./dom.js";

/** On a touch keyboard Enter is a new line: there is no Shift+Enter. */
const isTouch = matchMedia("(pointer: coarse)");

/** Whether a key that was pressed in a text is to send it. */
export function isSendKey(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && !isTouch.matches;
}

export class Composer {
  /** `onSend(text)` returns whether the text was taken; `onStop()`. */
  constructor(form, { onSend, onStop, onEditLast }) {
    this.area = form.querySelector("textarea");
    this.button = form.querySelector("button");
    this.onSend = onSend;
    this.isAnswering = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.isAnswering) onStop();
      else this.#send();
      this.focus();
    });
    this.area.addEventListener("input", () => this.#update());
    this.area.addEventListener("keydown", (event) => {
      if (isSendKey(event)) {
        event.preventDefault();
        if (!this.isAnswering) this.#send();
      } else if (event.key === "ArrowUp" && !this.area.value) {
        event.preventDefault();
        onEditLast();
      }
    });
  }

  /** What can be done now. */
  show({ isAnswering, canSend }) {
    this.canSend = canSend;
    if (this.isAnswering !== isAnswering || !this.button.firstChild) {
      this.isAnswering = isAnswering;
      const label = isAnswering ? "Stop" : "Send";
      this.button.replaceChildren(icon(isAnswering ? "stop" : "send"));
      this.button.setAttribute("aria-label", label);
      this.button.title = label;
    }
    this.#update();
  }

  /** Puts text there that could not be sent, before what is being written. */
  giveBack(text) {
    this.area.value = this.area.value ? `${text}\n${this.area.value}` : text;
    this.#update();
  }

  /** Not on a touch screen: its keyboard would cover half of the answer. */
  focus() {
    if (!isTouch.matches) this.area.focus({ preventScroll: true });
  }

  #send() {
    const text = this.area.value;
    if (!this.canSend || !text.trim() || !this.onSend(text)) return;
    this.area.value = "";
    this.#update();
  }

  #update() {
    this.button.disabled = !this.isAnswering && !(this.canSend && this.area.value.trim());
    this.area.rows = Math.min(10, this.area.value.split("\n").length);
  }
}
