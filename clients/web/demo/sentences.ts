/**
 * A title and a sentence for people, from a notification's payload.
 *
 * Place: used by `cards.ts`. Limits: pure; unknown types get a readable
 * fallback; secrets (call tokens, push tokens) are never part of a text.
 */
import type { JsonObject, JsonValue } from "../src/index.js";

export interface Text {
  title: string;
  sentence: string;
}

type Writer = (p: Fields) => [title: string, sentence: string];

/** Payload fields as text; whatever is missing reads as something. */
class Fields {
  constructor(readonly payload: JsonObject) {}

  text(name: string, otherwise = "someone"): string {
    const value = this.payload[name];
    return typeof value === "string" && value !== "" ? value : typeof value === "number" ? String(value) : otherwise;
  }
  /** A word of a fixed set; samples may list all of them, the first is taken. */
  word(name: string, otherwise = ""): string {
    return (this.text(name, otherwise).split("|")[0] ?? otherwise).replaceAll("_", " ");
  }
  flag(name: string): boolean {
    return this.payload[name] === true;
  }
  list(name: string): string {
    const value = this.payload[name];
    return Array.isArray(value) ? value.filter((v) => typeof v === "string").join(", ").replaceAll("_", " ") : "";
  }
  number(name: string): number {
    const value = this.payload[name];
    return typeof value === "number" ? value : 0;
  }
  when(name: string): string {
    const seconds = this.number(name);
    return seconds === 0 ? "later" : new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  }
}

const WRITERS: Record<string, Writer> = {
  "auth.force_logout": (p) => ["Signed out on another device", `New sign-in on ${p.text("device_type", "a device")} from ${p.text("login_location", "an unknown place")}.`],
  "auth.unusual_login": (p) => ["Unusual sign-in", `${p.text("device_type", "A device")} in ${p.text("login_location", "an unknown place")} (${p.text("login_ip", "no address")}). Was it you?`],
  "auth.password_changed": (p) => ["Password changed", `Changed on ${p.text("device_type", "a device")}.${p.flag("requires_relogin") ? " Other devices must sign in again." : ""}`],
  "user.profile_updated": (p) => ["Your profile was updated", `Changed: ${p.list("updated_fields") || "details"}. You are now ${p.text("nickname", "yourself")}.`],
  "user.friend_profile_changed": (p) => [`${p.text("nickname", "A friend")} has a new profile`, `Changed: ${p.list("updated_fields") || "details"}. ${p.text("signature", "")}`],
  "user.status_changed": (p) => [`${p.text("user_id")} is ${p.word("status", "here")}`, `On ${p.word("platform", "a device")}.`],
  "friend.request": (p) => ["Friend request", `${p.text("from_nickname")} wants to be your friend: “${p.text("message", "…")}”`],
  "friend.request_handled": (p) => [`Friend request ${p.word("status", "answered")}`, `${p.text("to_nickname")} ${p.word("status", "answered")} your request.`],
  "friend.deleted": (p) => ["Friend removed", `${p.text("friend_user_id")} is no longer among your friends.`],
  "friend.remark_updated": (p) => ["Remark changed", `${p.text("friend_user_id")} is now called “${p.text("remark", "")}”.`],
  "friend.blacklist_changed": (p) => ["Block list changed", `${p.text("target_user_id")} was ${p.word("action") === "remove" ? "unblocked" : "blocked"}.`],
  "group.invited": (p) => [`Invitation to ${p.text("group_name", "a group")}`, `${p.text("inviter_nickname")} invites you to join.`],
  "group.member_joined": (p) => ["New group member", `${p.text("nickname")} joined ${p.text("group_id", "the group")}.`],
  "group.member_left": (p) => ["A member left", `${p.text("nickname")} ${p.word("reason").startsWith("removed") ? "was removed from" : "left"} ${p.text("group_id", "the group")}.`],
  "group.info_updated": (p) => [`${p.text("group_name", "Group")} was updated`, p.text("announcement", `Changed: ${p.list("updated_fields")}.`)],
  "group.role_changed": (p) => ["Role changed", `${p.text("user_id")} went from ${p.word("old_role", "member")} to ${p.word("new_role", "member")} in ${p.text("group_id", "the group")}.`],
  "group.muted": (p) => [p.word("mute_type").startsWith("all") ? "Group muted" : "Member muted", `${p.word("mute_type").startsWith("all") ? "Everyone" : p.text("target_user_id")} in ${p.text("group_id", "the group")} for ${span(p.number("duration"))}.`],
  "group.disbanded": (p) => ["Group disbanded", `${p.text("group_name", "A group")} no longer exists.`],
  "message.new": (p) => [p.text("from_nickname"), p.text("content", p.word("content_type", "a message"))],
  "message.read_receipt": (p) => ["Read", `${p.text("reader_user_id")} read ${p.text("conversation_id", "the conversation")} up to ${p.text("last_read_seq", "the end")}.`],
  "message.recalled": (p) => ["Message recalled", `${p.text("operator_user_id")} took back a message in ${p.text("conversation_id", "a conversation")}.`],
  "message.typing": (p) => ["Typing", `${p.text("from_user_id")} is typing in ${p.text("conversation_id", "a conversation")}.`],
  "message.mentioned": (p) => [`${p.text("from_nickname")} mentioned you`, `${p.text("group_name", "Group")}: ${p.text("content", "")}`],
  "session.unread_updated": (p) => [`${p.number("unread_count")} unread`, `In ${p.text("conversation_id", "a conversation")}; ${p.number("total_unread_count")} in all.`],
  "session.pin_updated": (p) => [p.flag("is_pinned") ? "Conversation pinned" : "Conversation unpinned", p.text("conversation_id", "")],
  "session.deleted": (p) => ["Conversation deleted", `${p.text("conversation_id", "It")} was deleted on another device.`],
  "session.mute_updated": (p) => [p.flag("is_muted") ? "Conversation muted" : "Conversation unmuted", p.text("conversation_id", "")],
  "file.upload_completed": (p) => ["Upload complete", `${p.text("file_name", "A file")} (${bytes(p.number("file_size"))})`],
  "file.processing": (p) => [p.text("file_name", "File"), `${p.text("message", p.word("status"))} ${p.number("progress")} %`],
  "file.expiring": (p) => ["File expires soon", `${p.text("file_name", "A file")} in ${p.number("hours_remaining")} hours.`],
  "push.delivery_status": (p) => [`Push ${p.word("status", "reported")}`, `${p.word("platform", "device")}${p.word("status") === "failed" ? `: ${p.text("error_message", "no reason given")}` : ""}`],
  "push.token_invalid": (p) => ["Push is off on a device", `${p.text("device_id", "A device")} (${p.word("platform", "unknown")}): ${p.word("reason", "no reason given")}.`],
  "livekit.call_invite": (p) => [`${p.text("from_nickname")} is calling`, `${cap(p.word("call_type", "audio"))} call in ${p.text("room_name", "a room")}.`],
  "livekit.call_status": (p) => [`Call: ${p.word("status", "changed")}`, `${p.text("user_id", "Participant")} in ${p.text("call_id", "the call")}.`],
  "livekit.call_rejected": (p) => ["Call declined", `${p.text("rejector_nickname")}: ${p.word("reason", "declined")}.`],
  "sync.request": (p) => ["Sync requested", `${cap(p.word("sync_type", "full"))} sync of ${p.list("data_types") || "data"} from ${p.text("from_device_id", "another device")}.`],
  "sync.completed": (p) => ["Sync complete", `${p.number("synced_items")} items.`],
  "admin.announcement": (p) => [p.text("title", "Announcement"), p.text("content", "")],
  "admin.user_banned": (p) => ["Account banned", `${p.text("reason", "No reason given")}. ${p.flag("is_permanent") ? "Permanently." : `Until ${p.when("banned_until")}.`}`],
  "admin.maintenance": (p) => ["Maintenance", `${p.text("message", "Planned maintenance")} from ${p.when("start_time")}, about ${span(p.number("estimated_duration"))}.`],
};

