// Looks at pages in Chromium: accessibility by axe-core, pictures, and when a round is seen. See watch.py.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const [modules, chromium] = process.argv.slice(2);
const require = createRequire(modules + "/");
const puppeteer = require("puppeteer-core");
const axe = readFileSync(require.resolve("axe-core"), "utf8");
const browser = await puppeteer.launch({
  executablePath: chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
});

async function open({ url, width = 1200, dark = false }) {
  const page = await browser.newPage();
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }]);
  await page.setViewport({ width, height: 900, isMobile: width < 500 });
  const faults = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (line) => { if (line.type() === "error") faults.push(line.text()); });
  await load(page, url);
  return { page, faults };
}

async function load(page, url) {
  await page.goto(url, { waitUntil: "load" });
  await page.waitForFunction(() => document.getElementById("connection").textContent === "live");
}

const jobs = {
  async look(job) {
    const { page, faults } = await open(job); // under the page's own policy, whose breaches are faults
    await page.setBypassCSP(true); // axe is put into the page
    await load(page, job.url);
    if (job.search) {
      await page.type("#text", job.search);
      await page.waitForFunction(() => document.querySelector("#found p"));
    }
    await page.evaluate(axe);
    const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    if (job.file) await page.screenshot({ path: job.file, fullPage: true });
    await page.close();
    const violations = found.violations.map((one) => `${one.id}: ${one.nodes.map((n) => n.html.slice(0, 150)).join(" | ")}`);
    return { violations, faults, wider: Math.max(0, wide) };
  },
  async follow(job) {
    const { page } = await open(job);
    await page.exposeFunction("seen", (value) => tell({ seen: value, at: Date.now() / 1000 }));
    await page.exposeFunction("drawn", () => tell({ drawn: Date.now() / 1000 }));
    await page.evaluate(() => {
      let last = 0;
      new MutationObserver(() => {
        const value = document.getElementById("rounds-done")?.value ?? 0;
        if (value !== last) window.seen(last = value);
      }).observe(document.getElementById("state"), { childList: true, subtree: true });
      new MutationObserver(() => window.drawn()).observe(document.getElementById("curves"), { childList: true });
    });
    return { following: true };
  },
};
const tell = (table) => process.stdout.write(JSON.stringify(table) + "\n");
for await (const line of createInterface({ input: process.stdin })) {
  const job = JSON.parse(line);
  try {
    tell(await jobs[job.job](job));
  } catch (error) {
    tell({ violations: [String(error)], faults: [], wider: 0 });
  }
}
await browser.close();
