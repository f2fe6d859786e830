/* L03, L04: where the heads of the model look in a sentence.
 *
 * data-text: the sentence to begin with; data-layer, data-head: the head to begin with, counted from 1;
 * data-heads: "all" shows the maps of all heads to choose from, and what they look at on the average.
 */
"use strict";

LLMFS.widget("attention", (element, { options, tokenizer, model }) => {
  const { tag, svg, choice, sentence } = LLMFS;
  const { n_layer, n_head, block_size } = model.config;
  const LONGEST = Math.min(24, block_size); // tokens
  const SHOWN = 6; // keys of a row
  const SHADES = 20;
  const ROLES = ["the token before", "after earlier copies", "the start"];

  const percent = (weight) => `${(100 * weight).toFixed(1)} %`;
  const from = (option, n) => Math.min(Number(option), n) - 1;
  const heads = Array.from({ length: n_layer * n_head }, (_, i) => [Math.floor(i / n_head), i % n_head]);
  const text = sentence({ label: "Your sentence", text: options.text, tokenizer, longest: LONGEST, change: read });
  const first = { layer: from(options.layer, n_layer), head: from(options.head, n_head) };
  const choose = options.heads === "all" ? chooseByMap() : chooseByNumber();
  const rows = choice({ label: "Choose a token that looks", change: showRow });
  rows.group.classList.add("llmfs-map-rows");
  const title = tag("p.llmfs-title");
  const columns = tag("div.llmfs-map-columns", { "aria-hidden": "true" });
  const map = tag("div.llmfs-map-cells", { "aria-hidden": "true", click: chooseByPlace });
  const grid = tag("div.llmfs-map", {}, columns, rows.group, map);
  const rowTitle = tag("caption.llmfs-title");
  const strongest = tag("tbody");
  const spoken = LLMFS.announcer();
  let weights; // weights[l][h][t][s]

  element.append(
    text.element,
    choose.element,
    title,
    rows.element, // its buttons stand in the map
    grid,
    tag("p.llmfs-remark", {}, "A row is a token that looks, a column one that is looked at; the fuller the color, the more. Gray: later tokens, which it cannot see."),
    tag(
      "table.llmfs-distribution",
      {},
      rowTitle,
      tag("thead", {}, tag("tr", {}, ...["place", "token", "weight"].map((name) => tag("th", { scope: "col" }, name)), tag("td"))),
      strongest
    ),
    spoken
  );
  read();

  function read() {
    const record = {};
    model.forward(text.ids(), { record });
    weights = record.layers.map((layer) => layer.weights);
    const labels = text.labels();
    rows.fill(labels, labels.length - 1);
    columns.replaceChildren(...labels.map((label) => tag("span", {}, label)));
    grid.style.setProperty("--tokens", labels.length);
    choose.draw();
    showHead();
  }

  // --- which head -----------------------------------------------------------------------------------

  function chooseByNumber() {
    const names = (n) => Array.from({ length: n }, (_, i) => String(i + 1));
    const layer = choice({ label: "Layer", names: names(n_layer), value: first.layer, change: showHead });
    const head = choice({ label: "Head", names: names(n_head), value: first.head, change: showHead });
    const element = tag("div.llmfs-dials", {}, layer.element, head.element);
    return { element, value: () => [layer.value(), head.value()], draw: () => {} };
  }

  // Small maps, a row of them for each layer, and the numbers that say what they show.
  function chooseByMap() {
    const place = first.layer * n_head + first.head;
    const maps = choice({ label: "Choose a head, layer.head", change: showHead });
    maps.group.classList.add("llmfs-maps");
    maps.group.style.setProperty("--heads", n_head);
    const body = tag("tbody");
    const header = ["head", ...ROLES].map((name) => tag("th", { scope: "col" }, name));
    const table = tag(
      "table.llmfs-values",
      {},
      tag("caption.llmfs-title", {}, "Mean weight on …"),
      tag("thead", {}, tag("tr", {}, ...header)),
      body
    );
    const box = tag("div.scroll-box", { tabindex: 0, role: "region", "aria-label": "Mean weights of all heads" }, table);
    const name = ([layer, head]) => `${layer + 1}.${head + 1}`;
    let chosen = place;
    const draw = () => {
      const all = heads.map(([layer, head]) => weights[layer][head]);
      if (maps.group.children.length) chosen = maps.value();
      maps.fill(heads.map((head, i) => tag("span", {}, picture(all[i]), name(head))), chosen);
      body.replaceChildren(
        ...heads.map((head, i) =>
          tag(
            "tr",
            { "data-head": name(head) },
            tag("th", { scope: "row" }, name(head)),
            ...roles(all[i]).map((mean) => tag("td.llmfs-number", {}, mean === null ? "–" : percent(mean)))
          )
        )
      );
    };
    return { element: tag("div", {}, maps.element, box), value: () => heads[maps.value()], draw };
  }

  // Means over the tokens to which each applies: all but the first; those that came before; all but the first.
  function roles(rows) {
    const ids = text.ids();
    const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
    const behind = ids.map((id, t) => ids.flatMap((other, s) => (s < t && other === id ? [s + 1] : [])));
    const copied = behind.flatMap((places, t) => (places.length ? [places.reduce((sum, s) => sum + rows[t][s], 0)] : []));
    const later = rows.slice(1);
    return [mean(later.map((row, i) => row[i])), mean(copied), mean(later.map((row) => row[0]))];
  }

  // --- one head -------------------------------------------------------------------------------------

  function showHead() {
    const [layer, head] = choose.value();
    title.textContent = `Layer ${layer + 1}, head ${head + 1}`;
    map.replaceChildren(picture(weights[layer][head]));
    showRow();
  }

  function showRow() {
    const labels = text.labels();
    const t = rows.value();
    const [layer, head] = choose.value();
    const row = weights[layer][head][t].slice(0, t + 1);
    const order = Array.from(row.keys()).sort((a, b) => row[b] - row[a] || a - b);
    const lines = order.slice(0, SHOWN).map((s) => [String(s), labels[s], row[s]]);
    const rest = order.slice(SHOWN);
    if (rest.length) lines.push(["", `${rest.length} others`, rest.reduce((sum, s) => sum + row[s], 0)]);
    rowTitle.replaceChildren("Where ", tag("code", {}, labels[t]), ` (place ${t}) looks, strongest first`);
    strongest.replaceChildren(
      ...lines.map(([place, label, weight]) =>
        tag(
          "tr",
          { "data-place": place },
          tag("td.llmfs-number", {}, place),
          tag("th", { scope: "row" }, place ? tag("code", {}, label) : label),
          tag("td.llmfs-number", {}, percent(weight)),
          tag("td.llmfs-bar-cell", { "aria-hidden": "true" }, tag("div.llmfs-bar", { style: `width: ${100 * weight}%` }))
        )
      )
    );
    outline(t);
    spoken.say(`${text.note()} Layer ${layer + 1}, head ${head + 1}: ${labels[t]} looks most at ${lines[0][1]}, ${percent(lines[0][2])}`);
  }

  // The weights (T, T), with a path for each shade: cells that are alike are drawn together.
  function picture(rows) {
    const T = rows.length;
    const paths = new Map(); // shade -> what is drawn in it
    rows.forEach((row, t) =>
      row.forEach((weight, s) => {
        const shade = Math.round(SHADES * weight);
        if (shade > 0) paths.set(shade, `${paths.get(shade) ?? ""}M${s} ${t}h1v1h-1z`);
      })
    );
    const unseen = rows.map((_, t) => `M${t + 1} ${t}H${T}v1H${t + 1}z`).join("");
    const shaded = Array.from(paths, ([shade, d]) => svg("path", { class: "llmfs-cell", opacity: shade / SHADES, d }));
    return svg(
      "svg",
      { viewBox: `0 0 ${T} ${T}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("path", { class: "llmfs-unseen", d: unseen }),
      ...shaded
    );
  }

  function outline(t) {
    map.querySelector(".llmfs-chosen-row")?.remove();
    const size = { x: 0, y: t, width: text.ids().length, height: 1, "vector-effect": "non-scaling-stroke" };
    map.firstChild.append(svg("rect", { class: "llmfs-chosen-row", ...size }));
  }

  // With a mouse any cell of a row will do.
  function chooseByPlace(event) {
    const box = map.getBoundingClientRect();
    const T = text.ids().length;
    rows.set(Math.max(0, Math.min(T - 1, Math.floor((T * (event.clientY - box.top)) / box.height))));
    showRow();
  }
});
