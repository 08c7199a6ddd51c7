/**
 * What `@fanfare/client` offers. Everything else in this folder is internal.
 */
export { FanfareClient } from "./client.js";
export type { ClientEvents, ClientOptions, ClientState, PingInfo } from "./client.js";
export { CLOSE_NAMES, type SessionEnd } from "./closing.js";
export { FrameError, LANES } from "./frames.js";
export type {
  Encoding,
  JsonObject,
  JsonValue,
  Lane,
  NotificationData,
  WelcomeFrame,
} from "./frames.js";
export type { Notification } from "./session.js";
export type { Status } from "./supervisor.js";
export { isSupported } from "./transport.js";
export type { Connector, Transport, TransportInit } from "./transport.js";
