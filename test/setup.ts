import { install } from "./support/leakGate.ts"

install()
