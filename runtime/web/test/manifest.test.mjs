import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { checkGraphFile } from "../dist/graphFile.js";
import { BundleError } from "../dist/index.js";
import { readManifest } from "../dist/manifest.js";
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
