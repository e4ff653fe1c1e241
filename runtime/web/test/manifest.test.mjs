import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { checkGraphFile } from "../dist/graphFile.js";
import { BundleError } from "../dist/index.js";
import { Fraction, parseDocument } from "../dist/json.js";
import { readManifest } from "../dist/manifest.js";
import { Message } from "../dist/protobuf.js";
import { bundle, bytes, cases, sentence } from "./fixtures.mjs";

/** Whether a call is refused in one sentence by an error of this class; anything else that it throws fails. */
export function refused(call, Class = BundleError) {
  try {
    call();
    return false;
  } catch (error) {
    assert.ok(error instanceof Class, error.stack);
    sentence(error);
    return true;
  }
}

test("the same manifests are refused as in Python", () => {
  const found = cases("manifests");
  for (const { content, refused: expected } of found) {
    assert.equal(
      refused(() => readManifest(bytes(content))),
      expected,
      Buffer.from(content, "base64").toString().slice(0, 3000),
    );
  }
  const count = found.filter((c) => c.refused).length;
  assert.ok(count > 400 && found.length - count > 80, `${count} of ${found.length}`);
});

test("JSON that readers could take for other things", () => {
  for (const text of [
    '{"a":1,"a":2}',
    "[1,]",
    "01",
    "+1",
    "1.",
    "NaN",
    '"\\x"',
    '"\t"',
    "[".repeat(300) + "]".repeat(300),
    "1 2",
    "",
    "'a'",
    "\ufeff1",
  ]) {
    assert.throws(() => parseDocument(text), SyntaxError, text);
  }
  assert.throws(() => parseDocument(Uint8Array.of(0x22, 0xff, 0x22)), TypeError);
  assert.equal(parseDocument(' "\\ud83d\\ude00\\n" '), "\u{1f600}\n");
  assert.deepEqual(parseDocument("[1, -0, 9007199254740993]"), [1, 0, 9007199254740993n]);
  assert.deepEqual(parseDocument("[1.0, 1e2]"), [new Fraction(1), new Fraction(100)]);
});

test("members that reach beyond their message", () => {
  assert.throws(() => [...new Message(Uint8Array.of(0x0a, 5, 1)).members()], SyntaxError);
  assert.throws(() => [...new Message(Uint8Array.of(0x80)).members()], SyntaxError);
  assert.throws(() => [...new Message(Uint8Array.of(0x02, 1, 1)).members()], SyntaxError);
  assert.equal([...new Message(Uint8Array.of(0x0a, 1, 65)).members()][0].content.text, "A");
});

test("a chunk that the graph is exact for, and one token more", () => {
  const content = readFileSync(`${bundle("shipped-web")}/model.onnx`);
  const { files } = readManifest(readFileSync(`${bundle("shipped-web")}/manifest.json`));
  checkGraphFile(content, "model.onnx", files, 64);
  assert.ok(refused(() => checkGraphFile(content, "model.onnx", files, 65)));
});

test("the same graph files are refused as in Python", () => {
  const found = cases("graphs");
  for (const { bundle: name, content, refused: expected } of found) {
    const manifest = readManifest(readFileSync(`${bundle(name)}/manifest.json`));
    const call = () => checkGraphFile(bytes(content), "model.onnx", manifest.files, manifest.graph.chunk);
    assert.equal(refused(call), expected, name);
  }
  const count = found.filter((c) => c.refused).length;
  assert.ok(count > 10 && found.length - count > 20, `${count} of ${found.length}`);
});
