/* The chat template in the browser: render_chat of llmfs/sft.py.
 *
 *   LLMFS.renderChat(tokenizer, messages, { reply })   ids of the conversation
 *                                messages: [{ role: "system" | "user" | "assistant", content }, …]
 *                                reply: true ends with the header of an answer, for the model to go on from
 *   LLMFS.CHAT_STOP              the special token behind every message
 *
 * What a message says is encoded with no special token recognized, so that no one can forge a turn.
 */
(function (LLMFS) {
  "use strict";

  const BEGIN = "<|endoftext|>";
  const CHAT_STOP = "<|end|>";
  const HEADERS = { system: "<|system|>", user: "<|user|>", assistant: "<|assistant|>" };

  function renderChat(tokenizer, messages, { reply = false } = {}) {
    const special = tokenizer.specialTokens;
    if (!(CHAT_STOP in special)) throw new RangeError(`the tokenizer has no ${CHAT_STOP}: it is none for chat`);
    checkMessages(messages, reply);
    const ids = BEGIN in special ? [special[BEGIN]] : [];
    for (const { role, content } of messages) {
      ids.push(special[HEADERS[role]], ...tokenizer.encode(" " + content), special[CHAT_STOP]);
    }
    if (reply) ids.push(special[HEADERS.assistant]);
    return ids;
  }

  // At most one system message, at the front, then user and assistant in turn.
  function checkMessages(messages, reply) {
    let expected = ["system", "user"];
    messages.forEach(({ role, content }, i) => {
      if (!expected.includes(role)) throw new RangeError(`message ${i + 1} is from ${role}; expected ${expected}`);
      if (!content.trim()) throw new RangeError(`message ${i + 1} says nothing`);
      expected = role === "user" ? ["assistant"] : ["user"];
    });
    const last = reply ? "user" : "assistant";
    if (messages.at(-1)?.role !== last) throw new RangeError(`the last message must be from ${last}`);
  }

  Object.assign(LLMFS, { renderChat, CHAT_STOP });
})((globalThis.LLMFS ??= {}));
