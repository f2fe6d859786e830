/* L09: the model's next token under the dials of sampling, and the text and the cache as they grow.
 *
 * data-prompt: the text to begin with. The end-of-text token, with which every story begins, stands before it.
 */
"use strict";

LLMFS.widget("sampling", (element, { options, tokenizer, model }) => {
  const { tag, slider, tokenLabel, newId } = LLMFS;
  const { n_layer, block_size } = model.config;
  const END = tokenizer.specialTokens["<|endoftext|>"];
  const SHOWN = 10; // tokens of the distribution
  const AT_ONCE = 25; // tokens of "write on"
  const TOP_K = [1, 2, 3, 5, 10, 20, 50, null];

  let prompt, ids, cache, logits, random, milliseconds, running;

  const dial = (label, options) => slider({ label, min: 0, ...options, change: turned });
  const percent = (p) => `${(100 * p).toFixed(1)} %`;
  const dials = {
    temperature: dial("Temperature", { max: 2, step: 0.1, value: 1, format: (t) => t.toFixed(1) }),
    topK: dial("Top-k", { max: TOP_K.length - 1, step: 1, value: TOP_K.length - 1, format: (i) => String(TOP_K[i] ?? "off") }),
    topP: dial("Top-p", { max: 1, step: 0.05, value: 1, format: (p) => (p < 1 ? p.toFixed(2) : "off") }),
    minP: dial("Min-p", { max: 0.5, step: 0.01, value: 0, format: (p) => (p > 0 ? p.toFixed(2) : "off") }),
  };
  const promptId = newId();
  const field = { autocomplete: "off", spellcheck: "false", change: restart };
  const promptBox = tag("input", { id: promptId, type: "text", maxlength: 200, ...field });
  promptBox.value = options.prompt;
  const seedId = newId();
  const seedBox = tag("input", { id: seedId, type: "number", min: 0, max: 2 ** 32 - 1, value: 0, ...field });
  const cacheId = newId();
  const cacheBox = tag("input", { id: cacheId, type: "checkbox", checked: true, ...field });
  const next = tag("button.llmfs-button", { type: "button", click: () => step() && showAll() }, "Draw one token");
  const write = tag("button.llmfs-button", { type: "button", click: toggle }, "Write on");
  const again = tag("button.llmfs-button", { type: "button", click: restart }, "Start again");
  const text = tag("p.llmfs-text");
  const bars = tag("tbody");
  const possible = tag("p.llmfs-remark");
  const memory = tag("div.llmfs-memory", { "aria-hidden": "true" });
  const cost = tag("p.llmfs-remark");
  const spoken = LLMFS.announcer();

  element.append(
    tag("div.llmfs-row", {}, tag("label", { for: promptId }, "The text so far"), promptBox),
    tag("div.llmfs-dials", {}, ...Object.values(dials).map((dial) => dial.element)),
    tag("div.llmfs-row", {}, tag("label", { for: seedId }, "Seed"), seedBox, next, write, again),
    text,
    tag(
      "table.llmfs-distribution",
      {},
      tag("caption.llmfs-title", {}, "What may come next"),
      tag(
        "thead",
        {},
        tag("tr", {}, ...["token", "learned", "now"].map((name) => tag("th", { scope: "col" }, name)), tag("td"))
      ),
      bars
    ),
    possible,
    tag("div.llmfs-row", {}, cacheBox, tag("label", { for: cacheId }, "Keep keys and values in a cache")),
    memory,
    cost,
    spoken
  );
  restart();

  function turned() {
    showNext();
    spoken.say(possible.textContent);
  }

  function settings() {
    const topP = dials.topP.value();
    const minP = dials.minP.value();
    return {
      temperature: dials.temperature.value(),
      topK: TOP_K[dials.topK.value()],
      topP: topP < 1 ? topP : null,
      minP: minP > 0 ? minP : null,
    };
  }

  function restart() {
    running = false;
    prompt = [END, ...tokenizer.encode(promptBox.value)].slice(0, block_size - 1);
    ids = [...prompt];
    cache = model.newCache();
    random = LLMFS.randomNumbers(Number(seedBox.value));
    read();
    showAll();
  }

  // The logits of what comes next. With a cache the model reads what is new, without one all of it.
  function read() {
    const begun = performance.now();
    if (!cacheBox.checked) cache = model.newCache();
    logits = model.forward(ids.slice(cache.length), { cache }).at(-1); // (V)
    milliseconds = performance.now() - begun;
  }

  function isOver() {
    return (ids.length > prompt.length && ids.at(-1) === END) || ids.length === block_size;
  }

  // One more token -> whether there was one.
  function step() {
    if (isOver()) return false;
    ids.push(LLMFS.draw(probabilities(), random()));
    if (!isOver()) read();
    return true;
  }

  function probabilities() {
    return LLMFS.softmax(LLMFS.filterLogits(logits, settings()));
  }

  // A token at a time, so that the page shows each as it comes.
  function toggle() {
    running = !running;
    let left = AT_ONCE;
    const tick = () => {
      if (running && left-- > 0 && step()) setTimeout(tick, 30);
      else running = false;
      showAll();
    };
    tick();
  }

  function showAll() {
    write.textContent = running ? "Stop" : "Write on";
    next.disabled = isOver();
    write.disabled = isOver();
    showText();
    showNext();
    showMemory();
  }

  function showText() {
    const written = ids.slice(prompt.length);
    const ended = written.at(-1) === END;
    text.replaceChildren(
      tag("span.llmfs-given", {}, tokenizer.decode(prompt.slice(1))),
      tag("span.llmfs-written", {}, tokenizer.decode(ended ? written.slice(0, -1) : written))
    );
    if (ended) text.append(" ", tag("em", {}, "(end of the text)"));
    else if (isOver()) text.append(" ", tag("em", {}, "(the block is full)"));
    if (written.length && !running) {
      spoken.say(tokenizer.decode(written.slice(-AT_ONCE)) + (ended ? " End of the text." : ""));
    }
  }

  function showNext() {
    const learned = LLMFS.softmax(logits);
    const now = probabilities();
    const best = Array.from(learned.keys())
      .sort((a, b) => learned[b] - learned[a] || a - b)
      .slice(0, SHOWN);
    const rest = (p) => 1 - best.reduce((sum, id) => sum + p[id], 0);
    const rows = best.map((id) => [tokenLabel(tokenizer, id), learned[id], now[id], id]);
    const kept = now.reduce((count, p) => count + (p > 0), 0);
    possible.textContent = `${kept} of ${now.length} tokens can be drawn. The likeliest: ${rows[0][0]}, ${percent(now[best[0]])}.`;
    rows.push([`${learned.length - SHOWN} others`, Math.max(0, rest(learned)), Math.max(0, rest(now)), ""]);
    const widest = Math.max(...rows.flatMap(([, before, after]) => [before, after]));
    bars.replaceChildren(
      ...rows.map(([label, before, after, id]) =>
        tag(
          after > 0 ? "tr" : "tr.llmfs-ruled-out",
          { "data-id": id },
          tag("th", { scope: "row" }, tag("code", {}, label)),
          tag("td.llmfs-number", {}, percent(before)),
          tag("td.llmfs-number", {}, percent(after)),
          tag(
            "td.llmfs-bar-cell",
            { "aria-hidden": "true" },
            tag("div.llmfs-bar", { style: `width: ${(100 * after) / widest}%` }),
            tag("div.llmfs-bar-mark", { style: `left: ${(100 * before) / widest}%` })
          )
        )
      )
    );
  }

  // A row for each layer's keys and one for its values: full, so far filled.
  function showMemory() {
    const share = (100 * cache.length) / block_size;
    memory.replaceChildren(
      ...Array.from({ length: 2 * n_layer }, () =>
        tag("div.llmfs-lane", {}, tag("div.llmfs-fill", { style: `width: ${share}%` }))
      )
    );
    const kilobytes = (length) => `${(model.cacheBytes(length) / 1000).toFixed(0)} kB`;
    const held = cacheBox.checked
      ? `The cache holds the keys and values of ${cache.length} tokens in ${n_layer} layers: ${kilobytes(cache.length)} ` +
        `of the ${kilobytes(block_size)} for a full block of ${block_size}.`
      : `Without a cache the model has read all ${cache.length} tokens again.`;
    cost.textContent = `${held} The last reading took ${milliseconds.toFixed(1)} ms.`;
  }
});
