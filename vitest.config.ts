import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    // A crash in native code then ends one test file, not the run.
    pool: "forks",
    testTimeout: 30_000,
    // One line a file, every failure in full, and the counts last, on a terminal and in CI alike.
    reporters: ["default"]
  }
})
