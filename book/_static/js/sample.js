/* From logits to text in the browser: the filters and the loop of llmfs/sample.py.
 *
 *   LLMFS.filterLogits(logits, { temperature, topK, topP, minP })   logits (V) -> logits (V), -Infinity: ruled out
 *   LLMFS.softmax(logits)                        probabilities (V); in model.js
 *   const random = LLMFS.randomNumbers(seed)     random() -> the next number in [0, 1)
 *   LLMFS.draw(probabilities, u)                 the first token at which the running sum passes u
 *   LLMFS.generate(model, ids, n, { seed, stop, temperature, … })
 *                                                yields { id, logits, probabilities, cache } for each new token,
 *                                                up to n; stop: ids behind which it ends
 *
 * Settings that are left out, or null, do nothing. temperature 0 always takes the likeliest token. The same seed and
 * settings give the same text in every browser; torch's random numbers are others.
 */
(function (LLMFS) {
  "use strict";

  // In this order, as in Python: temperature, top-k, top-p, min-p. Where Python counts in float32, so does this.
  function filterLogits(logits, { temperature = 1, topK = null, topP = null, minP = null } = {}) {
    check(temperature >= 0 && temperature < Infinity, "temperature", temperature, "0 or more");
    check(topK === null || topK >= 1, "topK", topK, "at least 1, or null for all");
    check(topP === null || (topP >= 0 && topP <= 1), "topP", topP, "a probability in [0, 1], or null");
    check(minP === null || (minP >= 0 && minP <= 1), "minP", minP, "a share in [0, 1], or null");
    if (temperature < 1e-30) return onlyBest(logits);
    let out = Float32Array.from(logits, (logit) => logit / Math.fround(temperature));
    if (topK !== null && topK < out.length) {
      const lowestKept = out.slice().sort().at(-topK); // typed arrays sort as numbers, upwards
      out = out.map((logit) => (logit < lowestKept ? -Infinity : logit));
    }
    if (topP !== null && topP < 1) out = nucleus(out, topP);
    if (minP !== null) {
      // A hair of room, so that 0.4 is 0.8 of 0.5 whatever the floats say.
      const best = out.reduce((a, b) => Math.max(a, b), -Infinity);
      const floor = Math.fround(Math.fround(best + Math.fround(Math.log(minP))) - Math.fround(1e-6));
      out = out.map((logit) => (logit < floor ? -Infinity : logit));
    }
    return out;
  }

  function check(holds, name, value, expected) {
    if (!holds) throw new RangeError(`${name} is ${value}; expected ${expected}`);
  }

  function onlyBest(logits) {
    const best = logits.reduce((winner, logit, id) => (logit > logits[winner] ? id : winner), 0);
    return Float32Array.from(logits, (_, id) => (id === best ? 0 : -Infinity));
  }

  // Rule out every token before which, from the best down, the probability p is already reached.
  function nucleus(logits, p) {
    const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
    const weights = order.map((id) => Math.exp(logits[id] - logits[order[0]]));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const out = new Float32Array(logits.length).fill(-Infinity);
    let before = 0;
    order.forEach((id, place) => {
      if (place === 0 || before < p - 1e-6) out[id] = logits[id]; // 0.5 + 0.4 must count as 0.9
      before += weights[place] / total;
    });
    return out;
  }

  // SplitMix (Steele, Lea & Flood 2014) with 32 bits: a counter that grows by the golden ratio's digits, each value
  // scrambled by the last steps of MurmurHash3 (Appleby 2011). Math.imul multiplies modulo 2^32.
  function randomNumbers(seed) {
    let counter = seed >>> 0;
    return () => {
      counter = (counter + 0x9e3779b9) >>> 0;
      let bits = counter;
      bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
      bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
      return ((bits ^ (bits >>> 16)) >>> 0) / 2 ** 32;
    };
  }

  function draw(probabilities, u) {
    let sum = 0;
    let last = 0;
    for (let id = 0; id < probabilities.length; id++) {
      if (probabilities[id] === 0) continue;
      sum += probabilities[id];
      last = id; // rounding may leave the whole sum a hair below u
      if (sum > u) return id;
    }
    return last;
  }

  // Past the block the oldest half of the window is dropped and the rest is read again, as in Python.
  function* generate(model, ids, n, { seed = 0, stop = [], ...settings } = {}) {
    const block = model.config.block_size;
    const random = randomNumbers(seed);
    const text = Array.from(ids);
    let start = Math.max(0, text.length - block);
    let cache = model.newCache();
    for (let step = 0; step < n; step++) {
      const logits = model.forward(text.slice(start + cache.length), { cache }).at(-1); // (V)
      const probabilities = LLMFS.softmax(filterLogits(logits, settings)); // (V)
      const id = draw(probabilities, random());
      yield { id, logits, probabilities, cache };
      if (stop.includes(id)) return;
      text.push(id);
      if (text.length - start > block) {
        start = text.length - (block - Math.floor(block / 2));
        cache = model.newCache();
      }
    }
  }

  Object.assign(LLMFS, { filterLogits, randomNumbers, draw, generate });
})((globalThis.LLMFS ??= {}));
