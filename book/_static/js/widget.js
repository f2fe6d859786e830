/* What all widgets of the book share. Each widget is a file of widgets/, which begins with
 *
 *   LLMFS.widget("NAME", (element, { options, content, tokenizer, model }) => { … });
 *
 * The page holds <div class="llmfs-widget" data-widget="NAME" data-models="…">, with a result that a lesson has
 * computed in it. When it is about to come into view, the models of data-models are loaded, a file of models/ each.
 * Then the function fills an element that is not on the page yet, and what it has put there takes the place of the
 * result. Where anything of that fails, the result stays, and a line says so.
 *
 *   options                       the other data- attributes: { text: "…" }
 *   content                       the element that holds the lesson's result, for a widget that reads numbers from it
 *   tokenizer, model              LLMFS.BPETokenizer and LLMFS.GPT of the last model in data-models (model: or null);
 *                                 not there if data-models is empty
 *   LLMFS.load(name)              -> a promise of { tokenizer, model }, for a widget that needs more than one, or one
 *                                 only when a reader asks for it
 *
 * To build what a widget shows:
 *
 *   LLMFS.tag("p.name", { attributes }, ...children)    an element; a function as an attribute is an event's listener
 *   LLMFS.slider({ label, min, max, step, value, format, change })    a dial with its value beside it:
 *                                                 { element, value(), set(value) }
 *   LLMFS.choice({ label, names, value, change })    one of several, as buttons with what they are named for before them:
 *                                                 { element, group, value(), set(value), fill(names, value) };
 *                                                 value: the place in names; group: the element with the buttons
 *   LLMFS.sentence({ label, text, tokenizer, longest, change })    a field for a text, which is read as tokens behind
 *                                                 the end-of-text token, at most `longest` of them:
 *                                                 { element, ids(), labels(), note() }; note: that it was cut, or ""
 *   LLMFS.svg(name, { attributes }, ...children)        as tag, for a drawing
 *   LLMFS.signed(x, digits)       a number with a minus sign of the width of a plus
 *   LLMFS.announcer()             an element that screen readers follow: element.say(text), at most twice a second
 *   LLMFS.arrowKeys(element)      of the buttons in it one is reached with Tab, the others with the arrow keys
 *   LLMFS.visible(text)           spaces and line ends as signs, as llmfs.viz.visible
 *   LLMFS.tokenLabel(tokenizer, id)    a token to show: its text, or its bytes where it is a part of a character
 *   LLMFS.color(i)                the i-th color for things that stand side by side
 *   LLMFS.newId()                 an id that nothing on the page has, for a label and its field
 *
 * No fetch and no modules: browsers refuse both for pages that are opened from disk.
 */
