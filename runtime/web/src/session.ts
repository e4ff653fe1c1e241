/**
 * One stream: a recurrent state, the model it belongs to, and the loop that moves it. Knows tokens, nothing of text.
 *
 * A call of the graph reads one set of tensors and writes another; then they change places. In Node both sets are kept and
 * written over; WebAssembly hands out new ones, and WebGPU new ones that stay on the GPU and are given back when replaced.
 */

import { BundleError, InputError, shown, typeName } from "./errors.js";
import { generate, type TokenEvent } from "./generate.js";
import { givenOptions } from "./given.js";
import type { Model } from "./model.js";
import { arraysOf, disposeTensors, type Tensors } from "./opening.js";
import type { GenerationOptions } from "./options.js";
import { MOST_TOKENS, readSnapshot, type SnapshotDtype, writeSnapshot } from "./snapshot.js";
import type { State } from "./state.js";

const MOST_INPUTS = 1 << 26; // tokens of one call; longer texts come in parts

/**
 * A stream of tokens through a model; make one with `model.session()`. One call at a time: a second one while the first is not
 * done is an InputError. After any error the session is as it was before the call, but for a prompt that fails halfway: that
 * leaves it after a whole number of chunks.
 */
export class Session {
  #past: Tensors;
  #spare: Tensors | null;
  #tokens: bigint;
  #busy = false;
  #disposed = false;

  /** Made by `model.session()`; `state` is the graph's own form, and kept. */
  constructor(
    readonly model: Model,
    state: State = model.manifest.state.initial(),
    tokens = 0n,
  ) {
    const { graph } = model;
    this.#past = graph.tensors(state);
    this.#spare = graph.reuses ? graph.tensors(model.manifest.state.initial()) : null;
    this.#tokens = tokens;
  }

