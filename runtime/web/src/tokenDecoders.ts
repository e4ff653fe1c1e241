/** Tokens' own texts -> text, as the decoders of Python's library do it, step by step: each takes and gives a list of texts. */

import type { JsonObject } from "./json.js";
import { replacedString, steps } from "./tokenizerLimits.js";

const BYTES = 256;
const MARK = "\u2581";
const UNKNOWN = "\ufffd";
const BYTE = /^<0x([0-9A-Fa-f]{2})>$/;

/** A function from tokens' texts to text, for the decoder of a tokenizer.json; null joins them by spaces. */
export function tokenDecoder(decoder: JsonObject | null): (tokens: string[]) => string {
  if (decoder === null) return (tokens) => tokens.join(" ");
  const parts = [...steps(decoder)].map(stepOf);
  return (tokens) => parts.reduce((texts, part) => part(texts), tokens).join("");
}

type Step = (texts: string[]) => string[];

function stepOf(step: JsonObject): Step {
  const text = (key: string) => String(step.get(key) ?? "");
  const count = (key: string) => Number(step.get(key) ?? 0);
  switch (step.get("type")) {
    case "ByteLevel":
      return (texts) => [new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(texts.flatMap(bytesOf)))];
    case "ByteFallback":
      return fromBytes;
    case "Fuse":
      return (texts) => [texts.join("")];
    case "Strip":
      return (texts) => texts.map((one) => stripped(one, text("content"), count("start"), count("stop")));
    case "Replace":
      return (texts) => texts.map((one) => one.replaceAll(replacedString(step), () => text("content")));
    case "BPEDecoder":
      return (texts) => texts.map((one, i) => one.replaceAll(text("suffix"), i === texts.length - 1 ? "" : " "));
    default: // Metaspace: the others were refused
      return (texts) =>
        texts.map((one, i) => one.replaceAll(MARK, i === 0 && step.get("prepend_scheme") !== "never" ? "" : " "));
  }
}

/** Runs of <0x..> as UTF-8, or U+FFFD for each byte if any is wrong. */
function fromBytes(texts: string[]): string[] {
  const made: string[] = [];
  let run: number[] = [];
  const end = () => {
    if (run.length) made.push(textOfBytes(run));
    run = [];
  };
  for (const text of texts) {
    const byte = BYTE.exec(text);
    if (byte) run.push(Number.parseInt(byte[1] as string, 16));
    else {
      end();
      made.push(text);
    }
  }
  end();
  return made;
}

/** UTF-8, or U+FFFD for each byte if any is wrong. */
export function textOfBytes(bytes: readonly number[]): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(bytes));
  } catch {
    return UNKNOWN.repeat(bytes.length);
  }
}

/** Without at most so many of a character at both ends. */
function stripped(text: string, content: string, start: number, stop: number): string {
  const characters = [...text];
  let first = 0;
  while (first < start && characters[first] === content) first++;
  let end = characters.length;
  while (characters.length - end < stop && end > first && characters[end - 1] === content) end--;
  return characters.slice(first, end).join("");
}

/** Bytes of a byte-level token: each character one, or the token's own UTF-8 if one of them is none. */
export function bytesOf(text: string): number[] {
  const bytes = Array.from(text, (character) => BYTE_OF.get(character));
  return bytes.every((byte) => byte !== undefined) ? bytes : [...new TextEncoder().encode(text)];
}

/** Byte-level BPE writes each byte as a character: printable ones of Latin-1 as themselves, others from U+0100 on. */
const BYTE_OF: ReadonlyMap<string, number> = byteCharacters();

function byteCharacters(): Map<string, number> {
  const characters = new Map<string, number>();
  let others = 0;
  for (let byte = 0; byte < BYTES; byte++) {
    const printable = (byte >= 0x21 && byte < 0x7f) || (byte >= 0xa1 && byte !== 0xad);
    characters.set(String.fromCharCode(printable ? byte : 0x100 + others++), byte);
  }
  return characters;
}
