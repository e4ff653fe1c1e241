/**
 * A bundle's files from a server: the manifest first, then what it lists and this runtime needs, and nothing else. A download
 * that breaks off goes on where it stopped; whole files are kept in the browser's Cache by their hash.
 */

import { BundleCache } from "./cache.js";
import { BundleError, quoted, reason } from "./errors.js";
import { checkSignal, type Progress, type Source, tooLarge, wrongSize } from "./files.js";
import { MANIFEST } from "./layout.js";
import { LARGEST_MANIFEST } from "./manifest.js";
import type { FileEntry } from "./manifestSections.js";

const MOST_FAILURES = 5; // in a row, without a byte between them
const LONGEST_SHOWN_URL = 200;
const PAUSE = 200; // milliseconds before the second try; twice as long before each next one

/** What is read of a file so far. */
interface Download {
  content: Uint8Array<ArrayBuffer>;
  length: number;
}

/** Knows whether an error is the app's own, not the network's. */
class Watched implements Progress {
  threw = false;
  readonly signal: AbortSignal | undefined;

  constructor(readonly told: Progress) {
    this.signal = told.signal;
  }

  add(bytes: number): void {
    this.threw = true; // unless it comes back
    this.told.add(bytes);
    this.threw = false;
  }
}

export class HttpBundle implements Source {
  readonly #base: URL;
  readonly #cache: BundleCache;
  readonly #joined = new Set<string>(); // hashes of what was put together out of several downloads

  constructor(
    base: URL,
    readonly signal: AbortSignal | undefined,
    cache: boolean,
  ) {
    this.#base = new URL(base);
    if (!this.#base.pathname.endsWith("/")) this.#base.pathname += "/";
    this.#cache = new BundleCache(cache);
  }

  async manifest(): Promise<Uint8Array> {
    const url = this.#url(MANIFEST);
    const response = await this.#fetch(url, { cache: "no-cache" });
    if (!response.ok) {
      throw new BundleError(
        `expected a bundle with ${MANIFEST} at ${shownUrl(url)}, got ${response.status}; check the address`,
      );
    }
    const download = { content: new Uint8Array(1 << 16), length: 0 };
    for await (const part of partsOf(response, url)) {
      if (download.length + part.length > LARGEST_MANIFEST) throw tooLarge();
      append(download, part);
    }
    return download.content.subarray(0, download.length);
  }

  /** A server tells sizes when it is asked for the files. */
  async checkSizes(): Promise<void> {}

  async read(name: string, entry: FileEntry, progress: Progress): Promise<Uint8Array<ArrayBuffer>> {
    const kept = await this.#cache.whole(entry);
    if (kept) {
      progress.add(kept.length);
      return kept;
    }
    const download = await this.#begun(name, entry, progress);
    try {
      await this.#rest(name, entry, progress, download);
    } catch (error) {
      await this.#cache.keepPart(entry, download.content.subarray(0, download.length));
      throw error;
    }
    return download.content;
  }

  /** A copy of the cache, or parts of two versions of a file, were no download of this one: once more, from the start. */
  async damaged(entry: FileEntry): Promise<boolean> {
    const joined = this.#joined.delete(entry.sha256);
    return (await this.#cache.forget(entry)) || joined;
  }

  async accepted(entry: FileEntry, content: Uint8Array<ArrayBuffer>): Promise<void> {
    await this.#cache.keep(entry, content);
  }

  path(): null {
    return null;
  }

  #url(name: string): URL {
    const url = new URL(name, this.#base);
    url.search = this.#base.search; // a signed address
    return url;
  }

  /** With what an earlier download left. */
  async #begun(name: string, entry: FileEntry, progress: Progress): Promise<Download> {
    const download = { content: allocated(name, entry.bytes), length: 0 };
    const part = await this.#cache.part(entry);
    if (part && part.length < entry.bytes) {
      this.#joined.add(entry.sha256);
      append(download, part);
      progress.add(part.length);
    }
    return download;
  }

  /** Tries until all is there; each try goes on where the last one stopped. What the app's function throws ends it at once. */
  async #rest(name: string, entry: FileEntry, given: Progress, download: Download): Promise<void> {
    const progress = new Watched(given);
    for (let failures = 0; download.length < entry.bytes; ) {
      const before = download.length;
      try {
        await this.#try(name, entry, progress, download);
        if (download.length < entry.bytes) throw new Error(`${download.length} of ${entry.bytes} bytes`);
      } catch (error) {
        if (progress.threw) throw error;
        checkSignal(this.signal);
        if (error instanceof BundleError) throw error;
        failures = download.length > before ? 0 : failures + 1;
        if (failures === MOST_FAILURES) {
          const url = shownUrl(this.#url(name));
          throw new BundleError(`expected ${url} to arrive, got ${reason(error)}; try again`, { cause: error });
        }
        await new Promise((resolve) => setTimeout(resolve, PAUSE * 2 ** failures));
      }
    }
  }

  async #try(name: string, entry: FileEntry, progress: Progress, download: Download): Promise<void> {
    const url = this.#url(name);
    const headers: Record<string, string> = download.length ? { Range: `bytes=${download.length}-` } : {};
    // The hash decides whether content is right; an old copy of another export in the browser's own cache would be wrong.
    const response = await this.#fetch(url, { headers, cache: "no-cache" });
    if (response.status >= 500 || response.status === 429) throw new Error(`status ${response.status}`);
    if (!response.ok) {
      throw new BundleError(
        `expected the bundle's file ${name} at ${shownUrl(url)}, got ${response.status}; copy all its files`,
      );
    }
    if (download.length && response.status === 206) this.#joined.add(entry.sha256);
    else {
      progress.add(-download.length);
      download.length = 0;
    }
    if (!beginsAt(response, download.length)) {
      progress.add(-download.length);
      download.length = 0;
      throw new Error("another range than was asked for");
    }
    for await (const part of partsOf(response, url)) {
      if (download.length + part.length > entry.bytes) throw wrongSize(name, entry.bytes, download.length + part.length);
      append(download, part);
      progress.add(part.length);
    }
  }

