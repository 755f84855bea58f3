/**
 * Goal: images are hashed by the runners of a cluster as by one program, whatever becomes of a runner: the hashes are the
 * same, what is done stays done, and nothing is done more than twice.
 * Method: the example as a user runs it, with SQLite in a file.
 */
import { Effect, FileSystem } from "effect"
import { killedRunner, several, stoppedRunner } from "./suite.ts"

const file = FileSystem.FileSystem.use((fs) =>
  Effect.map(fs.makeTempDirectoryScoped({ prefix: "blkio-sqlite-" }), (folder) => `${folder}/hashes.sqlite`)
)

several(file)
killedRunner(file)
stoppedRunner(file)
