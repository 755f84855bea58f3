/**
 * Goal: whoever asks a cluster for hashes gets them, or says what is wrong with an image, and can go away and ask again.
 * Method: the example as a user runs it, with runners that it starts itself, and SQLite in a file.
 */
import { asking, sqliteFile } from "./suite.ts"

asking(sqliteFile)