(function (LLMFS) {
  "use strict";

  const MODELS = new URL("../models/", document.currentScript.src);
  const widgets = new Map(); // name -> the function that starts it
  const loading = new Map(); // name of a model -> a promise of it
  const arrived = new Map(); // name of a model -> the data of its file

  // Files of models/ call this.
  function provide(name, data) {
    arrived.set(name, data);
  }

  function load(name) {
    if (!loading.has(name)) loading.set(name, loadScript(new URL(`${name}.js`, MODELS)).then(() => unpack(name)));
    return loading.get(name);
  }

  function loadScript(address) {
    return new Promise((done, failed) => {
      const script = tag("script", { src: address.href });
      script.addEventListener("load", done);
      script.addEventListener("error", () => failed(new Error(`${address.href} cannot be loaded`)));
      document.head.append(script);
    });
  }

  function unpack(name) {
    const data = arrived.get(name);
    arrived.delete(name); // the text of the weights is no longer needed
    return {
      tokenizer: new LLMFS.BPETokenizer(data.tokenizer),
      model: data.model ? new LLMFS.GPT(data.model) : null,
    };
  }

  function widget(name, start) {
    widgets.set(name, start);
  }

  async function begin(element) {
    const { widget: name, models, ...options } = element.dataset;
    const note = tag("p.llmfs-note", { role: "status" }, "Loading …");
    element.append(note);
    try {
      let parts = {};
      for (const model of models.split(" ").filter(Boolean)) parts = await load(model);
      const shown = document.createElement("div");
      widgets.get(name)(shown, { options, content: element, ...parts });
      element.replaceChildren(...shown.childNodes);
      element.dataset.state = "ready";
    } catch (error) {
      note.textContent = "The part to play with could not be loaded; this is a result from the lesson.";
      element.dataset.state = "failed";
      console.error(error);
    }
  }

  function start() {
    const observer = new IntersectionObserver(
      (entries) => {
        for (const { isIntersecting, target } of entries) {
          if (!isIntersecting) continue;
          observer.unobserve(target);
          begin(target);
        }
      },
      { rootMargin: "400px" } // a little before it is seen
    );
    document.querySelectorAll(".llmfs-widget").forEach((element) => observer.observe(element));
  }

  // --- to build with ---------------------------------------------------------------------------------

  function tag(nameAndClasses, attributes = {}, ...children) {
    const [name, ...classes] = nameAndClasses.split(".");
    const element = document.createElement(name);
    element.classList.add(...classes);
    for (const [key, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(key, value);
      else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  }

  let lastId = 0;
  const newId = () => `llmfs-${(lastId += 1)}`;

  function slider({ label, min, max, step, value, format = String, change }) {
    const id = newId();
    const output = tag("output.llmfs-value", { for: id });
    const input = tag("input", { id, type: "range", min, max, step, value, autocomplete: "off" });
    const show = () => {
      output.textContent = format(Number(input.value));
      input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => {
      show();
      change();
    });
    const set = (next) => {
      input.value = next;
      show();
    };
    show();
    const element = tag("div.llmfs-dial", {}, tag("label", { for: id }, label), input, output);
    return { element, value: () => Number(input.value), set };
  }

  function svg(name, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  function choice({ label, names = [], value = 0, change }) {
    const id = newId();
    const group = tag("div.llmfs-choice", { role: "group", "aria-labelledby": id });
    let chosen = value;
    const mark = () => {
      Array.from(group.children).forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
      arrowKeys(group);
    };
    const set = (next) => {
      chosen = next;
      mark();
    };
    const fill = (names, next) => {
      const click = (i) => () => {
        set(i);
        change();
      };
      group.replaceChildren(
        ...names.map((name, i) => tag("button.llmfs-option", { type: "button", click: click(i) }, name))
      );
      set(next);
    };
    fill(names, value);
    const element = tag("div.llmfs-row", {}, tag("span", { id }, label), group);
    return { element, group, value: () => chosen, set, fill };
  }

  function sentence({ label, text, tokenizer, longest, change }) {
    const id = newId();
    const END = tokenizer.specialTokens["<|endoftext|>"];
    const box = tag("input", { id, type: "text", maxlength: 300, autocomplete: "off", spellcheck: "false" });
    box.value = text;
    const remark = tag("p.llmfs-remark");
    let ids = [];
    let waiting = null;
    const read = () => {
      const all = [END, ...tokenizer.encode(box.value)];
      ids = all.slice(0, longest);
      const cut = `Only the first ${longest} of these ${all.length} tokens are read.`;
      remark.textContent = all.length > longest ? cut : "";
    };
    box.addEventListener("input", () => {
      clearTimeout(waiting); // not at every letter of a word
      waiting = setTimeout(() => {
        read();
        change();
      }, 250);
    });
    read();
    const element = tag("div", {}, tag("label.llmfs-title", { for: id }, label), box, remark);
    const labels = () => ids.map((id) => (id === END ? "(start)" : tokenLabel(tokenizer, id)));
    return { element, ids: () => ids, labels, note: () => remark.textContent };
  }

  function announcer() {
    const element = tag("p.llmfs-spoken", { "aria-live": "polite" });
    let waiting = null;
    element.say = (text) => {
      clearTimeout(waiting); // while things change quickly, only the last is said
      waiting = setTimeout(() => (element.textContent = text), 500);
    };
    return element;
  }

  // To be called again whenever the buttons are made anew; the pressed one, or the first, is then reached with Tab.
  function arrowKeys(element) {
    const buttons = Array.from(element.querySelectorAll("button"));
    const begin = buttons.find((button) => button.getAttribute("aria-pressed") === "true") ?? buttons[0];
    for (const button of buttons) button.tabIndex = button === begin ? 0 : -1;
    element.onkeydown = (event) => {
      const here = buttons.indexOf(document.activeElement);
      const [before, after] = [here - 1, here + 1];
      const ends = { Home: 0, End: buttons.length - 1 };
      const goals = { ArrowLeft: before, ArrowUp: before, ArrowRight: after, ArrowDown: after, ...ends };
      const goal = buttons[goals[event.key]];
      if (here < 0 || goal === undefined) return;
      event.preventDefault();
      buttons[here].tabIndex = -1;
      goal.tabIndex = 0;
      goal.focus();
    };
  }

  const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "→");

  function tokenLabel(tokenizer, id) {
    const bytes = tokenizer.tokenBytes(id);
    const text = LLMFS.decodeUtf8(bytes);
    if (!text.includes("\ufffd")) return visible(text);
    return bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  }

  function signed(x, digits = 2) {
    const size = Math.abs(x).toFixed(digits);
    return x < 0 && Number(size) !== 0 ? `−${size}` : size;
  }

  const color = (i) => `var(--llmfs-color-${i % 5})`;

  const toBuildWith = { tag, svg, slider, choice, sentence, announcer, arrowKeys };
  const toShow = { visible, tokenLabel, signed, color, newId };
  Object.assign(LLMFS, { provide, load, widget, ...toBuildWith, ...toShow });
  document.addEventListener("DOMContentLoaded", start); // scripts with "defer" have run by then
})((globalThis.LLMFS ??= {}));
