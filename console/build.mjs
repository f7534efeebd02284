// Bundles src/ into gadfly/console: index.html, and assets with a hash of their content in the name.
import { copyFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "..", "gadfly", "console");

await rm(out, { recursive: true, force: true });
const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: { console: "src/main.tsx", theme: "src/theme.ts" },
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  outdir: join(out, "assets"),
  entryNames: "[name]-[hash]",
  metafile: true,
  loader: { ".svg": "dataurl" },
});

const built = Object.keys(metafile.outputs).map((path) => basename(path));
const asset = (name, extension) => {
  const found = built.find((file) => file.startsWith(`${name}-`) && file.endsWith(extension));
  if (!found) throw new Error(`the build made no ${name}${extension}`);
  return `assets/${found}`;
};
const icon = await readFile(join(here, "src", "icon.svg"));
await mkdir(join(out, "assets"), { recursive: true });
await writeFile(join(out, "assets", "icon.svg"), icon);
await copyFile(join(here, "node_modules", "preact", "LICENSE"), join(out, "LICENSE-preact.txt"));
const page = (await readFile(join(here, "src", "index.html"), "utf8"))
  .replace("{{theme}}", asset("theme", ".js"))
  .replace("{{script}}", asset("console", ".js"))
  .replace("{{style}}", asset("console", ".css"));
await writeFile(join(out, "index.html"), page);
