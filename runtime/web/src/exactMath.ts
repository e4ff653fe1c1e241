/**
 * Random numbers and weights that are the same on every machine, so that a seed gives the same text everywhere: the Python
 * runtime's `exact_math.py` specifies them, step by step.
 */

/** The weight of x = 0. */
export const ONE = 2 ** 32;
const LOWEST = -24;
const STEPS_IN_LN2 = 23.083120654223414;
const STEP = 0.04332169878499658; // ln(2)/16
const TABLE = Float64Array.of(
  1.0,
  1.0442737824274138,
  1.0905077326652577,
  1.1387886347566916,
  1.189207115002721,
  1.241857812073484,
  1.2968395546510096,
  1.3542555469368927,
  1.4142135623730951,
  1.4768261459394993,
  1.5422108254079407,
  1.6104903319492543,
  1.681792830507429,
  1.7562521603732995,
  1.8340080864093424,
  1.9152065613971474,
);

/** SplitMix64; `seed` from 0 to 2^64 - 1. */
export class SplitMix64 {
  #state: bigint;

  constructor(seed: bigint) {
    this.#state = seed;
  }

  /** 64 random bits. */
  next(): bigint {
    this.#state = BigInt.asUintN(64, this.#state + 0x9e3779b97f4a7c15n);
    let z = this.#state;
    z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
    z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
    return z ^ (z >> 31n);
  }

  /** A random integer from 0 to n - 1; 0 < n < 2^53. */
  below(n: number): number {
    return Number((this.next() * BigInt(n)) >> 64n);
  }
}

/** floor(e^x * 2^32) for x <= 0, also -Infinity, by fixed steps on doubles. */
export function weight(x: number): number {
  if (x < LOWEST) return 0;
  const k = Math.floor(x * STEPS_IN_LN2 + 0.5);
  const r = x - k * STEP;
  const p = (((r * (1 / 24) + 1 / 6) * r + 0.5) * r + 1) * r + 1;
  return Math.floor(p * (TABLE[k & 15] as number) * 2 ** (Math.floor(k / 16) + 32));
}

/** A random seed. */
export function freshSeed(): bigint {
  const bits = crypto.getRandomValues(new BigUint64Array(1));
  return bits[0] as bigint;
}
