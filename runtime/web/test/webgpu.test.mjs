// In Chromium, on WebGPU: a GPU in software, SwiftShader.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { openPage, skipped } from "./chromium.mjs";
import { camel, cases, difference, floats, snapshot } from "./fixtures.mjs";
import { startServer } from "./server.mjs";

const MODELS = cases("models");
// float32 with sums in other orders, and the exponentials of SwiftShader. Measured: 5.9e-7 of the range.
const TOLERANCE = 3e-6;
let server;
let browser;

before(async () => {
  if (skipped) return;
  server = await startServer();
  browser = await openPage(server.url, { gpu: true });
});
after(async () => {
  await browser?.close();
  await server?.close();
});

// onnxruntime-web 1.30 has no kernel on WebGPU for Max and Scan, which stabilized gates and sLSTM cells need: the CPU takes
// them.
for (const [name, allowFallback] of [
  ["large-web", false],
  ["shipped-web", true],
]) {
  test(`states stay on the GPU, and all is as in Python: ${name}`, { skip: skipped, timeout: 300_000 }, async () => {
    const expected = MODELS[name];
    const [text] = expected.texts;
    const result = await browser.page.evaluate(
      async ({ name, allowFallback, counts, prompt, options, bytes }) => {
        const xe = await import("/dist/index.js");
        const model = await xe.load(`/bundles/${name}`, { provider: "webgpu", allowFallback });
        const session = model.session();
        const rows = [];
        for (const count of counts) {
          rows.push(Array.from(await session.prefill(Array.from({ length: count }, (_, i) => (i * 7) % model.vocabSize))));
        }
        const branch = await session.fork();
        const [here, there] = [await session.step(5), await branch.step(5)];
        const same = here.every((x, i) => x === there[i]);
        branch.dispose();
        let text = "";
        for await (const piece of prompt ? model.stream(prompt, options) : []) text += piece;
        await session.load(new Uint8Array(bytes));
        const after = Array.from(await session.prefill([6, 7]));
        return { rows, same, text, after, saved: (await session.save()).length };
      },
      {
        name,
        allowFallback,
        counts: allowFallback ? [] : expected.counts, // minutes of a Scan whose every step crosses to the CPU
        prompt: text?.prompt,
        options: camel(text?.options ?? {}),
        bytes: Array.from(snapshot(`${name}.float32`)),
      },
    );
    const off = result.rows.map((row, i) => difference(row, floats(expected.logits[i])));
    off.push(difference(result.after, floats(expected["after float32"])));
    assert.ok(Math.max(...off) < TOLERANCE, off.join());
    assert.ok(result.same);
    assert.equal(result.text, text?.pieces.join("") ?? "");
    assert.equal(result.saved, snapshot(`${name}.float32`).length);
    assert.deepEqual(browser.elsewhere, []);
  });
}

test("the GPU's memory stays flat from token to token", { skip: skipped, timeout: 200_000 }, async () => {
  const { counts, bytes } = await browser.page.evaluate(async () => {
    let alive = 0;
    const create = GPUDevice.prototype.createBuffer;
    GPUDevice.prototype.createBuffer = function (descriptor) {
      const buffer = create.call(this, descriptor);
      const destroy = buffer.destroy.bind(buffer);
      alive++;
      buffer.destroy = () => {
        alive--;
        destroy();
      };
      return buffer;
    };
    const xe = await import("/dist/index.js");
    const model = await xe.load("/bundles/large-web", { provider: "webgpu" });
    const session = model.session();
    const counts = [];
    for (let i = 0; i < 5; i++) {
      for await (const _ of session.generate([1], { maxTokens: 20, ignoreEos: true }));
      counts.push(alive);
    }
    return { counts, bytes: session.nbytes };
  });
  assert.ok(counts[0] > 0 && bytes > 0, counts.join());
  assert.ok(counts[4] <= counts[1], counts.join()); // a state a token would be 6 buffers each
});

test("a graph that does not land whole is refused", { skip: skipped, timeout: 100_000 }, async () => {
  const message = await browser.page.evaluate(async () => {
    const xe = await import("/dist/index.js");
    return xe.load("/bundles/shipped-web", { provider: "webgpu" }).catch((error) => `${error.name}: ${error.message}`);
  });
  assert.match(message, /^BundleError: expected all of the graph on webgpu, got nodes left to the CPU; .*allowFallback$/);
});
