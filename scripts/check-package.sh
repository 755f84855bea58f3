#!/usr/bin/env bash
# Proves that the packed tarball works for someone who has nothing but it and `effect`: in an empty project, on the
# pinned Node and on the oldest one that package.json allows. Leaves nothing behind but the built dist.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH="$repository/node_modules/.bin:$PATH"
scratch=$(mktemp -d)
step="start"

finish() {
  local status=$?
  rm -rf "$scratch"
  if [ "$status" -ne 0 ]; then echo "package check FAILED at: $step" >&2; fi
}
trap finish EXIT

begin() {
  step=$1
  echo "package check: $step"
}

# Reads one value of package.json: `manifest .version`.
manifest() {
  node -p "require('$repository/package.json')$1"
}

install() {
  npm install --prefix "$1" --no-audit --no-fund --loglevel error "${@:2}"
}

begin "build and pack"
cd "$repository"
npm run --silent build
tarball="$scratch/$(npm pack --silent --pack-destination "$scratch")"

begin "install into an empty project"
consumer="$scratch/consumer"
mkdir "$consumer"
echo '{ "private": true, "type": "module" }' >"$consumer/package.json"
# npm is about to stop running the install scripts of dependencies, so the package has to work without them.
install "$consumer" --ignore-scripts \
  "$tarball" "effect@$(manifest .devDependencies.effect)" "@types/node@$(manifest ".devDependencies['@types/node']")"

cat >"$consumer/program.js" <<'EOF'
import assert from "node:assert/strict"
import { Effect } from "effect"
import { Embedded, Errno } from "effect-blkio"
import manifest from "effect-blkio/package.json" with { type: "json" }

const paths = Object.keys(manifest.exports).filter((path) => path !== "./package.json")
assert.ok(paths.length > 1)
for (const path of paths) {
  const module = await import(`effect-blkio${path.slice(1)}`)
  assert.ok(Object.keys(module).length > 0, `${path} exports nothing`)
}

const error = new Errno.EINVAL({ operation: "x", detail: "y" })
assert.equal(error._tag, "EINVAL")
assert.match(error.message, /x.*y/)

// The whole stack, with the thread that is started by its file's name.
const roundTrip = Effect.scoped(Effect.gen(function*() {
  const disk = yield* Embedded.memory({ capacity: 1 << 20 })
  yield* disk.writeBytes(1000, new TextEncoder().encode("packed"))
  return new TextDecoder().decode(yield* disk.readBytes(1000, 6))
}))
assert.equal(await Effect.runPromise(roundTrip), "packed")
console.log(`  Node ${process.version}: ${paths.length} entry points, and an embedded disk`)
EOF

cat >"$consumer/consumer.ts" <<'EOF'
import { Errno } from "effect-blkio"
import { EINVAL } from "effect-blkio/Errno"

const error: Errno.EINVAL = new EINVAL({ operation: "x", detail: "y" })
export const tag: "EINVAL" = error._tag

// @ts-expect-error: were the declarations not found, everything would be `any` and this would pass.
export const wrong = new EINVAL({ operation: 1 })
EOF
node -p "Object.keys(require('$repository/package.json').exports).filter((path) => path !== './package.json')
  .map((path, index) => 'export type * as M' + index + ' from \"effect-blkio' + path.slice(1) + '\"').join('\n')" \
  >"$consumer/entry-points.ts"
cat >"$consumer/tsconfig.json" <<'EOF'
{
  "compilerOptions": {
    "target": "ES2024", "module": "NodeNext", "types": ["node"], "strict": true, "exactOptionalPropertyTypes": true,
    "skipLibCheck": false, "noEmit": true
  },
  "include": ["*.ts"]
}
EOF

begin "type-check a consumer"
tsc -p "$consumer"

# The command runs as a user would run it; npx then picks the first `node` on PATH.
run_consumer() {
  cd "$consumer"
  node program.js
  local version
  version=$(npx --no -- blkio --version)
  case $version in
    *"$(manifest .version)"*) echo "  blkio --version: $version" ;;
    *) echo "blkio --version printed: $version" >&2 && return 1 ;;
  esac

  # Threads are started by their files' names here, too. npx would not hand the signal on to the server.
  local socket="$scratch/disk-$(node --version).sock"
  node node_modules/.bin/blkio serve memory:16777216 --socket "$socket" --queues 2 >"$scratch/serve.log" 2>&1 &
  local server=$!
  for ((tries = 0; tries < 300; tries++)); do [ -S "$socket" ] && break || sleep 0.1; done
  local status=0
  npx --no -- blkio bench "virtio-blk-vhost-user,path=$socket" --queues 2 --workers 2 --runtime 0.2 --json \
    >"$scratch/bench.json" || status=$?
  kill "$server"
  wait "$server" || true
  if [ "$status" -ne 0 ]; then cat "$scratch/serve.log" >&2 && return 1; fi
  node -e 'const { aggregate } = JSON.parse(require("node:fs").readFileSync(process.argv[1]))
    if (!(aggregate.requests > 0) || aggregate.errors > 0) throw new Error(JSON.stringify(aggregate))
    console.log("  blkio bench: a thread for each of two queues")' "$scratch/bench.json"
}

begin "run on the pinned Node"
(run_consumer)

oldest=$(manifest .engines.node | sed 's/[^0-9.]//g').0
begin "run on Node $oldest"
mkdir "$scratch/oldest"
echo '{ "private": true, "allowScripts": { "node": true } }' >"$scratch/oldest/package.json"
install "$scratch/oldest" "node@$oldest"
(
  export PATH="$scratch/oldest/node_modules/.bin:$PATH"
  test "$(node --version)" = "v$oldest"
  run_consumer
)

begin "publint"
publint run --strict "$tarball"

begin "attw"
attw --profile esm-only "$tarball" >"$scratch/attw.txt" || { cat "$scratch/attw.txt" && exit 1; }

echo "package check: passed"
