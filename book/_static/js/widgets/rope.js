/* L02: a query and a key of the model, turned by two positions, and the score of the two.
 *
 * data-text: where they come from: the query is the last token's, the key that of the token data-key (0: the start),
 * in head data-head of layer data-layer (counted from 1).
 */
"use strict";

LLMFS.widget("rope", (element, { options, tokenizer, model }) => {
  const { tag, svg, slider, choice, tokenLabel, signed } = LLMFS;
  const { n_layer, n_head, n_kv_head, head_size: hd, block_size } = model.config;
  const FAR = Math.min(63, block_size - 1); // the last position
  const CHANNELS = 4; // of each vector that are shown

  const ids = [tokenizer.specialTokens["<|endoftext|>"], ...tokenizer.encode(options.text)].slice(0, block_size);
  const record = {};
  model.forward(ids, { record });
  const names = (n) => Array.from({ length: n }, (_, i) => String(i + 1));
  const from = (option, n) => Math.min(Number(option), n) - 1;
  const at = { query: ids.length - 1, key: Math.min(Number(options.key), ids.length - 1) };
  const place = { min: 0, max: FAR, step: 1, change: show };

  const layer = choice({ label: "Layer", names: names(n_layer), value: from(options.layer, n_layer), change: restart });
  const head = choice({ label: "Head", names: names(n_head), value: from(options.head, n_head), change: restart });
  const m = slider({ label: "Query at m", value: Math.min(9, FAR), ...place });
  const n = slider({ label: "Key at n", value: Math.min(5, FAR), ...place });
  const step = (by, name) => tag("button.llmfs-button", { type: "button", click: () => moveBoth(by) }, name);
  const on = { 1: step(1, "Both one on"), 10: step(10, "Both ten on"), [-10]: step(-10, "Both ten back") };
  const score = tag("p.llmfs-score");
  const numbers = tag("tbody");
  const chart = tag("div.llmfs-chart", { "aria-hidden": "true" });
  const remark = tag("p.llmfs-remark");
  const spoken = LLMFS.announcer();
  let query, key, scores;

  element.append(
    tag("p", {}, "The query of ", code(at.query), " and the key of ", code(at.key), " in “", options.text, "”"),
    tag("div.llmfs-dials", {}, layer.element, head.element),
    tag("div.llmfs-dials", {}, m.element, n.element),
    tag("div.llmfs-row", {}, on[1], on[10], on[-10]),
    score,
    tag(
      "div.scroll-box",
      { tabindex: 0, role: "region", "aria-label": "The turned vectors" },
      tag("table.llmfs-values", {}, tag("caption.llmfs-title", {}, `Turned: the first ${CHANNELS} of ${hd} channels`), numbers)
    ),
    tag("p.llmfs-title", {}, "The score at every distance m − n"),
    chart,
    remark,
    spoken
  );
  restart();

  function code(t) {
    return tag("code", {}, tokenLabel(tokenizer, ids[t]));
  }

  // The two vectors as they are before any turn: the record's are turned by their places in the text.
  function restart() {
    const { q, k } = record.layers[layer.value()];
    const shared = Math.floor((head.value() * n_kv_head) / n_head); // the key head of this query head
    query = model.turned(q[head.value()][at.query], -at.query); // (hd)
    key = model.turned(k[shared][at.key], -at.key); // (hd)
    scores = Array.from({ length: 2 * FAR + 1 }, (_, i) => product(model.turned(query, i - FAR), key) / Math.sqrt(hd));
    draw();
    show();
  }

  function product(a, b) {
    return a.reduce((sum, value, i) => sum + value * b[i], 0);
  }

  function moveBoth(by) {
    m.set(m.value() + by);
    n.set(n.value() + by);
    show();
  }

  function show() {
    const [here, there] = [m.value(), n.value()];
    const turned = { q: model.turned(query, here), k: model.turned(key, there) };
    const value = product(turned.q, turned.k) / Math.sqrt(hd);
    for (const [by, button] of Object.entries(on)) {
      const fits = (place) => place + Number(by) >= 0 && place + Number(by) <= FAR;
      button.disabled = !(fits(here) && fits(there));
    }
    score.textContent = `m − n = ${signed(here - there, 0)}: score q · k / √${hd} = ${signed(value, 3)}`;
    const row = (name, vector) =>
      tag(
        "tr",
        {},
        tag("th", { scope: "row" }, name),
        ...Array.from(vector.slice(0, CHANNELS), (x) => tag("td.llmfs-number", {}, signed(x))),
        tag("td", {}, "…")
      );
    numbers.replaceChildren(row(`query at ${here}`, turned.q), row(`key at ${there}`, turned.k));
    mark(here - there);
    spoken.say(`Distance ${here - there}, score ${signed(value, 3)}`);
  }

  // Distances run from left to right, scores upwards; the picture is as wide as the page lets it be.
  function draw() {
    const [low, high] = [Math.min(...scores), Math.max(...scores)];
    const height = (value) => 4 + (92 * (high - value)) / (high - low || 1);
    const points = scores.map((value, i) => `${i} ${height(value).toFixed(2)}`).join("L");
    const line = (name, d) => svg("path", { class: name, d, "vector-effect": "non-scaling-stroke" });
    const zero = low < 0 && high > 0 ? `M0 ${height(0)}H${2 * FAR}` : "";
    chart.replaceChildren(
      svg(
        "svg",
        { viewBox: `0 0 ${2 * FAR} 100`, preserveAspectRatio: "none" },
        line("llmfs-axis", `M${FAR} 0V100${zero}`),
        line("llmfs-curve", `M${points}`),
        line("llmfs-here", "M0 0"),
        line("llmfs-point", "M0 0")
      ),
      tag("div.llmfs-ends", {}, tag("span", {}, `−${FAR}`), tag("span", {}, "0"), tag("span", {}, String(FAR)))
    );
    chart.dataset.low = low;
    chart.dataset.high = high;
    const best = scores.indexOf(high) - FAR;
    const worst = scores.indexOf(low) - FAR;
    remark.textContent =
      `Highest at the distance ${signed(best, 0)}: ${signed(high, 3)}. Lowest at ${signed(worst, 0)}: ${signed(low, 3)}. ` +
      "In a GPT the key stands before the query, so only the right half is used.";
  }

  function mark(distance) {
    const { low, high } = chart.dataset;
    const x = distance + FAR;
    const y = 4 + (92 * (high - scores[x])) / (high - low || 1);
    chart.querySelector(".llmfs-here").setAttribute("d", `M${x} 0V100`);
    chart.querySelector(".llmfs-point").setAttribute("d", `M${x} ${y}h0`); // a line of no length: its round end is a dot
  }
});
