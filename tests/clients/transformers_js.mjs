// Scores of texts by transformers.js: node transformers_js.mjs MODULES FOLDER fp32|q8 '["text", ...]'
// Nothing is fetched; the folder is read as one of local models.
import { basename, dirname, join } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, folder, dtype, texts] = process.argv.slice(2);
const entry = join(modules, "@huggingface", "transformers", "dist", "transformers.node.mjs");
const { env, pipeline } = await import(pathToFileURL(entry).href);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);

const classify = await pipeline("text-classification", basename(folder), { dtype });
const rows = [];
for (const text of JSON.parse(texts)) rows.push(await classify(text, { top_k: null }));
console.log(JSON.stringify(rows));
