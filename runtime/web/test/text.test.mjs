import assert from "node:assert/strict";
import { test } from "node:test";
import { InputError } from "../dist/index.js";
import { StopMatcher } from "../dist/text.js";
import { Utf8Decoder } from "../dist/utf8.js";
import { cases, sentence } from "./fixtures.mjs";

test("stop strings are held back and matched as in Python", () => {
  for (const { stops, pushes, shown, hit } of cases("stops")) {
    const matcher = new StopMatcher(stops);
    const got = pushes.map(([text, visible]) => matcher.push(text, visible));
    assert.deepEqual([...got, matcher.flush()], shown, JSON.stringify([stops, pushes]));
    assert.equal(matcher.hit, hit);
  }
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
