import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    // A crash in native code then ends one test file, not the run.
    pool: "forks",
    // Ten times what the slowest take that start a process again and again: a busy machine is no failure.
    testTimeout: 120_000,
    hookTimeout: 60_000,
    // Fails whatever leaves something of the system behind.
    setupFiles: ["test/setup.ts"],
    // One line a file, every failure in full, and the counts last, on a terminal and in CI alike.
    reporters: ["default"],
    projects: [
      {
        extends: true,
        test: {
          name: "host",
          include: ["test/**/*.test.ts"],
          exclude: ["test/guest/**"],
          // Much of a test is waiting for another process, also where there are two processors only.
          maxWorkers: 2,
          sequence: { groupOrder: 0 }
        }
      },
      {
        extends: true,
        test: {
          name: "guest",
          include: ["test/guest/**/*.test.ts"],
          // An emulated guest takes the processors there are, so nothing else runs beside it.
          maxWorkers: 1,
          sequence: { groupOrder: 1 }
        }
      }
    ]
  }
})
