/* L03: one head's whole computation for one token of a sentence.
 *
 * data-text: the sentence to begin with; data-layer, data-head: the head to begin with, counted from 1.
 */
"use strict";

LLMFS.widget("computation", (element, { options, tokenizer, model }) => {
  const { tag, choice, sentence, signed } = LLMFS;
  const { n_layer, n_head, n_kv_head, n_embd, head_size: hd, block_size, qk_norm, pos } = model.config;
  const LONGEST = Math.min(24, block_size); // tokens
  const SHOWN = Math.min(4, hd); // channels of each vector
  const TERMS = 3; // of the sum that is written out
  const afterwards = `${qk_norm ? ", scaled" : ""}${pos === "rope" ? ", turned" : ""}`; // as they are multiplied

  const names = (n) => Array.from({ length: n }, (_, i) => String(i + 1));
  const from = (option, n) => Math.min(Number(option), n) - 1;
  const text = sentence({ label: "Your sentence", text: options.text, tokenizer, longest: LONGEST, change: read });
  const token = choice({ label: "The token that asks", change: show });
  const layer = choice({ label: "Layer", names: names(n_layer), value: from(options.layer, n_layer), change: show });
  const head = choice({ label: "Head", names: names(n_head), value: from(options.head, n_head), change: show });
  const steps = tag("div");
  const spoken = LLMFS.announcer();
  let record;

  element.append(text.element, token.element, tag("div.llmfs-dials", {}, layer.element, head.element), steps, spoken);
  read();

  function read() {
    record = {};
    model.forward(text.ids(), { record });
    token.fill(text.labels(), text.ids().length - 1);
    show();
  }

  function show() {
    const t = token.value();
    const labels = text.labels();
    const inside = record.layers[layer.value()];
    const shared = Math.floor((head.value() * n_kv_head) / n_head); // the key/value head of this query head
    const q = inside.q[head.value()][t]; // (hd)
    const k = inside.k[shared].slice(0, t + 1); // t + 1 vectors (hd): no later token is seen
    const v = inside.v[shared].slice(0, t + 1);
    const weights = inside.weights[head.value()][t].slice(0, t + 1);
    const products = k.map((key) => product(q, key));
    const output = Array.from(q, (_, c) => v.reduce((sum, value, s) => sum + weights[s] * value[c], 0)); // (hd)
    const best = weights.indexOf(Math.max(...weights));
    steps.replaceChildren(
      heading("1. Its query: ", labels[t], ` asks, at place ${t}`),
      tag("p.llmfs-formula", {}, `x (${n_embd}) times W_q (${n_embd}, ${hd})${afterwards}: q (${hd}) = ${vector(q)}`),
      heading(`2. The keys k (${t + 1}, ${hd}) of the tokens up to it: products, scores, softmax`),
      scoreTable(labels, k, products, weights),
      tag("p.llmfs-remark", {}, "exp: e to the power of the score minus the highest score; divided by their sum, the weight."),
      tag("p.llmfs-formula", {}, ...written(q, k[best], labels[best])),
      heading(`3. The values v (${t + 1}, ${hd}), each times its weight: their sum is the output (${hd})`),
      valueTable(labels, v, weights, output),
      tag("p.llmfs-formula", {}, ...writtenSum(labels, v, weights, output[0]))
    );
    spoken.say(`${text.note()} ${labels[t]} takes most from ${labels[best]}, weight ${weights[best].toFixed(3)}`);
  }

  function product(a, b) {
    return a.reduce((sum, value, i) => sum + value * b[i], 0);
  }

  function heading(before, label = "", after = "") {
    return tag("p.llmfs-title", {}, before, ...(label ? [tag("code", {}, label)] : []), after);
  }

  function vector(x) {
    const more = x.length - SHOWN;
    return `(${Array.from(x.slice(0, SHOWN), (value) => signed(value)).join(", ")}${more ? `, … ${more} more` : ""})`;
  }

  function scoreTable(labels, k, products, weights) {
    const scores = products.map((value) => value / Math.sqrt(hd));
    const highest = Math.max(...scores);
    const powers = scores.map((score) => Math.exp(score - highest));
    const total = powers.reduce((sum, value) => sum + value, 0);
    const body = k.map((key, s) => [
      labels[s],
      ...[products[s], scores[s], powers[s], weights[s]].map((value, i) => signed(value, i < 2 ? 2 : 3)),
      ...channels(key),
    ]);
    const whole = weights.reduce((sum, weight) => sum + weight, 0);
    const sums = ["sum", "", "", total.toFixed(3), whole.toFixed(3), ...channels([])];
    const header = ["token", "q · k", `/ √${hd}`, "exp", "weight", ...channelNames("k")];
    return table("Scores and weights", header, body, sums);
  }

  function valueTable(labels, v, weights, output) {
    const body = v.map((value, s) => [labels[s], weights[s].toFixed(3), ...channels(value)]);
    const sums = ["output", "", ...channels(output)];
    return table("Values and output", ["token", "weight", ...channelNames("v")], body, sums);
  }

  function channelNames(letter) {
    return Array.from({ length: SHOWN }, (_, c) => `${letter}${c + 1}`);
  }

  function channels(x) {
    return Array.from({ length: SHOWN }, (_, c) => (c < x.length ? signed(x[c]) : ""));
  }

  // A wide table; its last row is the sum.
  function table(name, header, body, sums) {
    const row = ([first, ...cells]) =>
      tag("tr", {}, tag("th", { scope: "row" }, tag("code", {}, first)), ...cells.map((cell) => tag("td.llmfs-number", {}, cell)));
    const last = row(sums);
    last.cells[0].replaceChildren(sums[0]);
    return tag(
      "div.scroll-box",
      { tabindex: 0, role: "region", "aria-label": name },
      tag(
        "table.llmfs-values",
        {},
        tag("caption.llmfs-spoken", {}, name),
        tag("thead", {}, tag("tr", {}, ...header.map((name) => tag("th", { scope: "col" }, name)))),
        tag("tbody", {}, ...body.map(row)),
        tag("tfoot", {}, last)
      )
    );
  }

  // The product with the key that gets the most, and what it comes to.
  function written(q, key, label) {
    const terms = Array.from(q.slice(0, SHOWN), (value, c) => `${factor(value)} · ${factor(key[c])}`);
    const rest = product(q.slice(SHOWN), key.slice(SHOWN));
    const others = q.length > SHOWN ? ` + ${factor(rest)} from the other ${q.length - SHOWN}` : "";
    const whole = product(q, key);
    const score = `; divided by √${hd}: ${signed(whole / Math.sqrt(hd))}`;
    return ["q · k of ", tag("code", {}, label), ` = ${terms.join(" + ")}${others} = ${signed(whole)}${score}`];
  }

  // The first channel of the output, the largest weights first.
  function writtenSum(labels, v, weights, whole) {
    const order = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a] || a - b);
    const [large, small] = [order.slice(0, TERMS), order.slice(TERMS)];
    const terms = large.map((s) => `${weights[s].toFixed(3)} · ${factor(v[s][0])}`);
    const rest = small.reduce((sum, s) => sum + weights[s] * v[s][0], 0);
    const others = small.length ? ` + ${factor(rest)} from the other ${small.length}` : "";
    const nearest = large.flatMap((s) => [tag("code", {}, labels[s]), " "]);
    return ["Channel 1 of the output, first what comes from ", ...nearest, `: ${terms.join(" + ")}${others} = ${signed(whole)}`];
  }

  function factor(x) {
    const text = signed(x);
    return text.startsWith("−") ? `(${text})` : text;
  }
});
