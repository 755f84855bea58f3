/**
 * What has been hashed, in SQL, and by whom.
 *
 * Each time a runner begins with a request it makes an *attempt*, numbered from 1. Each time it begins with an extent it
 * makes a *hashing* of that attempt, and a hashing with a digest is a checkpoint: later attempts leave that extent out. An
 * extent is begun only by the latest attempt. So a runner that was taken for dead and was only slow begins no more of them,
 * and an extent is hashed at most once by each attempt, twice in all where one runner died.
 *
 * Where the database fails there is nothing to be done here: it is a defect, upon which the cluster begins the request anew,
 * again and again, at longer and longer intervals.
 */
import { Context, Effect, Layer, Schema } from "effect"
import { Migrator, SqlClient, SqlSchema } from "effect/sql"

/** One runner at work on one request. */
export interface Attempt {
  /** The digests of the extents that were done when the attempt began. */
  readonly done: ReadonlyMap<number, string>
  /** Notes that an extent is begun; false where there is a later attempt, whose extent it now is. */
  readonly start: (extent: number) => Effect.Effect<boolean>
  /** Notes the digest of an extent. */
  readonly finish: (extent: number, digest: string) => Effect.Effect<void>
}

/** Whose attempt it is, and on what. */
export interface Subject {
  readonly request: string
  readonly image: string
  readonly runner: string
}

export class Checkpoints extends Context.Service<Checkpoints, {
  readonly begin: (subject: Subject) => Effect.Effect<Attempt>
}>()("examples/cluster/Checkpoints") {
  static readonly layer = Layer.effect(Checkpoints, Effect.suspend(() => make))
}

const migrations = Migrator.fromRecord({
  "0001_create_tables": Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    yield* sql`
      CREATE TABLE image_attempts (
        request TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        image TEXT NOT NULL,
        runner TEXT NOT NULL,
        PRIMARY KEY (request, attempt)
      )`
    yield* sql`
      CREATE TABLE extent_hashings (
        request TEXT NOT NULL,
        extent INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        digest TEXT,
        PRIMARY KEY (request, extent, attempt)
      )`
  })
})

const make = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* Migrator.make({})({ loader: migrations, table: "image_hash_migrations" })

  const nextAttempt = SqlSchema.findOne({
    Request: Schema.Struct({ request: Schema.String, image: Schema.String, runner: Schema.String }),
    Result: Schema.Struct({ attempt: Schema.Int }),
    execute: ({ image, request, runner }) =>
      sql`
        INSERT INTO image_attempts (request, attempt, image, runner)
        SELECT ${request}, COALESCE(MAX(attempt), 0) + 1, ${image}, ${runner}
        FROM image_attempts WHERE request = ${request}
        RETURNING attempt`
  })
  const digestsOf = SqlSchema.findAll({
    Request: Schema.String,
    Result: Schema.Struct({ extent: Schema.Int, digest: Schema.String }),
    execute: (request) =>
      sql`SELECT extent, digest FROM extent_hashings WHERE request = ${request} AND digest IS NOT NULL`
  })

  return Checkpoints.of({
    begin: Effect.fnUntraced(function*(subject) {
      const { request } = subject
      const { attempt } = yield* nextAttempt(subject)
      const digests = yield* digestsOf(request)
      const latest: Attempt = {
        done: new Map(digests.map(({ digest, extent }) => [extent, digest])),
        start: (extent) =>
          sql`
            INSERT INTO extent_hashings (request, extent, attempt)
            SELECT ${request}, CAST(${extent} AS INTEGER), MAX(attempt)
            FROM image_attempts WHERE request = ${request} HAVING MAX(attempt) = ${attempt}
            RETURNING extent`.pipe(
            Effect.map((started) => started.length > 0),
            Effect.orDie
          ),
        finish: (extent, digest) =>
          sql`
            UPDATE extent_hashings SET digest = ${digest}
            WHERE request = ${request} AND extent = ${extent} AND attempt = ${attempt}`.pipe(Effect.orDie)
      }
      return latest
    }, Effect.orDie)
  })
})
