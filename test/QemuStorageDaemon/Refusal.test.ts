/**
 * Goal: what a daemon says of an image that it does not open becomes the error that the words mean, with QEMU's words in it.
 * Method: words that QEMU 7.2 and 10 said, and some from its sources.
 */
import { describe, expect, it } from "@effect/vitest"
import * as Refusal from "../../src/QemuStorageDaemon/Refusal.ts"
import { QmpError } from "../../src/Qmp/Qmp.ts"
import { Errno } from "../../src/index.ts"

const refusal = (desc: string) =>
  Refusal.from(new QmpError({ command: "blockdev-add", class: "GenericError", desc }), "/a.qcow2")

describe("a refusal", () => {
  it.each([
    ["Could not open '/a.qcow2': No such file or directory", "ENOENT"],
    ["error opening RBD image i: No such file or directory", "ENOENT"],
    ["Could not open '/dev/none': No such device or address", "ENXIO"],
    ["Could not open '/dev/none': No such device", "ENOENT"],
    ["Failed to get \"write\" lock", "EBUSY"],
    ["Failed to get shared \"write\" lock", "EBUSY"],
    ["Failed to get \"consistent read\" lock", "EBUSY"],
    ["Could not open '/a.qcow2': Permission denied", "EACCES"],
    ["Could not open '/a.qcow2': Operation not permitted", "EPERM"],
    ["Invalid password, cannot unlock any keyslot", "EACCES"],
    ["Could not open '/a/b': Not a directory", "ENOTDIR"],
    ["Could not open '/a': Is a directory", "EISDIR"],
    ["Could not allocate: Cannot allocate memory", "ENOMEM"],
    ["Failed to connect to '127.0.0.1:1': Connection refused", "ECONNREFUSED"],
    [
      "CURL: Error opening file: Failed to connect to localhost port 1 after 0 ms: Couldn't connect to server",
      "ECONNREFUSED"
    ],
    ["Failed to connect to 'far:1': Connection timed out", "ETIMEDOUT"],
    ["CURL: Error opening file: Timeout was reached", "ETIMEDOUT"],
    ["curl driver does not support writes", "ENOTSUP"],
    ["Image is not in qcow2 format", "EINVAL"],
    ["Image not in VDI format (bad signature 00000000)", "EINVAL"],
    ["Unsupported VDI image size (size is 0x9, max supported is 0x8)", "ENOTSUP"],
    ["No encryption in image header, but options specified format 'luks'", "EINVAL"],
    ["invalid VMDK image descriptor", "EINVAL"],
    ["Parameter 'encrypt.key-secret' is required for cipher", "EINVAL"],
    ["Something that nobody has heard of", "EIO"],
    ["", "EIO"]
  ])("%j is %s", (desc, tag) => {
    const error = refusal(desc)
    expect(error).toMatchObject({ _tag: tag, operation: "open", path: "/a.qcow2", detail: desc })
    expect(error.cause).toBeInstanceOf(QmpError)
  })

  it.each([
    ["Unknown driver 'rbd'", "no driver rbd: Debian has it in the package qemu-block-extra"],
    ["Unknown driver 'iscsi'", "no driver iscsi: Debian has it in the package qemu-block-extra"],
    ["Unknown driver 'https'", "no driver https: Debian has it in the package qemu-block-extra"],
    ["Unknown driver 'vhdx'", "no driver vhdx: it was built without"],
    ["Parameter 'driver' does not accept value 'rbd'", "no driver rbd: Debian has it in the package qemu-block-extra"]
  ])("%j names what is missing", (desc, words) => {
    const error = refusal(desc)
    expect(error).toBeInstanceOf(Errno.ENOTSUP)
    expect(error.detail).toContain(words)
  })
})
