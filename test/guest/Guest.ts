/**
 * A guest with a vhost-user disk: the driver that every virtual machine has, on whatever serves the socket.
 *
 * It has as many processors as the disk has queues, for Linux uses no more queues than that. There is no other disk.
 */
import { boot, escape, type Machine, type Options as BootOptions } from "./Machine.ts"

export { GuestFailed } from "./Machine.ts"

/** The disk's queues, and the guest's processors. */
export const queues = 4

/** What to run in a guest. */
export interface Options extends Pick<BootOptions, "jobs" | "content"> {
  /** The socket of the disk that the guest has as /dev/vda. */
  readonly disk: string
}

const memoryMiB = 256

const machine = (disk: string): Machine => ({
  processors: queues,
  memoryMiB,
  chipset: "memory-backend=memory",
  devices: [
    // The backend maps the guest's memory.
    "-object",
    `memory-backend-memfd,id=memory,size=${memoryMiB}M,share=on`,
    "-chardev",
    `socket,id=disk,path=${escape(disk)}`,
    "-device",
    `vhost-user-blk-pci,chardev=disk,num-queues=${queues},disable-legacy=on`
  ]
})

/** Boots a guest, waits until it has powered off, and gives the facts that its jobs have told. */
export const run = ({ disk, ...options }: Options) => boot({ machine: machine(disk), ...options })
