/* L10: a story and a question to three models: as trained on stories, fine-tuned on a few answers, and trained
 * on rewards from there.
 *
 * It takes the story from the lesson's result, <p class="llmfs-text">, and the first question from the table there.
 * The models are loaded when the reader asks.
 */
"use strict";

LLMFS.widget("chat", (element, { content }) => {
  const { tag, newId } = LLMFS;
  const CONTINUED = 25; // tokens that the base model writes on
  const ANSWER = 12; // tokens of an answer, at most
  const AT_ONCE = 8; // tokens that a model reads before the page may react
  const KEPT = 6; // questions that stay on the page
  const MODELS = [
    { name: "book", label: "Base", prompt: goOn },
    { name: "few", label: "Fine-tuned", prompt: answer },
    { name: "aligned", label: "Aligned", prompt: answer },
  ];
  // The words of the tales.
  const ANIMALS = ["Mouse", "Bear", "Fox", "Owl", "Frog", "Hare", "Goose", "Cat"];
  const THINGS = ["lantern", "drum", "kite", "key", "basket", "rope", "bell", "flute"];
  const QUESTIONS = {
    animal: "What is NAME?",
    verse: "Who chased the hen?",
    home: "Where does NAME live?",
    thing: "What did NAME take along?",
    place: "Where did they play?",
    last: "Who won the game?",
    helper: "Who helped NAME?",
    spot: "Where did NAME hide?",
    gift: "What did NAME bring?",
    giver: "Who brought the THING?",
    holder: "Who has the THING?",
    whereabouts: "Where is the THING?",
  };

  const [storyId, questionId, kindsId] = [newId(), newId(), newId()];
  const field = { autocomplete: "off", spellcheck: "false" };
  const story = tag("textarea", { id: storyId, rows: 8, maxlength: 1500, ...field });
  story.value = content.querySelector(".llmfs-text").textContent.trim();
  const question = tag("input", { id: questionId, type: "text", maxlength: 200, ...field, keydown: askOnEnter });
  question.value = content.querySelector("tbody th").textContent.trim();
  const kinds = tag(
    "div.llmfs-choice",
    { role: "group", "aria-labelledby": kindsId },
    ...Object.keys(QUESTIONS).map((kind) =>
      tag("button.llmfs-option", { type: "button", "data-kind": kind, click: () => suggest(kind) }, kind)
    )
  );
  LLMFS.arrowKeys(kinds);
  const ask = tag("button.llmfs-button", { type: "button", click: askAll }, "Ask");
  const note = tag("p.llmfs-remark", { role: "status" }, "The three models, 2 MB each, are loaded with the first question.");
  const answers = tag("div.llmfs-answers");
  const spoken = LLMFS.announcer();
  let busy = false;

  element.append(
    tag("label.llmfs-title", { for: storyId }, "The story"),
    story,
    tag("label.llmfs-title", { for: questionId }, "Your question"),
    tag("div.llmfs-row", {}, question, ask),
    tag("p.llmfs-remark", { id: kindsId }, "Kinds of questions that the tales have; press again for another name or thing:"),
    kinds,
    note,
    answers,
    spoken
  );

  // --- the question ---------------------------------------------------------------------------------

  // Fill in the names and things of the story, in turn.
  function suggest(kind) {
    const all = (pattern) => [...new Set(Array.from(story.value.matchAll(pattern), (match) => match[1]))];
    const names = all(new RegExp(`\\b(\\p{Lu}\\p{L}*) (?:${ANIMALS.join("|")})\\b`, "gu"));
    const things = all(new RegExp(`\\b(${THINGS.join("|")})\\b`, "gu"));
    const fillers = QUESTIONS[kind].includes("NAME") ? names : things;
    const written = fillers.map((filler) => QUESTIONS[kind].replace(/NAME|THING/, filler));
    const here = written.indexOf(question.value);
    question.value = written[(here + 1) % written.length] ?? QUESTIONS[kind].replace("NAME", "Mira").replace("THING", "key");
    spoken.say(question.value);
  }

  function askOnEnter(event) {
    if (event.key === "Enter" && !event.isComposing) askAll();
  }

  // --- the answers ----------------------------------------------------------------------------------

  async function askAll() {
    if (busy) return; // the button stays as it is, so that the focus does
    const [told, asked] = [story.value.trim(), question.value.trim()];
    if (!told || !asked) return say("Write a story and a question.");
    busy = true;
    try {
      await answerAll(told, asked);
    } catch (error) {
      say(error instanceof RangeError ? error.message : "The models could not be loaded.");
      console.error(error);
    }
    busy = false;
  }

  async function answerAll(told, asked) {
    say("Loading the models …");
    const loaded = [];
    for (const { name } of MODELS) loaded.push(await LLMFS.load(name));
    const prompts = MODELS.map(({ prompt }, i) => prompt(loaded[i].tokenizer, told, asked));
    prompts.forEach(({ ids, longest }, i) => {
      const room = loaded[i].model.config.block_size - longest;
      if (ids.length > room) throw new RangeError(`The story and the question have ${ids.length} tokens; there is room for ${room}. Shorten the story.`);
    });
    const places = MODELS.map(({ name }) => tag("dd", { "data-model": name }));
    const exchange = tag(
      "section.llmfs-exchange",
      { "aria-label": asked },
      tag("p.llmfs-question", {}, asked),
      tag("dl", {}, ...MODELS.map(({ label }, i) => tag("div", {}, tag("dt", {}, label), places[i])))
    );
    answers.prepend(exchange);
    while (answers.children.length > KEPT) answers.lastChild.remove();
    for (const [i, { label }] of MODELS.entries()) {
      say(`${label}: reading …`);
      await write(loaded[i], prompts[i], (text) => (places[i].textContent = text));
    }
    note.textContent = "";
    exchange.dataset.state = "done";
    spoken.say(`${asked} ${MODELS.map(({ label }, i) => `${label}: ${places[i].textContent}`).join(". ")}`);
  }

  function say(text) {
    note.textContent = text;
  }

  // Without a template: the story, the question, and on.
  function goOn(tokenizer, told, asked) {
    const end = tokenizer.specialTokens["<|endoftext|>"];
    return { ids: [end, ...tokenizer.encode(`${told}\n${asked}`)], stop: end, longest: CONTINUED, trim: false };
  }

  // As in fine-tuning: one turn of the user, then the header of an answer.
  function answer(tokenizer, told, asked) {
    const ids = LLMFS.renderChat(tokenizer, [{ role: "user", content: `${told}\n${asked}` }], { reply: true });
    return { ids, stop: tokenizer.specialTokens[LLMFS.CHAT_STOP], longest: ANSWER, trim: true };
  }

  // The likeliest token each time. Between pieces of work the page may react.
  async function write({ tokenizer, model }, { ids, stop, longest, trim }, show) {
    const cache = model.newCache();
    const written = [];
    let unread = ids;
    while (true) {
      let logits;
      for (let start = 0; start < unread.length; start += AT_ONCE) {
        logits = model.forward(unread.slice(start, start + AT_ONCE), { cache }).at(-1);
        await new Promise((done) => setTimeout(done));
      }
      const id = LLMFS.draw(LLMFS.softmax(LLMFS.filterLogits(logits, { temperature: 0 })), 0);
      if (id === stop) break;
      written.push(id);
      const text = tokenizer.decode(written);
      show(trim ? text.trim() : text);
      if (written.length === longest) break;
      unread = [id];
    }
    if (!written.length) show("(nothing)");
  }
});
