/** Numbers from 0 up to before `limit`, the same for the same seed (mulberry32). */
export const random = (seed: number) => (limit: number): number => {
  seed = seed + 0x6d2b79f5 | 0
  let mixed = Math.imul(seed ^ seed >>> 15, 1 | seed)
  mixed = mixed + Math.imul(mixed ^ mixed >>> 7, 61 | mixed) ^ mixed
  return Math.floor(((mixed ^ mixed >>> 14) >>> 0) / 2 ** 32 * limit)
}
