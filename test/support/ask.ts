/** Requests as calls, for those who have them as values. */
import type { Effect } from "effect"
import type { IoQueue } from "../../src/index.ts"

/** Sends a request by the call of its kind. */
export const ask = (queue: IoQueue.IoQueue, request: IoQueue.Request): Effect.Effect<void, IoQueue.RequestFailure> => {
  switch (request._tag) {
    case "read":
      return queue.read(request.offset, request.buffer, request.flags)
    case "write":
      return queue.write(request.offset, request.buffer, request.flags)
    case "readv":
      return queue.readv(request.offset, request.buffers, request.flags)
    case "writev":
      return queue.writev(request.offset, request.buffers, request.flags)
    case "writeZeroes":
      return queue.writeZeroes(request.offset, request.length, request.flags)
    case "discard":
      return queue.discard(request.offset, request.length, request.flags)
    case "flush":
      return queue.flush(request.flags)
  }
}
