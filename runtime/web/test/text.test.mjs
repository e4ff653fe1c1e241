import assert from "node:assert/strict";
import { test } from "node:test";
import { InputError } from "../dist/index.js";
import { resolveOptions } from "../dist/options.js";
import { StopMatcher, streamText } from "../dist/text.js";
import { Utf8Decoder } from "../dist/utf8.js";
import { cases, collect, sentence } from "./fixtures.mjs";

test("stop strings are held back and matched as in Python", () => {
  for (const { stops, pushes, shown, hit } of cases("stops")) {
    const matcher = new StopMatcher(stops);
    const got = pushes.map(([text, visible]) => matcher.push(text, visible));
    assert.deepEqual([...got, matcher.flush()], shown, JSON.stringify([stops, pushes]));
    assert.equal(matcher.hit, hit);
  }
});

/** A session that says these ids whatever it reads, and a tokenizer whose last word waits for the next token. */
function scripted(ids) {
  const words = ["", "ab", "<e>", "x"];
  const stream = () => {
    let held = "";
    const settle = () => {
      const text = held;
      held = "";
      return text;
    };
    const push = (id) => {
      const text = id === 2 ? "" : settle();
      if (id !== 2) held = words[id];
      return text;
    };
    return { push, settle, flush: settle };
  };
  const tokenizer = { added: new Map([["<e>", 2]]), specialText: (id) => (id === 2 ? "<e>" : ""), stream };
  const model = { tokenizer: async () => tokenizer, encode: async () => [0], resolve: (options) => resolveOptions(options) };
  let said = 0;
  const session = { model, vocabSize: 4, chunk: 8, tokens: 0, checkIds: (given) => [...given] };
  session.advance = async () => {
    const next = ids[said++];
    return Float32Array.from(words, (_, id) => (id === next ? 1 : 0));
  };
  return session;
}

test("special tokens take part in stop strings, in their order, and are never shown", async () => {
  const run = async (ids, stop) => {
    const events = await collect(streamText(scripted(ids), "", { stop, maxTokens: ids.length }));
    const finish = events.pop();
    return [events.map((event) => event.text).join(""), finish.reason, finish.usage.generatedTokens];
  };
  assert.deepEqual(await run([3, 1, 2, 3], []), ["xabx", "length", 4]);
  assert.deepEqual(await run([3, 1, 2, 3], ["ab<e>"]), ["x", "stop", 3]); // what waits comes before the special token
  assert.deepEqual(await run([3, 1, 2, 3], ["<e>"]), ["xab", "stop", 2]); // a stop string that is one token is its id
  assert.deepEqual(await run([3, 1, 3, 1], ["bx"]), ["xa", "stop", 4]);
});

test("stop strings that are none", () => {
  for (const stops of ["a", [""], [1], ["\ud800"], null, {}]) {
    assert.throws(
      () => new StopMatcher(stops),
      (e) => e instanceof InputError && !!sentence(e),
    );
  }
});

test("UTF-8 of any bytes is what TextDecoder makes of them, however it is cut", () => {
  let seed = 1;
  const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
  const interesting = [
    0x00, 0x41, 0x80, 0xbf, 0xc0, 0xc2, 0xdf, 0xe0, 0xa0, 0x9f, 0xed, 0xef, 0xbb, 0xf0, 0x90, 0x8f, 0xf4, 0xf5, 0xff,
  ];
  for (let i = 0; i < 3000; i++) {
    const data = Uint8Array.from({ length: random(12) }, () => interesting[random(interesting.length)]);
    const decoder = new Utf8Decoder();
    const cut = random(data.length + 1);
    const got = decoder.push(data.subarray(0, cut)) + decoder.push(data.subarray(cut)) + decoder.flush();
    assert.equal(got, new TextDecoder("utf-8", { ignoreBOM: true }).decode(data));
  }
});
