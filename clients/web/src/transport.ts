/**
 * The part of the browser's `WebTransport` that this client uses.
 *
 * Place: `link.ts` talks to it; tests give a fake. Limits: types and the
 * constructor only. The names are the W3C ones; `protocols` and `protocol`
 * are newer than some type libraries.
 */

export interface CertificateHash {
  algorithm: "sha-256";
  value: Uint8Array<ArrayBuffer>;
}

export interface TransportInit {
  serverCertificateHashes?: CertificateHash[];
  protocols?: string[];
}

export interface BidiStream {
  readonly readable: ReadableStream<Uint8Array>;
  readonly writable: WritableStream<Uint8Array>;
}

export interface Transport {
  readonly ready: Promise<unknown>;
  readonly closed: Promise<{ closeCode?: number; reason?: string }>;
  readonly incomingUnidirectionalStreams: ReadableStream<ReadableStream<Uint8Array>>;
  readonly datagrams: { readonly readable: ReadableStream<Uint8Array> };
  createBidirectionalStream(): Promise<BidiStream>;
  close(info?: { closeCode?: number; reason?: string }): void;
}

export type Connector = (url: string, init: TransportInit) => Transport;

/** The subprotocol offered to the server. */
export const SUBPROTOCOL = "fanfare.v1";

/** True when this runtime can connect at all; there is no other transport to fall back to. */
export function isSupported(): boolean {
  return typeof (globalThis as { WebTransport?: unknown }).WebTransport === "function";
}

export const browserTransport: Connector = (url, init) => {
  if (!isSupported()) throw new Error("this browser has no WebTransport");
  const Native = (globalThis as unknown as { WebTransport: new (url: string, init: TransportInit) => Transport })
    .WebTransport;
  return new Native(url, init);
};
