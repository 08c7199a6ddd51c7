/**
 * Bundles with esbuild: `node build.mjs demo` writes the demo page to
 * dist/demo, `node build.mjs test` the unit tests to dist/test. Types are
 * checked by tsc, not here.
 */
import { cp, mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = fileURLToPath(new URL(".", import.meta.url));
const target = process.argv[2];

if (target === "demo") {
  const out = join(root, "dist/demo");
  await rm(out, { recursive: true, force: true });
  await mkdir(out, { recursive: true });
  await build({
    entryPoints: [join(root, "demo/main.ts")],
    bundle: true,
    format: "esm",
    target: "es2022",
    sourcemap: "linked",
    minify: true,
    outfile: join(out, "main.js"),
    logLevel: "warning",
  });
  for (const file of ["index.html", "style.css"]) await cp(join(root, "demo", file), join(out, file));
} else if (target === "test") {
  const out = join(root, "dist/test");
  await rm(out, { recursive: true, force: true });
  const tests = (await readdir(join(root, "test"))).filter((name) => name.endsWith(".test.ts"));
  await build({
    entryPoints: tests.map((name) => join(root, "test", name)),
    bundle: true,
    packages: "external",
    platform: "node",
    format: "esm",
    target: "node20",
    sourcemap: "inline",
    outdir: out,
    logLevel: "warning",
  });
} else {
  console.error("usage: node build.mjs demo|test");
  process.exit(64);
}
