/** The settings of a conversation, each with its meaning and the model's default, and the page's colours. Knows no connection. */

import { element } from "./dom.js";
import { readJson, writeJson } from "./storage.js";

const THEME = "actorllm.theme";
const MAX_STOPS = 16;
const NUMBER = { kind: "number", step: 1 };
const RANGE = { kind: "range", step: 0.01, min: 0, max: 1 };

/** Each field of the protocol's `sampling`. */
const FIELDS = [
  { ...RANGE, name: "temperature", label: "Temperature", max: 2, text: "How freely words are chosen: 0 always takes the likeliest one, above 1 it gets wild." },
  { ...NUMBER, name: "max_tokens", label: "Longest answer", min: 1, unset: "as much as fits", text: "In tokens, which are words or parts of words; the model has {context} for the conversation and its answer together." },
  { ...RANGE, name: "top_p", label: "Top p", min: 0.01, text: "Choose among the likeliest tokens that have this probability together. 1 is off." },
  { ...NUMBER, name: "top_k", label: "Top k", min: 0, max: 2 ** 31 - 1, text: "Choose among this many of the likeliest tokens. 0 is off." },
  { ...RANGE, name: "min_p", label: "Min p", text: "Leave out tokens that are less likely than this part of the likeliest one. 0 is off." },
  { ...RANGE, name: "repetition_penalty", label: "Repetition penalty", min: 0.5, max: 2, text: "Above 1, tokens that came before become less likely. 1 is off." },
  { ...RANGE, name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, text: "Above 0, tokens of the answer so far become less likely. 0 is off." },
  { ...RANGE, name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, text: "The same, more strongly the more often a token came. 0 is off." },
  { ...NUMBER, name: "seed", label: "Seed", min: -(2 ** 52), max: 2 ** 52, unset: "another one each time", text: "The same seed and the same settings repeat an answer." },
  { kind: "lines", name: "stop", label: "Stop at", unset: "none", text: "The answer ends before the first of these, one a line." },
];

export class Settings {
  #controls;

  /** `onSave({system, sampling})` is called with what a conversation is to have; it calls `accept`, or `refuse` with the reason. */
  constructor(dialog, { onSave }) {
    this.dialog = dialog;
    this.form = dialog.querySelector("form");
    this.onSave = onSave;
    this.system = this.form.elements.system;
    this.trouble = dialog.querySelector("#settings-trouble");
    this.#controls = FIELDS.map((field) => new Control(field));
    this.form.querySelector("#sampling").append(...this.#controls.map((control) => control.root));
    this.form.addEventListener("submit", (event) => this.#save(event));
    dialog.querySelector("#to-defaults").addEventListener("click", () => this.#show({ system: null, sampling: {} }));
    dialog.querySelector("#cancel-settings").addEventListener("click", () => this.close());
    for (const choice of this.form.elements.theme) choice.addEventListener("change", () => showTheme(choice.value));
    dialog.addEventListener("close", () => showTheme(keptTheme()));
    showTheme(keptTheme());
  }

  /** Opens with a conversation's settings; `hello` has the model's defaults and limits. */
  open(conversation, { defaults, context_len: contextLen }) {
    for (const control of this.#controls) control.setDefault(defaults[control.field.name] ?? null, contextLen);
    this.form.elements.theme.value = keptTheme();
    this.#show(conversation);
    this.refuse("");
    this.dialog.showModal();
  }

  close() {
    this.dialog.close();
  }

  /** Closes; the colours hold, too. */
  accept() {
    writeJson(THEME, this.form.elements.theme.value);
    this.close();
  }

  /** Stays open, and says why. */
  refuse(reason) {
    this.trouble.textContent = reason;
    this.trouble.hidden = !reason;
  }

  #show({ system, sampling }) {
    this.system.value = system ?? "";
    for (const control of this.#controls) control.set(sampling[control.field.name] ?? null);
  }

  #save(event) {
    event.preventDefault();
    const sampling = {};
    for (const control of this.#controls) {
      if (control.value !== null) sampling[control.field.name] = control.value;
    }
    this.onSave({ system: this.system.value.trim() ? this.system.value : null, sampling });
  }
}

/** One setting. Its value is null while it is the model's default. */
class Control {
  #default = null;
  #contextLen = Infinity;
  #isSet = false;

  constructor(field) {
    this.field = field;
    const attributes = { id: `set-${field.name}`, name: field.name, "aria-describedby": `about-${field.name}` };
    this.input =
      field.kind === "lines"
        ? element("textarea", { ...attributes, rows: "2" })
        : element("input", { ...attributes, type: field.kind, step: field.step, min: field.min, max: field.max });
    this.shown = element("output", { for: attributes.id });
    this.about = element("p", { id: `about-${field.name}` });
    this.root = element("div", { class: `field ${field.kind}` }, element("label", { for: attributes.id }, field.label), this.shown, this.input, this.about);
    this.input.addEventListener("input", () => {
      this.#isSet = field.kind === "range" || this.input.value.trim() !== "";
      this.#tell();
    });
  }

  /** What is wrong with what was typed, where the browser does not know it; "" if nothing is. */
  get #trouble() {
    if (this.field.kind === "lines" && this.#lines.length > MAX_STOPS) return `At most ${MAX_STOPS} lines.`;
    if (this.field.name === "max_tokens" && Number(this.input.value) > this.#contextLen) {
      return `At most ${this.#contextLen}: the model cannot read and write more at once. Leave it empty for as much as fits.`;
    }
    return "";
  }

  /** As the protocol has it. */
  get value() {
    if (!this.#isSet) return null;
    if (this.field.kind === "lines") return this.#lines;
    return Number(this.input.value);
  }

  get #lines() {
    return this.input.value.split("\n").filter((line) => line !== "");
  }

  setDefault(value, contextLen) {
    this.#contextLen = contextLen;
    const isNone = value === null || value.length === 0;
    this.#default = isNone ? null : value;
    const words = isNone ? this.field.unset : value;
    this.about.textContent = `${this.field.text.replace("{context}", contextLen)} Default: ${words}.`;
    if (this.field.kind !== "range") this.input.placeholder = words;
  }

  set(value) {
    this.#isSet = value !== null;
    const shown = value ?? (this.field.kind === "range" ? this.#default : "");
    this.input.value = Array.isArray(shown) ? shown.join("\n") : shown;
    this.#tell();
  }

  #tell() {
    const isRange = this.field.kind === "range";
    this.shown.textContent = isRange ? `${this.#isSet ? this.input.value : this.#default}` : "";
    this.root.classList.toggle("set", this.#isSet);
    this.input.setCustomValidity(this.#trouble);
  }
}

/** "light", "dark", or "system" for what the browser prefers. */
function keptTheme() {
  const kept = readJson(THEME);
  return ["light", "dark"].includes(kept) ? kept : "system";
}

function showTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}
