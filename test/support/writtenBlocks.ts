/** What `writerProgram.ts` and the test that kills it agree on. */
export const BLOCK_BYTES = 4096
/** Blocks of a program's part of the disk: a multiple of the writers. */
export const BLOCKS = 256
/** Writes in flight. */
export const WRITERS = 32
