/* The book's GPT in the browser: the forward pass of llmfs/gpt.py, one vector at a time.
 *
 *   const model = new LLMFS.GPT({ config, tensors });    what a file of models/ holds
 *   model.config                         the fields of GPTConfig, and head_size
 *   model.newCache()                     an empty cache of keys and values
 *   model.forward(ids, { cache, record, causal, isSilent })
 *                                        logits of every position: T arrays of V. All options may be left out.
 *                                        cache: holds the earlier tokens; this call adds its own
 *                                        record: an object that is filled with what happened inside, see below
 *                                        causal: false lets every token see all of these ids
 *                                        isSilent(layer, head): true takes the head's output away
 *   model.readOut(x)                     logits of one state of the residual stream (C): the last norm and the head
 *   model.turned(x, position)            a query or key (hd) turned to a position; -position turns it back
 *   model.cacheBytes(length)             bytes of keys and values for so many tokens, as float32
 *
 * In a record, for every token t of the call and every key s that the cache holds (T, C, H, Hkv, hd as in the book):
 *
 *   record.hidden[l][t]                  the residual stream before block l (C); l = L: behind the last
 *   record.layers[l].q[h][t]             queries (hd), normalized and turned; h up to H
 *   record.layers[l].k[h][s], v[h][s]    keys and values (hd); h up to Hkv
 *   record.layers[l].scores[h][t][s]     q · k / √hd, before the mask
 *   record.layers[l].weights[h][t][s]    after mask and softmax: what the head really takes from s
 *   record.layers[l].attention[t]        what attention adds to the stream (C)
 *   record.layers[l].mlp[t]              what the MLP adds to it (C)
 *
 * A vector is a Float32Array; sums are taken in double precision. Weights come as whole numbers of eight bits with a
 * scale for each row (llmfs/quantize.py) and are multiplied out once.
 */
