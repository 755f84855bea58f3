/**
 * Goal: whoever asks a cluster for hashes gets them, or what is wrong with an image, and can go away and ask again; runners may
 * join meanwhile.
 * Method: the example as a user runs it, with runners that it starts itself and others, and SQLite in a file.
 */
import { asking, joiningRunner, sqliteFile } from "./suite.ts"

asking(sqliteFile)
joiningRunner(sqliteFile)