  async #fetch(url: URL, options: RequestInit): Promise<Response> {
    checkSignal(this.signal);
    try {
      return await fetch(url, this.signal ? { ...options, signal: this.signal } : options);
    } catch (error) {
      checkSignal(this.signal);
      if (options.headers) throw error; // of a file: tried again
      throw new BundleError(`expected an answer from ${shownUrl(url)}, got ${reason(error)}; check the address`, {
        cause: error,
      });
    }
  }
}

/** Whether an answer begins there, as far as it says: across origins a page may not see it, and the hash decides. */
function beginsAt(response: Response, start: number): boolean {
  return response.headers.get("Content-Range")?.startsWith(`bytes ${start}-`) ?? true;
}

async function* partsOf(response: Response, url: URL): AsyncGenerator<Uint8Array, void, undefined> {
  const reader = response.body?.getReader();
  if (!reader) throw new BundleError(`expected content from ${shownUrl(url)}, got none; check the address`);
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

function append(download: Download, part: Uint8Array): void {
  if (download.length + part.length > download.content.length) {
    const larger = new Uint8Array(2 * (download.length + part.length));
    larger.set(download.content.subarray(0, download.length));
    download.content = larger;
  }
  download.content.set(part, download.length);
  download.length += part.length;
}

function allocated(name: string, bytes: number): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(bytes);
  } catch (error) {
    throw new BundleError(`expected ${name} to fit this page's memory, got ${bytes} bytes; use a smaller bundle`, {
      cause: error,
    });
  }
}

/** An address without what may be secret in it. */
function shownUrl(url: URL): string {
  return quoted(url.origin + url.pathname, LONGEST_SHOWN_URL);
}
