/**
 * Goal: images are hashed by the runners of a cluster as by one program, whatever becomes of a runner: the hashes are the
 * same, what is done stays done, and nothing is done more than twice.
 * Method: runners as programs, one of which is killed, or stopped for a while, in the middle of images, with SQLite in a file.
 */
import { killedRunner, sqliteFile, stoppedRunner } from "./suite.ts"

killedRunner(sqliteFile)
stoppedRunner(sqliteFile)
