import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const WORDS =
  "--noEmit --strict --exactOptionalPropertyTypes --target es2022 --lib es2022,dom,dom.iterable --skipLibCheck".split(" ");

for (const [module, resolution] of [
  ["nodenext", "nodenext"],
  ["esnext", "bundler"],
]) {
  test(`the types fit an app, and both packages of onnxruntime: ${resolution}`, () => {
    const line = [
      "node_modules/typescript/bin/tsc",
      ...WORDS,
      "--module",
      module,
      "--moduleResolution",
      resolution,
      "test/types/use.ts",
    ];
    const { stdout, status } = spawnSync(process.execPath, line, { cwd: ROOT, encoding: "utf8" });
    assert.equal(stdout, "");
    assert.equal(status, 0);
  });
}