export function describe(type: string, payload: JsonObject): Text {
  const fields = new Fields(payload);
  const writer = Object.hasOwn(WRITERS, type) ? WRITERS[type] : undefined;
  const [title, sentence] = writer ? writer(fields) : fallback(type, fields);
  return { title, sentence: sentence.trim() };
}

/** The payload with everything that grants access taken out, for showing. */
export function withoutSecrets(value: JsonValue): JsonValue {
  if (Array.isArray(value)) return value.map(withoutSecrets);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, v]) => [key, isSecret(key) ? "hidden" : withoutSecrets(v)]),
  );
}

function isSecret(key: string): boolean {
  return /(token|secret|password)$/i.test(key);
}

function fallback(type: string, fields: Fields): [string, string] {
  const words = type.split(".").slice(1).join(" ").replaceAll("_", " ") || type;
  const named = ["title", "message", "content", "text", "reason"].map((name) => fields.text(name, "")).find(Boolean);
  const pairs = Object.entries(fields.payload)
    .filter(([key, value]) => !isSecret(key) && typeof value !== "object")
    .slice(0, 3)
    .map(([key, value]) => `${key.replaceAll("_", " ")}: ${String(value)}`);
  return [cap(words), named ?? pairs.join(" · ")];
}

function cap(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function span(seconds: number): string {
  if (seconds <= 0) return "a while";
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  const hours = Math.round(seconds / 360) / 10;
  return hours === 1 ? "1 hour" : `${hours} hours`;
}

function bytes(size: number): string {
  if (size < 1000) return `${size} B`;
  return size < 1_000_000 ? `${Math.round(size / 1000)} kB` : `${(size / 1_000_000).toFixed(1)} MB`;
}
