/* L02: choose a token and see which others lie nearest to it in the model's table, by the cosine of the angle.
 *
 * data-word: the word to begin with.
 */
"use strict";

LLMFS.widget("embedding", (element, { options, tokenizer, model }) => {
  const { tag, choice, tokenLabel, signed, newId } = LLMFS;
  const { vocab_size: V, n_embd: C } = model.config;
  const SHOWN = 10;

  const rows = Array.from({ length: V }, (_, id) => unitVector(id)); // V vectors (C) of length 1
  let chosen = 0;
  let parts = []; // the tokens of the word that was typed

  const wordId = newId();
  const box = tag("input", { id: wordId, type: "text", maxlength: 40, autocomplete: "off", spellcheck: "false", input: type });
  box.value = options.word;
  const listId = newId();
  const list = tag("select", { id: listId, autocomplete: "off", change: () => show(Number(list.value)) }, ...vocabulary());
  const pieces = choice({ label: "Its tokens:", change: () => show(parts[pieces.value()]) });
  const title = tag("caption.llmfs-title");
  const lines = Array.from({ length: SHOWN }, line);
  const remark = tag("p.llmfs-remark");
  const spoken = LLMFS.announcer();

  element.append(
    tag("div.llmfs-row", {}, tag("label", { for: wordId }, "A word"), box),
    pieces.element,
    tag("div.llmfs-row", {}, tag("label", { for: listId }, "or a token from the list"), list),
    tag(
      "table.llmfs-distribution",
      {},
      title,
      tag("thead", {}, tag("tr", {}, ...["token", "cosine"].map((name) => tag("th", { scope: "col" }, name)), tag("td"))),
      tag("tbody", {}, ...lines.map((line) => line.element))
    ),
    remark,
    spoken
  );
  type();

  function unitVector(id) {
    const row = model.embed.slice(id * C, (id + 1) * C);
    const length = Math.sqrt(row.reduce((sum, value) => sum + value * value, 0)) || 1;
    return row.map((value) => value / length);
  }

  // Words that begin with a space come first, without it: so that a letter typed in the list finds them.
  function vocabulary() {
    const all = Array.from({ length: V }, (_, id) => ({ id, label: tokenLabel(tokenizer, id) }));
    const option = (name, id) => tag("option", { value: id }, name);
    const sorted = (some) => some.sort((a, b) => (a.label < b.label ? -1 : 1));
    const isWord = ({ label }) => /^·[\p{L}]+$/u.test(label);
    const words = sorted(all.filter(isWord)).map(({ id, label }) => option(label.slice(1), id));
    const others = sorted(all.filter((token) => !isWord(token))).map(({ id, label }) => option(label, id));
    return [
      tag("optgroup", { label: "with a space before them" }, ...words),
      tag("optgroup", { label: "all others" }, ...others),
    ];
  }

  // In a text a word has a space before it, and so have the tokens of most words.
  function type() {
    parts = tokenizer.encode(` ${box.value.trim()}`);
    pieces.fill(parts.map((id) => tokenLabel(tokenizer, id)), 0);
    show(parts[0]);
  }

  // One row of the table, made once: the button that was pressed keeps the focus.
  function line() {
    const button = tag("button.llmfs-option", { type: "button", click: () => show(Number(button.dataset.id)) });
    const number = tag("td.llmfs-number");
    const bar = tag("div.llmfs-bar");
    const barCell = tag("td.llmfs-bar-cell", { "aria-hidden": "true" }, bar);
    return { element: tag("tr", {}, tag("th", { scope: "row" }, button), number, barCell), button, number, bar };
  }

  function show(id) {
    chosen = id;
    if (!parts.includes(id)) {
      box.value = tokenizer.decode([id]).trim();
      parts = [id];
      pieces.fill([tokenLabel(tokenizer, id)], 0);
    }
    list.value = String(id);
    const cosine = rows.map((row) => row.reduce((sum, value, c) => sum + value * rows[id][c], 0)); // (V)
    const others = Array.from(cosine.keys())
      .filter((other) => other !== chosen)
      .sort((a, b) => cosine[b] - cosine[a] || a - b);
    const label = tokenLabel(tokenizer, id);
    title.replaceChildren("Nearest to ", tag("code", {}, label), ` (token ${id})`);
    lines.forEach(({ button, number, bar }, place) => {
      const other = others[place];
      button.textContent = tokenLabel(tokenizer, other);
      button.dataset.id = other;
      number.textContent = signed(cosine[other]);
      bar.style.width = `${Math.max(0, 100 * cosine[other])}%`;
    });
    const mean = others.reduce((sum, other) => sum + cosine[other], 0) / others.length;
    const last = others.at(-1);
    remark.replaceChildren(
      `Over all ${others.length} other tokens the mean cosine is ${signed(mean)}; the lowest, ${signed(cosine[last])}, has `,
      tag("code", {}, tokenLabel(tokenizer, last)),
      "."
    );
    spoken.say(`Nearest to ${label}: ${lines.slice(0, 3).map((line) => line.button.textContent).join(", ")}`);
  }
});
