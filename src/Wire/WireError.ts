/**
 * The one error of the wire modules.
 *
 * `src/Wire` is pure and knows no Effect, so it throws. Whoever reads bytes from outside (a socket, shared memory) catches
 * a {@link WireError} at its edge and turns it into the errno that fits its operation, usually EPROTO.
 *
 * @since 0.1.0
 */

/**
 * Says that a byte sequence breaks its layout, or that a value does not fit the layout it should be written to; the
 * message names the value and the rule.
 *
 * @since 0.1.0
 * @category errors
 */
export class WireError extends Error {
  override readonly name = "WireError"
}
