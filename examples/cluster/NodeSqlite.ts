/**
 * SQLite as a `SqlClient`, on the SQLite that Node has built in.
 *
 * The published `@effect/sql-sqlite-node` for Effect 4 is a beta that imports `effect/unstable/sql`, which is now
 * `effect/sql`; this stands in for it. It also serves a file that several processes use: a transaction takes the lock for
 * writing at its beginning (one that takes it later fails where another process has written meanwhile), and who finds the
 * lock taken waits.
 */
import { Effect, Layer, Semaphore, Stream } from "effect"
import { Reactivity } from "effect/reactivity"
import { SqlClient, type SqlConnection, SqlError, Statement } from "effect/sql"
import { DatabaseSync, type SQLInputValue, type StatementSync } from "node:sqlite"

/** How long to wait for another process to be done writing. What is written here is small. */
const BUSY_TIMEOUT_MS = 5000

export interface Options {
  readonly filename: string
}

const failure = (cause: unknown, operation: string) => {
  // Where the classification looks for SQLite's own number, Node's error has none.
  const errno = cause instanceof Error && "errcode" in cause ? cause.errcode : undefined
  const message = cause instanceof Error ? cause.message : String(cause)
  return new SqlError.SqlError({
    reason: SqlError.classifySqliteError({ errno, message, cause }, { message, operation })
  })
}

const open = ({ filename }: Options) =>
  Effect.try({
    try: () => {
      const database = new DatabaseSync(filename, { timeout: BUSY_TIMEOUT_MS })
      // Readers do not wait for writers. A process that is killed loses nothing of what it has committed.
      database.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")
      return database
    },
    catch: (cause) => failure(cause, "open")
  })

const connectionTo = (database: DatabaseSync): SqlConnection.Connection => {
  const run = <A>(sql: string, parameters: ReadonlyArray<unknown>, use: Use<A>) =>
    Effect.try({
      // The compiler for SQLite makes no other parameters.
      try: () => use(database.prepare(sql), parameters as ReadonlyArray<SQLInputValue>),
      catch: (cause) => failure(cause, "execute")
    })
  const execute: SqlConnection.Connection["execute"] = (sql, parameters, transformRows) =>
    Effect.map(run(sql, parameters, rows), transformRows ?? ((all) => all))
  const executeValues: SqlConnection.Connection["executeValues"] = (sql, parameters) => run(sql, parameters, values)
  return {
    execute,
    executeUnprepared: execute,
    executeValues,
    executeValuesUnprepared: executeValues,
    executeRaw: (sql, parameters) => run(sql, parameters, (statement, bound) => statement.run(...bound)),
    executeStream: (sql, parameters, transformRows) =>
      Stream.unwrap(Effect.map(execute(sql, parameters, transformRows), Stream.fromIterable))
  }
}

type Use<A> = (statement: StatementSync, parameters: ReadonlyArray<SQLInputValue>) => A

const rows: Use<ReadonlyArray<object>> = (statement, parameters) => statement.all(...parameters)

const values: Use<ReadonlyArray<ReadonlyArray<unknown>>> = (statement, parameters) => {
  statement.setReturnArrays(true)
  // Of arrays, then; the types know only of objects.
  return statement.all(...parameters) as unknown as ReadonlyArray<ReadonlyArray<unknown>>
}

const make = Effect.fnUntraced(function*(options: Options) {
  const database = yield* Effect.acquireRelease(open(options), (database) => Effect.sync(() => database.close()))
  return yield* SqlClient.make({
    ...SqlClient.makeSqliteAcquirers({
      connection: Effect.succeed(connectionTo(database)),
      semaphore: Semaphore.makeUnsafe(1),
      isTransaction: () => database.isTransaction
    }),
    compiler: Statement.makeCompilerSqlite(),
    beginTransaction: "BEGIN IMMEDIATE",
    driver: "node-sqlite",
    spanAttributes: [["db.system.name", "sqlite"]]
  })
})

/** Opens the file, which is made where there is none, until the Scope closes. */
export const layer = (options: Options): Layer.Layer<SqlClient.SqlClient, SqlError.SqlError> =>
  Layer.effect(SqlClient.SqlClient, make(options)).pipe(Layer.provide(Reactivity.layer))