  /** Number of tokens consumed since the zero state; above 2^53 - 1 the nearest number, snapshots have it exactly. */
  get tokens(): number {
    return Number(this.#tokens);
  }

  /** Number of ids. */
  get vocabSize(): number {
    return this.model.vocabSize;
  }

  /** Most tokens of one call of the graph while prefilling. */
  get chunk(): number {
    return this.model.chunk;
  }

  /** Bytes of the state: a constant of the model, whatever has been read. */
  get nbytes(): number {
    return this.model.manifest.state.nbytes;
  }

  /** Consume one token id; the logits, float32 (V,), in an array of your own. */
  async step(token: number): Promise<Float32Array> {
    return this.advance(this.checkIds([token]));
  }

  /** Consume token ids in chunks; the logits after the last one, float32 (V,), in an array of your own. */
  async prefill(tokens: Iterable<number>): Promise<Float32Array> {
    const ids = this.checkIds(tokens);
    return this.#alone(async () => {
      let logits: Float32Array = new Float32Array();
      for (let start = 0; start < ids.length; start += this.chunk) {
        logits = await this.#advance(ids.slice(start, start + this.chunk));
      }
      return logits;
    });
  }

  /** One id or more, all inside the vocabulary; InputError otherwise, nothing consumed. */
  checkIds(tokens: Iterable<number>): number[] {
    if (typeof tokens !== "object" || tokens === null || !(Symbol.iterator in tokens)) {
      throw new InputError(`expected a flat list of token ids, got ${shown(tokens)}; pass integers`);
    }
    const ids: number[] = [];
    for (const id of tokens) {
      if (!Number.isInteger(id))
        throw new InputError(`expected a flat list of token ids, got ${shown(id)} in it; pass integers`);
      if (id < 0 || id >= this.vocabSize) {
        throw new InputError(`expected token ids from 0 to ${this.vocabSize - 1}, got ${id}; use this model's tokenizer`);
      }
      if (ids.push(id) > MOST_INPUTS) {
        throw new InputError(`expected at most ${MOST_INPUTS} tokens in one call, got more; feed them in parts`);
      }
    }
    if (!ids.length) throw new InputError("expected at least one token, got none; begin with a prompt or a bos token");
    return ids;
  }

  /** Consume 1 to `chunk` ids that `checkIds` gave; for generators, `step` and `prefill` are for everyone else. */
  async advance(ids: readonly number[]): Promise<Float32Array> {
    return this.#alone(() => this.#advance(ids));
  }

  /** Feed a prompt of ids, then yield Tokens and a Finish; options and prompt are checked at the call. */
  generate(prompt: Iterable<number>, options: GenerationOptions = {}): AsyncGenerator<TokenEvent, void, undefined> {
    return generate(this, prompt, this.model.resolve(options));
  }

  /** Back to the zero state. */
  async reset(): Promise<void> {
    await this.#alone(async () => this.#replace(this.model.manifest.state.initial(), 0n));
  }

  /** An independent session that continues from here; costs one copy of the state. */
  async fork(): Promise<Session> {
    return this.#alone(async () => new Session(this.model, await arraysOf(this.#past), this.#tokens));
  }

  /** The state as the bytes of a snapshot, which every runtime of this project reads; "float16" takes half of them. */
  async save(options: { dtype?: SnapshotDtype } = {}): Promise<Uint8Array<ArrayBuffer>> {
    const { dtype = "float32" } = givenOptions(options, ["dtype"]);
    const { source, state: table } = this.model.manifest;
    return this.#alone(async () => {
      const state = await arraysOf(this.#past);
      return writeSnapshot(state, table, { source, tokens: this.#tokens, dtype });
    });
  }

  /** Continue from a snapshot; StateError if it is damaged or of another checkpoint, the session unchanged. */
  async load(snapshot: Uint8Array | ArrayBuffer): Promise<void> {
    const content = snapshot instanceof ArrayBuffer ? new Uint8Array(snapshot) : snapshot;
    if (!(content instanceof Uint8Array)) {
      throw new InputError(`expected a snapshot as bytes, got ${typeName(snapshot)}; pass what save gave`);
    }
    const { source, state: table } = this.model.manifest;
    const { state, tokens } = readSnapshot(content, table, source);
    await this.#alone(async () => this.#replace(state, tokens));
  }

  /** The state as users see it, a copy: name -> float32 numbers of the state table's shape. */
  async state(): Promise<State> {
    return this.#alone(async () => this.model.manifest.state.fromGraph(await arraysOf(this.#past)));
  }

  /** Give the state's memory on the GPU back, which no garbage collection does; the session cannot be used any more. */
  dispose(): void {
    if (this.#busy) throw new InputError("expected a session at rest, got one in a call; await it first");
    if (!this.#disposed) disposeTensors(this.#past);
    this.#disposed = true;
  }

  #replace(state: State, tokens: bigint): void {
    const past = this.model.graph.tensors(state); // may fail: then the session is as it was
    disposeTensors(this.#past);
    this.#past = past;
    this.#tokens = tokens;
  }

  async #advance(ids: readonly number[]): Promise<Float32Array> {
    if (this.model.singly && ids.length > 1) {
      let logits: Float32Array = new Float32Array();
      for (const id of ids) logits = await this.#advance([id]);
      return logits;
    }
    if (this.#tokens + BigInt(ids.length) > MOST_TOKENS) {
      throw new InputError(`expected at most ${MOST_TOKENS} tokens in a session, got more; no snapshot could tell: reset it`);
    }
    const { logits, present } = await this.model.graph.run(ids, this.#past, this.#spare);
    if (logits.length !== this.vocabSize) {
      if (!this.#spare) disposeTensors(present);
      throw new BundleError(`expected ${this.vocabSize} logits, got ${logits.length}; export the bundle again`);
    }
    if (this.#spare) this.#spare = this.#past;
    else disposeTensors(this.#past);
    this.#past = present;
    this.#tokens += BigInt(ids.length);
    return logits;
  }

  /** A second call would read a state that is being replaced. */
  async #alone<Result>(work: () => Promise<Result>): Promise<Result> {
    if (this.#disposed) throw new InputError("expected a session to use, got a disposed one; make another");
    this.model.graph.checkHeld();
    if (this.#busy) {
      throw new InputError("expected one call of a session at a time, got a second one; await the first, or fork");
    }
    this.#busy = true;
    try {
      return await work();
    } finally {
      this.#busy = false;
    }
  }
}
