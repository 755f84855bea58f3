/**
 * Goal: whatever is wrong with a command line is said in one paragraph on stderr that begins with the errno's name, ends with
 * exit code 2, and leaves stdout empty; no device is needed for it.
 * Method: the command itself, run as a program.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import { readFileSync } from "node:fs"
import { blkio } from "./blkio.ts"

const DEVICE = "virtio-blk-vhost-user,path=/nowhere/disk.sock"
const { version }: { readonly version: string } = JSON.parse(
  readFileSync(new URL("../../package.json", import.meta.url), "utf8")
)

describe("wrong usage", () => {
  it.live.each<readonly [string, string, ReadonlyArray<string>]>([
    ["unknown driver", "ENOENT: device: there is no driver \"nvme\"", ["info", "nvme,path=/x"]],
    ["no driver", "ENOENT: device: there is no driver \"\"", ["info", ""]],
    ["unknown property", "ENOENT: set property: there is no property \"speed\"", ["info", `${DEVICE},speed=1`]],
    ["no value", "EINVAL: device: \"read-only\" must be property=value", ["info", `${DEVICE},read-only`]],
    ["stray comma", "EINVAL: device: \"\" must be property=value", ["info", `${DEVICE},`]],
    ["bad bool", "EINVAL: set property: read-only = yes: must be \"true\" or \"false\"", [
      "info",
      `${DEVICE},read-only=yes`
    ]],
    ["bad int", "EINVAL: set property: num-queues = four", ["info", `${DEVICE},num-queues=four`]],
    ["bad value", "EINVAL: set property: queue-size = 100: must be a power of two", [
      "info",
      `${DEVICE},queue_size=100`
    ]],
    ["read-only property", "EACCES: set property: capacity can only be read", ["info", `${DEVICE},capacity=1`]],
    ["the driver as a property", "EACCES: set property: driver can only be read", ["info", `${DEVICE},driver=x`]],
    ["neither path nor fd", "EINVAL: vhost-user: one of path and fd must be set", ["info", "virtio-blk-vhost-user"]],
    ["empty path", "EINVAL: vhost-user: one of path and fd must be set", ["info", "virtio-blk-vhost-user,path="]],
    ["path and fd", "EINVAL: vhost-user: one of path and fd must be set", ["info", `${DEVICE},fd=3`]],
    ["fd that is no number", "EINVAL: device: fd = ", ["info", "virtio-blk-vhost-user,fd="]],
    ["negative fd", "EINVAL: device: fd = -1", ["info", "virtio-blk-vhost-user,fd=-1"]],
    ["neither path nor fd of vDPA", "EINVAL: vhost-vdpa: one of path and fd must be set", [
      "info",
      "virtio-blk-vhost-vdpa"
    ]],
    ["fd of vDPA that is no number", "EINVAL: device: fd = x", ["info", "virtio-blk-vhost-vdpa,fd=x"]],
    ["no path of a PCI device", "EINVAL: vfio-pci: path must be set", ["info", "virtio-blk-vfio-pci"]],
    ["fd of a PCI device", "ENOENT: vfio-pci: there is no fd", ["info", "virtio-blk-vfio-pci,fd=3"]],
    ["unknown flag", "EINVAL: Unrecognized flag: --fast", ["info", DEVICE, "--fast"]],
    ["unknown command", "EINVAL: Unknown subcommand \"format\"", ["format", DEVICE]],
    ["no device", "EINVAL: Missing required argument: DEVICE", ["info"]],
    ["two devices", "EINVAL: Unexpected positional argument", ["info", DEVICE, DEVICE]],
    ["flag without a value", "EINVAL: Missing value for flag --iodepth", ["bench", DEVICE, "--iodepth"]],
    ["flag with a value of another kind", "EINVAL: Invalid value for flag --iodepth: \"x\"", [
      "bench",
      DEVICE,
      "--iodepth",
      "x"
    ]],
    ["no choice", "EINVAL: Invalid value for flag --wait: \"sleep\"", ["bench", DEVICE, "--wait", "sleep"]],
    ["depth 0", "EINVAL: Invalid value for flag --iodepth: \"0\"", ["bench", DEVICE, "--iodepth", "0"]],
    ["no time", "EINVAL: Invalid value for flag --runtime: \"0\"", ["bench", DEVICE, "--runtime", "0"]],
    ["no bytes", "EINVAL: Invalid value for flag --blocksize: \"-1\"", ["bench", DEVICE, "--blocksize=-1"]],
    ["bad device of bench", "ENOENT: device: there is no driver", ["bench", "nvme"]]
  ])("%s", ([, expected, args]) =>
    Effect.gen(function*() {
      const { exit, stderr, stdout } = yield* blkio(...args)
      expect(stderr.slice(0, expected.length)).toBe(expected)
      expect(stderr.trimEnd()).not.toContain("\n")
      expect([exit, stdout]).toStrictEqual([2, ""])
    }))
})

describe("without a device", () => {
  it.live.each<readonly [string, string, ReadonlyArray<string>]>([
    ["no such socket", "ENOENT: connect /nowhere/disk.sock: ", ["info", DEVICE]],
    ["no such socket for bench", "ENOENT: connect /nowhere/disk.sock: ", ["bench", DEVICE, "--json"]],
    ["no such vDPA device", "ENOENT: connect /dev/vhost-vdpa-9999: ", [
      "info",
      "virtio-blk-vhost-vdpa,path=/dev/vhost-vdpa-9999"
    ]],
    ["no vDPA device", "ENODEV: vhost-vdpa: this is no vhost-vdpa device", [
      "info",
      "virtio-blk-vhost-vdpa,path=/dev/null"
    ]],
    ["no such PCI device", "ENOENT: connect /sys/bus/pci/devices/ffff:ff:1f.7: ", [
      "info",
      "virtio-blk-vfio-pci,path=ffff:ff:1f.7"
    ]],
    ["no PCI device", "ENODEV: connect /tmp: this is no directory of a PCI device", [
      "info",
      "virtio-blk-vfio-pci,path=/tmp"
    ]],
    ["a part of the path that is no directory", "ENOTDIR: connect /dev/null/x: ", [
      "info",
      "virtio-blk-vhost-user,path=/dev/null/x"
    ]],
    ["a path that is too long", "ENAMETOOLONG: connect /", ["info", `virtio-blk-vhost-user,path=/${"x".repeat(107)}`]],
    ["a descriptor that is no socket", "ENOTSOCK: ", ["info", "virtio-blk-vhost-user,fd=0"]],
    ["a descriptor that is not open", "EBADF: ", ["info", "virtio-blk-vhost-user,fd=999"]]
  ])("%s: exit code 1", ([, expected, args]) =>
    Effect.gen(function*() {
      const { exit, stderr, stdout } = yield* blkio(...args)
      expect(stderr.slice(0, expected.length)).toBe(expected)
      expect(stderr.trimEnd()).not.toContain("\n")
      expect([exit, stdout]).toStrictEqual([1, ""])
    }))

  it.live.each<readonly [ReadonlyArray<string>, ReadonlyArray<string>]>([
    [["--help"], ["USAGE", "info", "properties", "copy", "compare", "hash", "bench"]],
    [["info", "--help"], ["blkio info", "DEVICE", "--json"]],
    [["bench", "--help"], [
      "--readwrite",
      "--blocksize",
      "--iodepth",
      "--runtime",
      "--wait",
      "--queues",
      "--api",
      "--json"
    ]]
  ])("%j says what there is", ([args, words]) =>
    Effect.gen(function*() {
      const { exit, stderr, stdout } = yield* blkio(...args)
      for (const word of words) expect(stdout).toContain(word)
      expect([exit, stderr]).toStrictEqual([0, ""])
    }))

  it.live("--version is the package's", () =>
    Effect.gen(function*() {
      expect(yield* blkio("--version")).toStrictEqual({ exit: 0, stdout: `blkio v${version}\n`, stderr: "" })
    }))
})
