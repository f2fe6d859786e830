/* L06: a sentence through the model with the causal mask and without it: how likely each real next token is, and
 * which predictions move when the last word is another.
 *
 * data-text: the sentence to begin with; data-word: what its last word becomes.
 */
"use strict";

LLMFS.widget("mask", (element, { options, tokenizer, model }) => {
  const { tag, sentence, tokenLabel, newId } = LLMFS;
  const LONGEST = Math.min(24, model.config.block_size); // tokens; they are read four times

  const text = sentence({ label: "Your sentence", text: options.text, tokenizer, longest: LONGEST, change: show });
  const wordId = newId();
  const word = tag("input", { id: wordId, type: "text", maxlength: 40, autocomplete: "off", spellcheck: "false", input: soon });
  word.value = options.word;
  const rows = tag("tbody");
  const summary = tag("p");
  const losses = tag("p.llmfs-remark");
  const spoken = LLMFS.announcer();
  let waiting = null;

  const header = (name, settings = { scope: "col" }) => tag("th", settings, name);
  const pair = { colspan: 2, scope: "colgroup" };
  element.append(
    text.element,
    tag("div.llmfs-row", {}, tag("label", { for: wordId }, "Its last word becomes"), word),
    summary,
    tag(
      "div.scroll-box",
      { tabindex: 0, role: "region", "aria-label": "Every prediction with the mask and without it" },
      tag(
        "table.llmfs-values.llmfs-compared",
        {},
        tag(
          "thead",
          {},
          tag("tr", {}, tag("td"), header("probability, %", pair), header("moved by the last word, %", pair)),
          tag("tr", {}, ...["next token", "mask", "no mask", "mask", "no mask"].map((name) => header(name)))
        ),
        rows
      )
    ),
    losses,
    spoken
  );
  show();

  function soon() {
    clearTimeout(waiting); // not at every letter of a word
    waiting = setTimeout(show, 250);
  }

  function show() {
    const ids = text.ids();
    const other = changed(ids);
    const longer = ids.length < other.length ? other : ids;
    const meet = longer.findIndex((_, t) => ids[t] !== other[t]); // the first token that is another
    const settings = [{ causal: true }, { causal: false }];
    const before = settings.map((setting) => probabilities(ids, setting)); // [mask, no mask][t][token]
    const after = settings.map((setting) => probabilities(other, setting));
    const predictions = ids.slice(1).map((id, t) => ({
      id,
      likely: before.map((all) => all[t][id]),
      moved: t < meet ? before.map((all, i) => distance(all[t], after[i][t])) : [], // later ones have read the word
    }));
    rows.replaceChildren(...predictions.map(row));
    summarize(predictions, meet);
  }

  // The same sentence with another last word.
  function changed(ids) {
    const [, start, end] = tokenizer.decode(ids.slice(1)).match(/^([^]*?)(\S*)\s*$/);
    return [ids[0], ...tokenizer.encode(start + (word.value.trim() || end))].slice(0, LONGEST);
  }

  function probabilities(ids, setting) {
    return model.forward(ids, setting).map((logits) => LLMFS.softmax(logits));
  }

  // How much of the probability lies on other tokens than before (total variation).
  function distance(p, q) {
    return p.reduce((sum, value, id) => sum + Math.abs(value - q[id]), 0) / 2;
  }

  function percent(share) {
    if (share === 0) return "0";
    return share < 0.0005 ? "< 0.1" : (100 * share).toFixed(1);
  }

  function row({ id, likely, moved }) {
    const cell = (share, color) => {
      const fill = `linear-gradient(to left, var(--llmfs-color-${color}) ${100 * share}%, transparent 0)`;
      return tag("td.llmfs-number", { style: `background: ${fill}`, "data-share": share }, percent(share));
    };
    return tag(
      "tr",
      { "data-id": id },
      tag("th", { scope: "row" }, tag("code", {}, tokenLabel(tokenizer, id))),
      ...likely.map((share) => cell(share, 0)),
      ...(moved.length ? moved.map((share) => cell(share, 4)) : [tag("td", {}, "–"), tag("td", {}, "–")])
    );
  }

  function summarize(predictions, meet) {
    const mean = (i) => -predictions.reduce((sum, { likely }) => sum + Math.log(likely[i]), 0) / predictions.length;
    const moved = (i) => predictions.filter(({ moved }) => moved[i] > 0).length;
    const n = Math.min(Math.max(meet, 0), predictions.length);
    const few = "Write at least one word.";
    const same = "Give it another last word to see which predictions move.";
    const result =
      `The other word moves ${moved(0)} of the ${n} predictions before it with the mask, ` +
      `and ${moved(1)} of ${n} without.`;
    summary.textContent = predictions.length === 0 ? few : meet < 0 ? same : result;
    losses.textContent = predictions.length
      ? `Mean of −ln p: ${mean(0).toFixed(2)} with the mask, ${mean(1).toFixed(2)} without.`
      : "";
    spoken.say(`${summary.textContent} ${losses.textContent}`);
  }
});
