/**
 * Downloaded files in the browser's Cache, by their hash: a bundle that was loaded once, or shares weights with one that was,
 * is not fetched again. What cannot be kept (no Cache here, no room) is not kept, and nothing fails.
 */

import type { FileEntry } from "./manifestSections.js";

const NAME = "xlstm-edge";
// The Cache takes only addresses; this one is reserved to be nobody's, and never fetched.
const PLACE = "https://xlstm-edge.invalid/";

export class BundleCache {
  constructor(readonly wanted: boolean) {}

  /** The content by this hash, if it is there and of the stated size; of another size it is thrown away, for `keep` to replace. */
  async whole(entry: FileEntry): Promise<Uint8Array<ArrayBuffer> | null> {
    const content = await this.#get(entry.sha256);
    if (content?.length === entry.bytes) return content;
    if (content) await this.#quietly((cache) => cache.delete(PLACE + entry.sha256));
    return null;
  }

  /** What an interrupted download left. */
  async part(entry: FileEntry): Promise<Uint8Array<ArrayBuffer> | null> {
    return this.#get(`${entry.sha256}.part`);
  }

  async keep(entry: FileEntry, content: Uint8Array<ArrayBuffer>): Promise<void> {
    await this.#quietly(async (cache) => {
      await cache.delete(`${PLACE}${entry.sha256}.part`);
      if (!(await cache.match(PLACE + entry.sha256))) await cache.put(PLACE + entry.sha256, new Response(content));
    });
  }

  async keepPart(entry: FileEntry, content: Uint8Array<ArrayBuffer>): Promise<void> {
    if (!content.length) return;
    await this.#quietly((cache) => cache.put(`${PLACE}${entry.sha256}.part`, new Response(content)));
  }

  /** Throw away what is there by this hash; whether there was anything. */
  async forget(entry: FileEntry): Promise<boolean> {
    const gone = await this.#quietly(async (cache) => {
      const whole = await cache.delete(PLACE + entry.sha256);
      const part = await cache.delete(`${PLACE}${entry.sha256}.part`);
      return whole || part;
    });
    return gone ?? false;
  }

  async #get(key: string): Promise<Uint8Array<ArrayBuffer> | null> {
    const content = await this.#quietly(async (cache) => (await cache.match(PLACE + key))?.arrayBuffer());
    return content ? new Uint8Array(content) : null;
  }

  async #quietly<Result>(work: (cache: Cache) => Promise<Result>): Promise<Result | null> {
    if (!this.wanted || typeof caches === "undefined") return null;
    try {
      return await work(await caches.open(NAME));
    } catch {
      return null; // no room, or a page that may keep nothing
    }
  }
}