(function (LLMFS) {
  "use strict";

  class GPT {
    constructor({ config, tensors }) {
      this.config = { ...config, head_size: config.n_embd / config.n_head };
      const weight = (name) => unpack(tensors[name]);
      this.embed = weight("embed.weight"); // (V, C)
      this.head = config.tie_weights ? this.embed : weight("lm_head.weight"); // (V, C)
      this.finalNorm = weight("final_norm.weight"); // (C)
      this.blocks = Array.from({ length: config.n_layer }, (_, layer) => {
        const own = (name) => weight(`blocks.${layer}.${name}`);
        return {
          attnNorm: own("attn_norm.weight"), // (C)
          q: own("attn.q_proj.weight"), // (H hd, C)
          k: own("attn.k_proj.weight"), // (Hkv hd, C)
          v: own("attn.v_proj.weight"), // (Hkv hd, C)
          o: own("attn.o_proj.weight"), // (C, H hd)
          qGain: config.qk_norm ? own("attn.q_gain") : null, // (hd)
          kGain: config.qk_norm ? own("attn.k_gain") : null, // (hd)
          mlpNorm: own("mlp_norm.weight"), // (C)
          gate: own("mlp.gate_proj.weight"), // (d_ff, C)
          up: own("mlp.up_proj.weight"), // (d_ff, C)
          down: own("mlp.down_proj.weight"), // (C, d_ff)
        };
      });
    }

    // k[layer][head][s] and v[layer][head][s] are vectors (hd).
    newCache() {
      const { n_layer, n_kv_head } = this.config;
      const empty = () => Array.from({ length: n_layer }, () => Array.from({ length: n_kv_head }, () => []));
      return { k: empty(), v: empty(), length: 0 };
    }

    cacheBytes(length) {
      const { n_layer, n_kv_head, head_size } = this.config;
      return 2 * n_layer * n_kv_head * head_size * length * Float32Array.BYTES_PER_ELEMENT;
    }

    forward(ids, { cache = this.newCache(), record = {}, causal = true, isSilent = () => false } = {}) {
      const { vocab_size, block_size, n_embd } = this.config;
      const start = cache.length;
      if (start + ids.length > block_size) {
        throw new RangeError(`${start + ids.length} tokens, but the model can look back on ${block_size}`);
      }
      let x = Array.from(ids, (id) => {
        if (!(id >= 0 && id < vocab_size)) throw new RangeError(`token id ${id} is not in 0 to ${vocab_size - 1}`);
        return this.embed.slice(id * n_embd, (id + 1) * n_embd);
      }); // T vectors (C)
      record.hidden = [x];
      record.layers = [];
      this.blocks.forEach((block, layer) => {
        const inside = {};
        const read = x.map((row) => this.norm(row, block.attnNorm));
        const options = { start, causal, isSilent: (head) => isSilent(layer, head) };
        inside.attention = this.attend(block, read, cache.k[layer], cache.v[layer], inside, options);
        x = x.map((row, t) => add(row, inside.attention[t]));
        inside.mlp = x.map((row) => this.mlp(block, this.norm(row, block.mlpNorm)));
        x = x.map((row, t) => add(row, inside.mlp[t]));
        record.layers.push(inside);
        record.hidden.push(x);
      });
      cache.length = start + ids.length;
      return x.map((row) => this.readOut(row)); // T vectors (V)
    }

    readOut(x) {
      return linear(this.head, this.norm(x, this.finalNorm));
    }

    // read: T vectors (C); keys, values: the layer's part of the cache, which grows by T -> T vectors (C).
    attend(block, read, keys, values, inside, { start, causal, isSilent }) {
      const { n_head: H, n_kv_head: Hkv, head_size: hd } = this.config;
      const q = read.map((row, t) => this.turnedHeads(linear(block.q, row), block.qGain, start + t)); // [t][h]
      read.forEach((row, t) => {
        const k = this.turnedHeads(linear(block.k, row), block.kGain, start + t);
        const v = split(linear(block.v, row), hd);
        for (let h = 0; h < Hkv; h++) {
          keys[h][start + t] = k[h];
          values[h][start + t] = v[h];
        }
      });
      const S = start + read.length;
      const merged = read.map(() => new Float32Array(H * hd)); // heads side by side
      inside.k = keys.map((head) => head.slice(0, S));
      inside.v = values.map((head) => head.slice(0, S));
      inside.q = [];
      inside.scores = [];
      inside.weights = [];
      for (let h = 0; h < H; h++) {
        const shared = Math.floor((h * Hkv) / H); // the key/value head of this query head's group
        const scores = q.map((heads) => inside.k[shared].map((key) => dot(heads[h], key) / Math.sqrt(hd)));
        const weights = scores.map((row, t) => softmax(row.map((z, s) => (causal && s > start + t ? -Infinity : z))));
        inside.q.push(q.map((heads) => heads[h]));
        inside.scores.push(scores.map((row) => Float32Array.from(row)));
        inside.weights.push(weights);
        if (!isSilent(h)) weights.forEach((row, t) => merged[t].set(mix(row, inside.v[shared]), h * hd));
      }
      return merged.map((row) => linear(block.o, row));
    }

    // One token's queries or keys (heads hd) -> for each head a vector (hd), normalized and turned by its position.
    turnedHeads(vector, gain, position) {
      const { head_size, qk_norm, pos } = this.config;
      return split(vector, head_size).map((head) => {
        const normed = qk_norm ? this.norm(head, gain) : head;
        return pos === "rope" ? this.turned(normed, position) : normed;
      });
    }

    // Rotary positions: channels i and i + hd/2 are a pair, turned by position * theta^(-2i/hd) radians.
    turned(x, position) {
      const half = x.length / 2;
      const out = new Float32Array(x.length);
      for (let i = 0; i < half; i++) {
        const angle = position * this.config.rope_theta ** (-i / half);
        const cos = Math.cos(angle);
        const sin = Math.sin(angle);
        out[i] = x[i] * cos - x[i + half] * sin;
        out[i + half] = x[i + half] * cos + x[i] * sin;
      }
      return out;
    }

    // SwiGLU: down(silu(gate(x)) * up(x)).
    mlp(block, x) {
      const hidden = linear(block.gate, x); // (d_ff)
      const up = linear(block.up, x); // (d_ff)
      for (let i = 0; i < hidden.length; i++) hidden[i] = (hidden[i] / (1 + Math.exp(-hidden[i]))) * up[i];
      return linear(block.down, hidden); // (C)
    }

    // RMSNorm: divided by the root of the mean square, times a learned gain.
    norm(x, gain) {
      const scale = 1 / Math.sqrt(dot(x, x) / x.length + this.config.norm_eps);
      return x.map((value, i) => value * scale * gain[i]);
    }
  }

  // weight (out, in) as one long array, x (in) -> (out)
  function linear(weight, x) {
    const out = new Float32Array(weight.length / x.length);
    for (let o = 0, i = 0; o < out.length; o++) {
      let sum = 0;
      for (let c = 0; c < x.length; c++, i++) sum += weight[i] * x[c];
      out[o] = sum;
    }
    return out;
  }

  function dot(a, b) {
    let sum = 0;
    for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
    return sum;
  }

  // weights (S), vectors: S of (hd) -> their weighted sum (hd)
  function mix(weights, vectors) {
    const out = new Float64Array(vectors[0].length);
    weights.forEach((weight, s) => {
      if (weight > 0) vectors[s].forEach((value, i) => (out[i] += weight * value));
    });
    return out;
  }

  function softmax(scores) {
    const highest = scores.reduce((a, b) => Math.max(a, b), -Infinity); // taken off, so that exp cannot overflow
    const out = Float32Array.from(scores, (score) => Math.exp(score - highest));
    const total = out.reduce((sum, value) => sum + value, 0);
    return out.map((value) => value / total);
  }

  const add = (a, b) => a.map((value, i) => value + b[i]);

  const split = (vector, size) =>
    Array.from({ length: vector.length / size }, (_, h) => vector.subarray(h * size, (h + 1) * size));

  // { shape, int8, scales } or { shape, float32 }, base64 of the bytes -> one long Float32Array
  function unpack({ shape, int8, scales, float32 }) {
    if (float32 !== undefined) return new Float32Array(decodeBase64(float32).buffer);
    const numbers = new Int8Array(decodeBase64(int8).buffer); // (out, in)
    const scale = new Float32Array(decodeBase64(scales).buffer); // (out)
    const [rows, columns] = shape;
    const weight = new Float32Array(rows * columns);
    for (let o = 0, i = 0; o < rows; o++) {
      for (let c = 0; c < columns; c++, i++) weight[i] = numbers[i] * scale[o];
    }
    return weight;
  }

  const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const VALUES = new Uint8Array(128);
  for (let value = 0; value < 64; value++) VALUES[DIGITS.charCodeAt(value)] = value;

  // Four characters of 6 bits are three bytes.
  function decodeBase64(text) {
    const padding = text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0;
    const bytes = new Uint8Array((text.length / 4) * 3 - padding);
    const digit = (i) => VALUES[text.charCodeAt(i)];
    for (let i = 0, b = 0; i < text.length; i += 4) {
      const bits = (digit(i) << 18) | (digit(i + 1) << 12) | (digit(i + 2) << 6) | digit(i + 3);
      bytes[b++] = bits >> 16; // what lies beyond the end of the array is dropped
      bytes[b++] = (bits >> 8) & 0xff;
      bytes[b++] = bits & 0xff;
    }
    return bytes;
  }

  Object.assign(LLMFS, { GPT, softmax, decodeBase64 });
})((globalThis.LLMFS ??= {}));
