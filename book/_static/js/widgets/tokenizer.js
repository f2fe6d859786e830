/* L01: type a text; see its tokens, how one word was merged, and what other ways of cutting would need.
 *
 * data-text: the text to begin with.
 */
"use strict";

LLMFS.widget("tokenizer", (element, { options, tokenizer }) => {
  const { tag, tokenLabel, visible, color, newId } = LLMFS;
  const LONGEST = 1000; // characters

  const textId = newId();
  const box = tag("textarea", { id: textId, rows: 3, maxlength: LONGEST, spellcheck: "false", input: show });
  box.value = options.text;
  const counts = tag("tbody");
  const hint = "Tokens; arrow keys move between them; choose one to see how its word was merged";
  const tokens = tag("div.llmfs-pieces", { role: "group", "aria-label": hint });
  const steps = tag("ol.llmfs-steps");
  const stepsTitle = tag("p.llmfs-title");
  const spoken = LLMFS.announcer();
  let chosenWord = 0;

  element.append(
    tag("label.llmfs-title", { for: textId }, "Your text"),
    box,
    tag("table.llmfs-counts", {}, tag("caption.llmfs-spoken", {}, "The length of the text, counted in four ways"), counts),
    tag("p.llmfs-title", {}, "Its tokens"),
    tokens,
    stepsTitle,
    steps,
    spoken
  );
  show();

  function show() {
    const words = tokenizer.words(box.value);
    chosenWord = Math.max(0, Math.min(chosenWord, words.length - 1));
    const merged = words.map((word) => tokenizer.mergeSteps(word));
    const ids = merged.flatMap((all) => all.at(-1).ids);
    showCounts(words.length, ids.length);
    showTokens(merged);
    showSteps(words, merged);
    spoken.say(`${ids.length} tokens for ${Array.from(box.value).length} characters`);
  }

  function showCounts(nWords, nTokens) {
    const rows = [
      ["bytes", LLMFS.encodeUtf8(box.value).length],
      ["characters", Array.from(box.value).length],
      ["tokens", nTokens],
      ["words", nWords],
    ];
    const most = Math.max(1, ...rows.map(([, count]) => count));
    counts.replaceChildren(
      ...rows.map(([name, count]) =>
        tag(
          "tr",
          { "data-count": name },
          tag("th", { scope: "row" }, name),
          tag("td.llmfs-number", {}, String(count)),
          tag(
            "td.llmfs-bar-cell",
            { "aria-hidden": "true" },
            tag("div.llmfs-bar", { style: `width: ${(100 * count) / most}%` })
          )
        )
      )
    );
  }

  function showTokens(merged) {
    let place = 0;
    tokens.replaceChildren(
      ...merged.flatMap((all, word) =>
        all.at(-1).ids.map((id) => {
          const choose = () => {
            chosenWord = word;
            for (const button of tokens.children) {
              button.setAttribute("aria-pressed", button.dataset.word === String(word));
            }
            showSteps(tokenizer.words(box.value), merged);
          };
          return tag(
            "button.llmfs-piece",
            {
              type: "button",
              style: `--piece: ${color(place++)}`,
              "data-id": id,
              "data-word": word,
              "aria-pressed": String(word === chosenWord),
              click: choose,
            },
            tag("span.llmfs-piece-text", {}, tokenLabel(tokenizer, id)),
            tag("span.llmfs-piece-id", {}, String(id))
          );
        })
      )
    );
    LLMFS.arrowKeys(tokens);
  }

  function showSteps(words, merged) {
    if (words.length === 0) {
      stepsTitle.textContent = "";
      steps.replaceChildren();
      return;
    }
    const all = merged[chosenWord];
    const word = tag("code", {}, visible(words[chosenWord]));
    stepsTitle.replaceChildren("How ", word, " was put together, the earliest merge first");
    steps.replaceChildren(
      ...all.map(({ ids, made }) =>
        tag(
          "li",
          {},
          tag(
            "span.llmfs-pieces",
            {},
            ...ids.map((id) => tag(id === made ? "strong.llmfs-part" : "span.llmfs-part", {}, tokenLabel(tokenizer, id)))
          ),
          tag("span.llmfs-remark", {}, made === null ? "the bytes" : `merge ${made - 255} makes token ${made}`)
        )
      )
    );
  }
});
