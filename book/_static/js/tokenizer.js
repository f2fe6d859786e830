/* Byte-level BPE in the browser: the tokenizer of llmfs/tokenizer.py, with the same ids.
 *
 *   const tokenizer = new LLMFS.BPETokenizer({ pattern, merges, special_tokens });
 *   tokenizer.vocabSize             number of ids, special tokens included
 *   tokenizer.specialTokens         { "<|endoftext|>": 1023, … }
 *   tokenizer.words(text)           the words that the pattern cuts the text into
 *   tokenizer.mergeSteps(word)      [{ ids, made }, …]: the word as bytes (made: null), then after each merge,
 *                                   made being the token that the merge has put in
 *   tokenizer.encode(text)          ids; a special token in the text counts as the letters that it is written with
 *   tokenizer.tokenBytes(id)        the bytes that a token stands for
 *   tokenizer.decode(ids)           text; bytes that are no UTF-8 become U+FFFD
 *   LLMFS.encodeUtf8(text), LLMFS.decodeUtf8(bytes)
 *
 * The pattern needs the browser's own list of letters and digits. A script that is newer than the browser counts as
 * signs, and may then be cut elsewhere than in Python. It decodes to the same text all the same.
 */
(function (LLMFS) {
  "use strict";

  // The 256 bytes in GPT-2's order: first those that are printed as themselves in Latin-1, then the others.
  const isPrinted = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  const ALL_BYTES = Array.from({ length: 256 }, (_, byte) => byte);
  const BASE_BYTES = [...ALL_BYTES.filter(isPrinted), ...ALL_BYTES.filter((byte) => !isPrinted(byte))];
  const BASE_IDS = new Map(BASE_BYTES.map((byte, id) => [byte, id]));

  class BPETokenizer {
    constructor({ pattern, merges, special_tokens }) {
      this.pattern = compilePattern(pattern);
      this.bytes = BASE_BYTES.map((byte) => [byte]);
      this.ranks = new Map(); // "a,b" -> when that pair was learned, counted from 0
      merges.forEach(([a, b], rank) => {
        this.ranks.set(`${a},${b}`, rank);
        this.bytes.push([...this.bytes[a], ...this.bytes[b]]);
      });
      this.specialTokens = {};
      for (const token of special_tokens) {
        this.specialTokens[token] = this.bytes.length;
        this.bytes.push(encodeUtf8(token));
      }
    }

    get vocabSize() {
      return this.bytes.length;
    }

    words(text) {
      return text.match(this.pattern) ?? [];
    }

    mergeSteps(word) {
      let ids = encodeUtf8(word).map((byte) => BASE_IDS.get(byte));
      const steps = [{ ids, made: null }];
      for (let rank = this.firstLearned(ids); rank !== Infinity; rank = this.firstLearned(ids)) {
        const made = 256 + rank;
        ids = this.merge(ids, rank, made);
        steps.push({ ids, made });
      }
      return steps;
    }

    // The lowest rank of all pairs of neighbors; Infinity where no pair was ever learned.
    firstLearned(ids) {
      let lowest = Infinity;
      for (let i = 1; i < ids.length; i++) {
        const rank = this.ranks.get(`${ids[i - 1]},${ids[i]}`);
        if (rank < lowest) lowest = rank;
      }
      return lowest;
    }

    // Put one token in place of a pair, from left to right, everywhere.
    merge(ids, rank, made) {
      const merged = [];
      for (let i = 0; i < ids.length; i++) {
        if (this.ranks.get(`${ids[i]},${ids[i + 1]}`) === rank) {
          merged.push(made);
          i++; // the second of the pair is used up
        } else {
          merged.push(ids[i]);
        }
      }
      return merged;
    }

    encode(text) {
      return this.words(text).flatMap((word) => this.mergeSteps(word).at(-1).ids);
    }

    tokenBytes(id) {
      if (!(id in this.bytes)) throw new RangeError(`token id ${id} is not in 0 to ${this.vocabSize - 1}`);
      return this.bytes[id];
    }

    decode(ids) {
      return decodeUtf8(Array.from(ids).flatMap((id) => this.tokenBytes(id)));
    }
  }

  // \s of Python is Unicode's White_Space; JavaScript's own \s differs by two characters. The last alternative
  // takes what the pattern leaves out, one character at a time.
  function compilePattern(pattern) {
    const unicode = pattern.replaceAll("\\s", "\\p{White_Space}").replaceAll("\\S", "\\P{White_Space}");
    return new RegExp(`${unicode}|[^]`, "gu");
  }

  // TextEncoder would replace a lone surrogate (half of a pair in UTF-16). Here it takes three bytes, by UTF-8's rule.
  function encodeUtf8(text) {
    const bytes = [];
    for (const character of text) {
      const point = character.codePointAt(0);
      const rest = (shift) => 0x80 | ((point >> shift) & 0x3f);
      if (point < 0x80) bytes.push(point);
      else if (point < 0x800) bytes.push(0xc0 | (point >> 6), rest(0));
      else if (point < 0x10000) bytes.push(0xe0 | (point >> 12), rest(6), rest(0));
      else bytes.push(0xf0 | (point >> 18), rest(12), rest(6), rest(0));
    }
    return bytes;
  }

  // As Python decodes with errors="replace": each longest beginning of a character that does not go on becomes one
  // U+FFFD. Surrogates are read back.
  function decodeUtf8(bytes) {
    let text = "";
    for (let i = 0; i < bytes.length; ) {
      const first = bytes[i];
      const [more, low, high] = expected(first);
      let taken = 1;
      while (taken <= more && inRange(bytes[i + taken], taken === 1 ? low : 0x80, taken === 1 ? high : 0xbf)) taken++;
      if (taken === more + 1) {
        let point = more === 0 ? first : first & (0x3f >> more);
        for (let k = 1; k < taken; k++) point = (point << 6) | (bytes[i + k] & 0x3f);
        text += String.fromCodePoint(point);
      } else {
        if (first === 0xed && bytes[i + 1] >= 0xa0) taken = 1; // only a whole surrogate is one
        text += "\ufffd";
      }
      i += taken;
    }
    return text;
  }

  // How many bytes follow a first byte, and between what the first of them must lie. -1: none can begin like that.
  function expected(first) {
    if (first < 0x80) return [0, 0, 0];
    if (first < 0xc2 || first > 0xf4) return [-1, 0, 0];
    if (first < 0xe0) return [1, 0x80, 0xbf];
    if (first < 0xf0) return [2, first === 0xe0 ? 0xa0 : 0x80, 0xbf];
    return [3, first === 0xf0 ? 0x90 : 0x80, first === 0xf4 ? 0x8f : 0xbf];
  }

  const inRange = (byte, low, high) => byte >= low && byte <= high; // false for undefined

  Object.assign(LLMFS, { BPETokenizer, encodeUtf8, decodeUtf8 });
})((globalThis.LLMFS ??= {}));
