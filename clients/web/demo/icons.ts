/**
 * An icon and a hue for each service, and small helpers to make elements.
 *
 * Place: used by everything that draws. Limits: text always goes in as text,
 * never as markup; the only markup is the paths below.
 */

const PATHS: Record<string, [hue: number, path: string]> = {
  auth: [4, "M12 3l7 3v5c0 5-3 8-7 10-4-2-7-5-7-10V6zM9.5 12l2 2 3.5-4"],
  user: [200, "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4.5 20c1-4 4-5.5 7.5-5.5s6.500 1.500 7.500 5.500"],
  friend: [150, "M10 12a3.500 3.500 0 1 0 0-7 3.500 3.500 0 0 0 0 7zM3.500 19.500c.8-3.500 3.300-5 6.500-5s5.700 1.500 6.500 5M19 8v6M16 11h6"],
  group: [265, "M8.500 11.500a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM3 19c.6-3 2.700-4.500 5.500-4.500S13.400 16 14 19M15.500 5.800a3 3 0 0 1 0 5.400M17 14.800c2.200.6 3.500 2 4 4.200"],
  message: [225, "M5 5h14a2 2 0 0 1 2 2v8a2 2 0 0 1-2 2h-7l-5 4v-4H5a2 2 0 0 1-2-2V7a2 2 0 0 1 2-2zM8 10h8M8 13h5"],
  session: [185, "M4 6h16M4 12h16M4 18h9M18 16l1.500 1.500L22 15"],
  file: [35, "M13 3H7a2 2 0 0 0-2 2v14a2 2 0 0 0 2 2h10a2 2 0 0 0 2-2V9zM13 3v6h6M9 14h6M9 17h4"],
  push: [320, "M6 16V11a6 6 0 1 1 12 0v5l2 2H4zM10 21h4"],
  livekit: [130, "M4 7a2 2 0 0 1 2-2h7a2 2 0 0 1 2 2v10a2 2 0 0 1-2 2H6a2 2 0 0 1-2-2zM15 10.500l5-3v9l-5-3"],
  sync: [175, "M4 11a8 8 0 0 1 14-4.500L20 9M20 4v5h-5M20 13a8 8 0 0 1-14 4.500L4 15M4 20v-5h5"],
  admin: [18, "M4 14v-4l11-5v14L4 14zM8 15.500V19h3v-2.500M18.500 9.500a4 4 0 0 1 0 5"],
  system: [215, "M4 5h16v11H4zM9 20h6M12 16v4"],
};
const FALLBACK: [number, string] = [230, "M6 16V11a6 6 0 1 1 12 0v5l2 2H4zM10 21h4"];
const SVG = "http://www.w3.org/2000/svg";

export function icon(service: string): HTMLElement {
  const [hue, path] = PATHS[service] ?? FALLBACK;
  const box = make("span", "icon");
  box.style.setProperty("--hue", String(hue));
  box.setAttribute("aria-hidden", "true");
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", path);
  svg.append(line);
  box.append(svg);
  return box;
}

export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = "",
  text = "",
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no element ${id}`);
  return element as T;
}
