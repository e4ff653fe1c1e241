// The sampler written again from the docstrings of sampling.py and exact_math.py, to show that they say enough.
// node sampling.js sampling.json: prints the ids of every case, as JSON.
const fs = require("fs");
const MASK = (1n << 64n) - 1n;
const T = [
  1.0, 1.0442737824274138, 1.0905077326652577, 1.1387886347566916, 1.189207115002721, 1.241857812073484,
  1.2968395546510096, 1.3542555469368927, 1.4142135623730951, 1.4768261459394993, 1.5422108254079407, 1.6104903319492543,
  1.681792830507429, 1.7562521603732995, 1.8340080864093424, 1.9152065613971474,
];

class SplitMix64 {
  constructor(seed) { this.state = BigInt(seed); }
  next() {
    this.state = (this.state + 0x9E3779B97F4A7C15n) & MASK;
    let z = this.state;
    z = ((z ^ (z >> 30n)) * 0xBF58476D1CE4E5B9n) & MASK;
    z = ((z ^ (z >> 27n)) * 0x94D049BB133111EBn) & MASK;
    return z ^ (z >> 31n);
  }
  below(n) { return Number((this.next() * BigInt(n)) >> 64n); }
}

function weight(x) {
  if (x < -24) return 0;
  const k = Math.floor(x * 23.083120654223414 + 0.5);
  const r = x - k * 0.04332169878499658;
  const p = (((r * (1 / 24) + 1 / 6) * r + 0.5) * r + 1) * r + 1;
  return Math.floor(p * T[((k % 16) + 16) % 16] * 2 ** (Math.floor(k / 16) + 32));
}

function sampler(options, prompt) {
  const o = { temperature: 0, top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1, presence_penalty: 0,
    frequency_penalty: 0, penalty_window: 64, logit_bias: {}, banned: [], ...options };
  const random = new SplitMix64(o.seed);
  const seen = [...prompt];
  return (logits) => {
    const z = Float32Array.from(logits);
    const counts = new Map();
    for (const id of seen.slice(-o.penalty_window)) counts.set(id, (counts.get(id) || 0) + 1);
    for (const [id, c] of counts) {
      const y = z[id] > 0 ? z[id] / o.repetition_penalty : z[id] * o.repetition_penalty;
      z[id] = y - (o.presence_penalty + o.frequency_penalty * c);
    }
    for (const [id, bias] of Object.entries(o.logit_bias)) z[id] = Math.fround(z[id] + Math.fround(bias));
    for (const id of o.banned) z[id] = -Infinity;
    let order = Array.from(z.keys()).sort((a, b) => z[b] - z[a] || a - b);
    const pick = (() => {
      if (!o.temperature) return order[0];
      const m = z[order[0]];
      if (o.top_k) order = order.slice(0, o.top_k);
      const w = new Map(order.map((id) => [id, weight(z[id] - m)]));
      if (o.top_p < 1) {
        const wanted = o.top_p * order.reduce((sum, id) => sum + w.get(id), 0);
        let sum = 0, count = 0;
        while (sum < wanted) sum += w.get(order[count++]);
        order = order.slice(0, count);
      }
      if (o.min_p > 0) order = order.filter((id) => w.get(id) >= o.min_p * 2 ** 32);
      if (o.temperature !== 1) for (const id of order) w.set(id, weight((z[id] - m) / o.temperature));
      order.sort((a, b) => a - b);
      const r = random.below(order.reduce((sum, id) => sum + w.get(id), 0));
      let sum = 0;
      for (const id of order) if ((sum += w.get(id)) > r) return id;
    })();
    seen.push(pick);
    return pick;
  };
}

const golden = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const results = golden.cases.map(({ vocab, salt, options, prompt, ids }) => {
  const sample = sampler(options, prompt);
  return ids.map((_, t) =>
    sample(Array.from({ length: vocab }, (_, i) => (Number((BigInt(i) * 2654435761n + BigInt(salt) * 40503n + BigInt(t) * 97n) % 4294967296n >> 16n)) / 4096 - 8)));
});
console.log(JSON.stringify(results));
